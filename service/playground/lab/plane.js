// Draws a frame of an experiment on the plane, layer by layer.

import { between, colours } from "./colours.js";
import { prepare } from "./surface.js";

const SIDE = 4; // the plane is [-SIDE, SIDE]^2
const TICKS = [-2, 0, 2];
const MAX_KERNELS = 150; // that are drawn; more would cover each other
const LEVELS = [0.1, 0.3, 0.5, 0.7, 0.9]; // of the lines of D*

/** The layers, in the order in which they are drawn. */
export const LAYERS = ["field", "optimal", "data", "kernels", "segments", "samples", "components", "arrows"];

/** Draw what `frame` has of the layers in the set `shown`, the data points, and the pen's cross, if there is one. */
export function drawPlane(canvas, { frame, data, shown, cross }) {
  const { context, width } = prepare(canvas);
  const palette = colours();
  const scale = width / (2 * SIDE);
  const view = { context, palette, width, scale, x: (value) => (value + SIDE) * scale, y: (value) => (SIDE - value) * scale };
  const isShown = (name) => shown.has(name) && frame?.[name];
  context.fillStyle = `rgb(${palette.paper.join()})`;
  context.fillRect(0, 0, width, width);
  const map = isShown("field") ? frame.field : isShown("optimal") ? frame.optimal : null;
  if (map) drawMap(view, map);
  drawAxes(view);
  if (isShown("field") && isShown("optimal")) drawLines(view, frame.optimal);
  if (shown.has("data") && data) drawPoints(view, data, palette.data, 1.6, 0.55);
  if (isShown("kernels")) drawKernels(view, frame.kernels);
  if (isShown("segments")) drawSegments(view, frame.segments);
  if (isShown("samples")) drawPoints(view, frame.samples, palette.samples, 2, 0.8);
  if (isShown("components")) drawComponents(view, frame.components);
  if (isShown("arrows")) drawArrows(view, frame.arrows);
  if (cross) drawCross(view, cross);
}

const image = document.createElement("canvas"); // of one field at a time

/** A field as a heat map: orange to blue around the middle of its range, or the paper to green. */
function drawMap({ context, palette, width }, { size, values, low, high, diverging = true }) {
  Object.assign(image, { width: size, height: size });
  const pen = image.getContext("2d");
  const pixels = pen.createImageData(size, size);
  const range = high - low || 1;
  for (let i = 0; i < values.length; i++) {
    if (Number.isNaN(values[i])) continue; // nothing is known there
    const share = Math.min(1, Math.max(0, (values[i] - low) / range));
    const colour = !diverging ? between(palette.paper, palette.dense, share)
      : share < 0.5 ? between(palette.low, palette.paper, 2 * share) : between(palette.paper, palette.high, 2 * share - 1);
    pixels.data.set([...colour, 255], 4 * i);
  }
  pen.putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = true;
  context.drawImage(image, 0, 0, width, width);
}

function drawAxes({ context, palette, width, x, y }) {
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = palette.muted;
  context.strokeStyle = palette.line;
  context.lineWidth = 1;
  context.beginPath();
  for (const tick of TICKS) {
    context.moveTo(x(tick), 0);
    context.lineTo(x(tick), width);
    context.moveTo(0, y(tick));
    context.lineTo(width, y(tick));
    context.fillText(String(tick).replace("-", "−"), x(tick) + 3, width - 4);
    if (tick) context.fillText(String(tick).replace("-", "−"), 3, y(tick) - 3);
  }
  context.globalAlpha = 0.6;
  context.stroke();
  context.globalAlpha = 1;
}

/** The lines on which a field has the LEVELS between its lowest and its highest value, by marching squares. */
function drawLines({ context, palette, width }, { size, values, low, high }) {
  const cell = width / size;
  context.strokeStyle = palette.ink;
  for (const share of LEVELS) {
    const level = low + share * (high - low);
    context.lineWidth = share === 0.5 ? 1.6 : 0.8;
    context.beginPath();
    for (let row = 0; row + 1 < size; row++) {
      for (let column = 0; column + 1 < size; column++) {
        const crossings = edgeCrossings(values, size, row, column, level);
        for (let i = 0; i + 1 < crossings.length; i += 2) {
          context.moveTo((crossings[i][0] + 0.5) * cell, (crossings[i][1] + 0.5) * cell);
          context.lineTo((crossings[i + 1][0] + 0.5) * cell, (crossings[i + 1][1] + 0.5) * cell);
        }
      }
    }
    context.stroke();
  }
}

/** Where `level` crosses the edges of the square of four values at (row, column), in order around it: 0, 2 or 4 points. */
function edgeCrossings(values, size, row, column, level) {
  const corners = [[column, row], [column + 1, row], [column + 1, row + 1], [column, row + 1]];
  const crossings = [];
  let [before, height] = [corners[3], values[corners[3][1] * size + corners[3][0]] - level];
  for (const corner of corners) {
    const next = values[corner[1] * size + corner[0]] - level;
    if (Number.isNaN(height + next)) return [];
    if (height < 0 !== next < 0) crossings.push(between(before, corner, height / (height - next)));
    [before, height] = [corner, next];
  }
  return crossings;
}

function drawPoints({ context, x, y }, points, colour, radius, opacity) {
  context.fillStyle = colour;
  context.globalAlpha = opacity;
  context.beginPath();
  for (let i = 0; i < points.length; i += 2) {
    const [left, top] = [x(points[i]), y(points[i + 1])];
    context.moveTo(left + radius, top);
    context.arc(left, top, radius, 0, 2 * Math.PI);
  }
  context.fill();
  context.globalAlpha = 1;
}

function drawKernels({ context, palette, scale, x, y }, { bandwidth, centres }) {
  context.strokeStyle = palette.shapes;
  context.globalAlpha = 0.35;
  context.lineWidth = 1;
  context.beginPath();
  for (let i = 0; i < Math.min(centres.length, 2 * MAX_KERNELS); i += 2) {
    context.moveTo(x(centres[i]) + bandwidth * scale, y(centres[i + 1]));
    context.arc(x(centres[i]), y(centres[i + 1]), bandwidth * scale, 0, 2 * Math.PI);
  }
  context.stroke();
  context.globalAlpha = 1;
}

/** Each component as ellipses of one and two standard deviations, the heavier the thicker. */
function drawComponents({ context, palette, scale, x, y }, components) {
  context.strokeStyle = palette.shapes;
  for (const { weight, mean, covariance: [a, b, c] } of components) {
    const [middle, distance] = [(a + c) / 2, Math.hypot((a - c) / 2, b)];
    const radii = [middle + distance, middle - distance].map((variance) => Math.sqrt(Math.max(0, variance)) * scale);
    const angle = 0.5 * Math.atan2(2 * b, a - c);
    for (const deviations of [1, 2]) {
      context.lineWidth = (deviations === 1 ? 1.5 : 0.75) + Math.min(3, 6 * weight) / deviations;
      context.beginPath();
      context.ellipse(x(mean[0]), y(mean[1]), deviations * radii[0], deviations * radii[1], -angle, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

function drawSegments({ context, palette, x, y }, segments) {
  context.strokeStyle = palette.shapes;
  context.globalAlpha = 0.6;
  context.lineWidth = 1;
  context.beginPath();
  for (let i = 0; i < segments.length; i += 4) {
    context.moveTo(x(segments[i]), y(segments[i + 1]));
    context.lineTo(x(segments[i + 2]), y(segments[i + 3]));
  }
  context.stroke();
  context.globalAlpha = 1;
}

function drawArrows({ context, palette, scale, x, y }, arrows) {
  context.strokeStyle = palette.arrows;
  context.globalAlpha = 0.75;
  context.lineWidth = 1;
  context.beginPath();
  for (let i = 0; i < arrows.length; i += 4) {
    const [left, top, dx, dy] = [x(arrows[i]), y(arrows[i + 1]), arrows[i + 2] * scale, -arrows[i + 3] * scale];
    const [length, angle] = [Math.hypot(dx, dy), Math.atan2(dy, dx)];
    if (length < 0.5) continue;
    context.moveTo(left, top);
    context.lineTo(left + dx, top + dy);
    const head = Math.min(5, length / 2);
    for (const side of [-1, 1]) {
      context.moveTo(left + dx, top + dy);
      context.lineTo(left + dx - head * Math.cos(angle + 0.5 * side), top + dy - head * Math.sin(angle + 0.5 * side));
    }
  }
  context.stroke();
  context.globalAlpha = 1;
}

function drawCross({ context, palette, x, y }, [left, top]) {
  context.strokeStyle = palette.ink;
  context.lineWidth = 2;
  context.beginPath();
  for (const [dx, dy] of [[8, 0], [0, 8]]) {
    context.moveTo(x(left) - dx, y(top) - dy);
    context.lineTo(x(left) + dx, y(top) + dy);
  }
  context.stroke();
}
