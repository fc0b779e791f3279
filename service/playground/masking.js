// The mask of a picture: a layer over the picture, with a pixel for each of the model's.

import { make } from "./page.js";

const COLOUR = [240, 120, 20, 150]; // red, green, blue, alpha
const PEN_SHARE = 1 / 10; // of the shorter side: the pen's radius

/** What is wrong with `text` as a rectangle "left,top,width,height" within `height` x `width` pixels, or null. */
export const rectangleProblem = ({ width, height }) => (text) => {
  const [x, y, w, h] = text.split(",").map(Number);
  const fits = /^\d+,\d+,\d+,\d+$/.test(text) && w && h && x + w <= width && y + h <= height;
  return fits ? null : `not left,top,width,height within ${width} × ${height} pixels`;
};

/** The lower half of an image of the model, as a rectangle. */
export const lowerHalf = ({ width, height }) => [0, Math.floor(height / 2), width, Math.ceil(height / 2)].join(",");

/**
 * A mask of `height` x `width` pixels: its `element` lies over the picture.
 *
 * `use(tool)` lets the pointer draw with the "pen" or the "rectangle", or pass to the picture with null. `changed()` is
 * called after each stroke. `rectangle()` is the mask as "left,top,width,height" if one rectangle is all of it, else "".
 */
export function maskLayer({ width, height }, changed) {
  const canvas = make("canvas", { className: "mask", width, height, role: "img", "aria-label": "the masked part" });
  let pixels = new Uint8Array(width * height);
  let tool = null, rectangle = "", start = null, before = pixels;

  const show = () => canvas.getContext("2d").putImageData(imageOf(pixels, COLOUR, [0, 0, 0, 0]), 0, 0);
  const imageOf = (values, on, off) =>
    new ImageData(Uint8ClampedArray.from([...values].flatMap((value) => (value ? on : off))), width, height);
  const fillRectangle = ([x, y, w, h]) => {
    for (let row = y; row < y + h; row++) pixels.fill(1, row * width + x, row * width + x + w);
  };
  const fillDisc = ([x, y]) => {
    const radius = Math.max(1, PEN_SHARE * Math.min(width, height));
    for (let i = 0; i < pixels.length; i++) {
      if (Math.hypot((i % width) + 0.5 - x, Math.floor(i / width) + 0.5 - y) <= radius) pixels[i] = 1;
    }
  };

  /** The place of the pointer in pixels of the mask. */
  const placeOf = (event) => {
    const box = canvas.getBoundingClientRect();
    const within = (share) => Math.min(1, Math.max(0, share));
    return [within((event.clientX - box.x) / box.width) * width, within((event.clientY - box.y) / box.height) * height];
  };
  const penTo = (from, to) => {
    const points = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])));
    for (let i = 0; i <= points; i++) fillDisc(from.map((value, axis) => value + ((to[axis] - value) * i) / points));
    start = to;
    rectangle = "";
  };
  const rectangleTo = (from, to) => {
    const low = from.map((value, axis) => Math.round(Math.min(value, to[axis])));
    const high = from.map((value, axis) => Math.round(Math.max(value, to[axis])));
    const chosen = [...low, ...high.map((value, axis) => Math.max(1, value - low[axis]))];
    if (rectangleProblem({ width, height })(chosen.join(","))) return; // a click on the last edge
    pixels = before.slice();
    fillRectangle(chosen);
    rectangle = before.some(Boolean) ? "" : chosen.join(",");
  };
  const moveTo = (event) => {
    (tool === "pen" ? penTo : rectangleTo)(start, placeOf(event));
    show();
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    [start, before] = [placeOf(event), pixels];
    moveTo(event);
  };
  canvas.onpointermove = (event) => canvas.hasPointerCapture(event.pointerId) && moveTo(event);
  canvas.onpointerup = () => changed();

  const use = (chosen) => {
    tool = chosen;
    canvas.classList.toggle("active", tool !== null);
  };
  const set = (values, text = "") => {
    pixels = values.slice();
    rectangle = text;
    show();
  };
  const setRectangle = (text) => {
    set(new Uint8Array(width * height), text);
    if (text) fillRectangle(text.split(",").map(Number));
    show();
  };
  /** A PNG that is white where the picture is to be completed. */
  const toFile = () => {
    const file = make("canvas", { width, height });
    file.getContext("2d").putImageData(imageOf(pixels, [255, 255, 255, 255], [0, 0, 0, 255]), 0, 0);
    return new Promise((resolve) => file.toBlob(resolve));
  };
  return { element: canvas, use, set, setRectangle, toFile, rectangle: () => rectangle, pixels: () => pixels, isEmpty: () => !pixels.some(Boolean) };
}
