// Points that the user draws: their form in the page address, and the pen that adds them.

import { between } from "./colours.js";

const SIDE = 4; // the plane is [-SIDE, SIDE]^2
const LEVELS = 4095; // a coordinate has 12 bits, two digits of base 64
const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const DISTANCE = 0.12; // between two points of a stroke
const SCATTER = 0.08; // standard deviation of points around the stroke
export const MAX_POINTS = 400; // 1,600 characters of an address

const level = (value) => Math.round(((Math.min(SIDE, Math.max(-SIDE, value)) + SIDE) / (2 * SIDE)) * LEVELS);
const coordinate = (digits) => ((DIGITS.indexOf(digits[0]) * 64 + DIGITS.indexOf(digits[1])) / LEVELS) * 2 * SIDE - SIDE;

/** Points [[x, y], ...] as text, four characters each. Coordinates are rounded to 1/512. */
export const encodePoints = (points) => points.flat().map(level).map((n) => DIGITS[n >> 6] + DIGITS[n & 63]).join("");

/** The points of a text that `encodePoints` wrote. */
export function decodePoints(text) {
  const numbers = (text.match(/../g) ?? []).map(coordinate);
  return Array.from({ length: numbers.length / 2 }, (_, i) => numbers.slice(2 * i, 2 * i + 2));
}

/** What is wrong with the text of points, or null. */
export const checkPoints = (text) =>
  /^([A-Za-z0-9_-]{4})*$/.test(text) && text.length <= 4 * MAX_POINTS ? null
    : `not at most ${MAX_POINTS} points of four letters, digits, - or _ each`;

/** A standard normal number (Box and Muller 1958). */
const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

/**
 * Let the user draw points on `canvas` with mouse, finger or keyboard, while `isOn()`.
 *
 * `begin()` is called before each stroke, `add(points)` for each of its points, `end()` after it. With the keyboard,
 * arrows move a cross, which `moveCross` receives, and Enter adds points around it.
 */
export function attachPen(canvas, { isOn, begin, add, end, moveCross }) {
  let last = null, cross = [0, 0];
  const locate = ({ clientX, clientY }) => {
    const box = canvas.getBoundingClientRect();
    return [((clientX - box.x) / box.width) * 2 * SIDE - SIDE, SIDE - ((clientY - box.y) / box.height) * 2 * SIDE];
  };
  const dot = ([x, y]) => add(decodePoints(encodePoints([[x + SCATTER * normal(), y + SCATTER * normal()]])));
  /** Add points along the line from the last one to the pen, DISTANCE apart. */
  const lineTo = (event) => {
    const point = locate(event);
    if (!last) dot((last = point));
    const length = Math.hypot(point[0] - last[0], point[1] - last[1]);
    for (let rest = length; rest >= DISTANCE; rest -= DISTANCE) {
      last = between(last, point, DISTANCE / rest);
      dot(last);
    }
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (!isOn()) return;
    canvas.setPointerCapture(event.pointerId);
    last = null;
    begin();
    lineTo(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (isOn() && canvas.hasPointerCapture(event.pointerId)) for (const part of event.getCoalescedEvents?.() ?? [event]) lineTo(part);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => isOn() && last && ((last = null), end()));
  canvas.addEventListener("blur", () => moveCross(null));
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, 0.2], ArrowDown: [0, -0.2] }[event.key];
    if (!isOn() || !(move || event.key === "Enter")) return;
    event.preventDefault();
    event.stopPropagation(); // elsewhere, arrows move in time
    if (move) cross = cross.map((value, axis) => Math.min(SIDE, Math.max(-SIDE, value + move[axis])));
    else {
      begin();
      for (let i = 0; i < 4; i++) dot(cross);
      end();
    }
    moveCross(cross);
  });
}
