/**
 * The module worker that runs one experiment of the live lab.
 *
 * Each message gets one answer. Messages:
 *   {type: "start", settings}   a new experiment at update 0; `settings` as for `checkSettings` of catalog.js
 *   {type: "step", updates}     train for so many updates, or until the experiment is finished
 *   {type: "seek", update}      go back or forward to an update
 *   {type: "view", settings}    change parameters that have `view: true`
 *
 * Answers:
 *   {type: "frame", update, finished, samples: Float32Array(2n), data?: Float32Array(2m), curves: {name: value},
 *    field?, optimal?, arrows?, components?, kernels?, segments?}
 *   {type: "error", message}    the settings are wrong, or the experiment failed
 *
 *   data         the training points, in the frame of update 0 after "start"
 *   curves       losses and measures after this update; the names are the same in all frames but that of update 0,
 *                which has no losses. "W1 of data" is W1 between two sets of data, about what a perfect model reaches
 *   field        {name, size, values: Float32Array(size * size), low, high, diverging} over the square [-4, 4]^2, row 0
 *                at the top (y = 4), values at the centres of the cells; name: such as "D(x)" or "density"
 *   optimal      the same for D* = p / (p + q), from histograms of the data and of samples that were smoothed alike; NaN
 *                where neither has points
 *   arrows       Float32Array(4k): (x, y, dx, dy), longest 0.6: the direction in which G moves samples; the score, the
 *                velocity or the average velocity on a lattice; or the players' gradient
 *   components   [{weight, mean: [x, y], covariance: [xx, xy, yy]}]
 *   kernels      {bandwidth, centres: Float32Array(2k)}
 *   segments     Float32Array(4k): (x1, y1, x2, y2): the axes of PCA first, then points and their reconstructions; noise
 *                and the samples of flow and MeanFlow; the path of the xy-game
 * All coordinates are in the plane of the page, -4 to 4.
 */

import { Experiment } from "./experiment.js";

let experiment = null;

/** Each acts on a message, and returns what its frame has besides what all frames have. */
const HANDLERS = {
  start({ settings }) {
    experiment = null;
    experiment = new Experiment(settings);
    return experiment.hasData ? { data: experiment.points.slice() } : {};
  },
  step({ updates }) {
    train(experiment.update + updates);
  },
  seek({ update }) {
    experiment.rewind(update);
    train(update);
  },
  view({ settings }) {
    experiment.view(settings);
  },
};

function train(target) {
  while (experiment.update < target && !experiment.finished) experiment.step();
}

self.onmessage = ({ data: message }) => {
  try {
    if (!Object.hasOwn(HANDLERS, message.type)) {
      throw new Error(`unknown message "${message.type}"; known are ${Object.keys(HANDLERS).join(", ")}`);
    }
    if (!experiment && message.type !== "start") throw new Error("no experiment has started");
    const extra = HANDLERS[message.type](message);
    const frame = { type: "frame", ...experiment.frame(), ...extra };
    self.postMessage(frame, buffersOf(frame));
  } catch (error) {
    self.postMessage({ type: "error", message: error.message });
  }
};

/** The buffers of all arrays in a message, which are moved to the page instead of copied. */
function buffersOf(value) {
  if (ArrayBuffer.isView(value)) return [value.buffer];
  return value && typeof value === "object" ? Object.values(value).flatMap(buffersOf) : [];
}
