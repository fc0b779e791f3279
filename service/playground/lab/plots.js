// Plots of curves over the updates: one small plot for each curve, with a line for each experiment.

import { make } from "../page.js";
import { colours } from "./colours.js";
import { prepare } from "./surface.js";

const BASELINE = " of data"; // ends the name of a curve that is the value of data, shown as a line in the plot of samples
const MARGIN = { left: 40, right: 8, top: 6, bottom: 18 };
const DASHES = [[], [5, 3]]; // of the first and the second experiment

/** A value as text: three significant digits, with a typographic minus. */
export const format = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(3))).replace("-", "−") : "–");

/** The ticks of an axis from `low` to `high`: about `count` round numbers (1, 2 or 5 times a power of ten apart). */
export function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

const isBaseline = (name, all) => name.endsWith(BASELINE) && all.has(name.slice(0, -BASELINE.length));

/** The plots of the curves of experiments, in `element`. `onSeek(update)` is called when the user chooses a point in time. */
export class Plots {
  element = make("div", { className: "plots" });
  #plots = new Map();

  constructor(onSeek) {
    this.onSeek = onSeek;
  }

  /** Draw the curves of the experiments, and a cursor at `update`. `titles` names each experiment. */
  draw(experiments, titles, update, furthest) {
    const all = new Set(experiments.flatMap(({ curves }) => curves.names));
    const names = [...all].filter((name) => !isBaseline(name, all));
    if (names.join() !== [...this.#plots.keys()].join()) this.#build(names);
    const range = Math.max(1, furthest);
    for (const [name, { canvas, values }] of this.#plots) {
      const lines = experiments.map(({ curves, frame }, index) =>
        ({ ...extended(curves.get(name), frame?.finished ? furthest : 0), index, value: curves.at(name, update) })).filter(({ updates }) => updates);
      values.replaceChildren(...lines.map(({ index, value }) => make("span", { className: `run-${index}`, textContent: format(value) })));
      const shown = lines.map(({ index, value }) => `${titles[index]} ${format(value)}`).join(", ");
      canvas.setAttribute("aria-label", `${name} by update: ${shown} at update ${update}`);
      const baseline = experiments[0].curves.at(name + BASELINE, update);
      drawPlot(canvas, lines, baseline, update, range);
    }
  }

  /** Forget the curves of the experiments before. */
  clear() {
    this.#build([]);
  }

  #build(names) {
    this.#plots = new Map(names.map((name) => {
      const canvas = make("canvas", { role: "img" }), values = make("span", { className: "values" });
      return [name, { canvas, values, element: make("figure", {}, make("figcaption", {}, make("b", { textContent: name }), values), canvas) }];
    }));
    for (const { canvas } of this.#plots.values()) {
      const seek = ({ clientX }) => {
        const box = canvas.getBoundingClientRect();
        const share = (clientX - box.x - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
        this.onSeek(Math.min(1, Math.max(0, share)));
      };
      canvas.onpointerdown = (event) => {
        canvas.setPointerCapture(event.pointerId);
        seek(event);
      };
      canvas.onpointermove = (event) => canvas.hasPointerCapture(event.pointerId) && seek(event);
    }
    this.element.replaceChildren(...[...this.#plots.values()].map(({ element }) => element));
  }
}

/** A curve whose last value stays until update `end`. */
const extended = (curve, end) =>
  (curve?.updates.at(-1) < end ? { updates: [...curve.updates, end], values: [...curve.values, curve.values.at(-1)] } : curve);

function drawPlot(canvas, lines, baseline, update, range) {
  const { context, width, height } = prepare(canvas);
  const palette = colours();
  const [low, high] = limits([...lines.flatMap(({ values }) => values), baseline].filter(Number.isFinite));
  const x = (value) => MARGIN.left + (value / range) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => height - MARGIN.bottom - ((value - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
  drawTicks(context, palette, { x, y, width, height, low, high, range });
  if (baseline !== undefined) {
    context.strokeStyle = palette.data;
    context.setLineDash([1, 3]);
    context.beginPath();
    context.moveTo(MARGIN.left, y(baseline));
    context.lineTo(width - MARGIN.right, y(baseline));
    context.stroke();
  }
  context.lineWidth = 1.5;
  for (const { updates, values, index } of lines) {
    context.strokeStyle = palette.runs[index];
    context.setLineDash(DASHES[index]);
    context.beginPath();
    trace(updates, values, x, y, context);
    context.stroke();
  }
  context.setLineDash([]);
  context.strokeStyle = palette.samples;
  context.beginPath();
  context.moveTo(x(update), MARGIN.top);
  context.lineTo(x(update), height - MARGIN.bottom);
  context.stroke();
}

/** A polyline that skips values that are not finite. Of many values on one pixel, it draws the lowest, the highest and the last. */
function trace(updates, values, x, y, context) {
  let column = null, low, high, last;
  const flush = () => {
    if (column !== null && low !== high) for (const value of [low, high, last]) context.lineTo(column, y(value));
  };
  for (let i = 0; i < updates.length; i++) {
    const value = values[i], left = Math.round(x(updates[i]));
    if (!Number.isFinite(value)) {
      flush();
      column = null;
    } else if (left === column) {
      [low, high, last] = [Math.min(low, value), Math.max(high, value), value];
    } else {
      flush();
      if (column === null) context.moveTo(left - 0.5, y(value)); // a single value is a dot
      context.lineTo(left, y(value));
      column = left;
      low = high = last = value;
    }
  }
  flush();
}

/** The lowest and the highest value, with a margin if they are equal. */
function limits(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (low > high) return [0, 1];
  return low < high ? [low, high] : [low - 0.5, high + 0.5];
}

function drawTicks(context, palette, { x, y, width, height, low, high, range }) {
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = palette.muted;
  context.strokeStyle = palette.line;
  context.lineWidth = 1;
  context.beginPath();
  context.textAlign = "right";
  for (const tick of ticks(low, high, 3)) {
    context.moveTo(MARGIN.left, y(tick));
    context.lineTo(width - MARGIN.right, y(tick));
    context.fillText(format(tick), MARGIN.left - 4, y(tick) + 4);
  }
  context.textAlign = "center";
  for (const tick of ticks(0, range, 4).filter(Number.isInteger)) {
    context.moveTo(x(tick), height - MARGIN.bottom);
    context.lineTo(x(tick), height - MARGIN.bottom + 3);
    context.fillText(tick >= 1000 ? `${tick / 1000}k` : tick, Math.min(x(tick), width - 14), height - 4);
  }
  context.stroke();
}
