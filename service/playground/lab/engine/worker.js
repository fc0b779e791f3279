/**
 * The module worker that runs one experiment of the live lab.
 *
 * Messages from the page:
 *   {type: "start", id, settings}     a new experiment at update 0; `settings` as for `checkSettings` of catalog.js
 *   {type: "run", updatesPerFrame}    train and post a frame after each `updatesPerFrame` updates, at most 30 a second,
 *                                     until paused or finished
 *   {type: "pause"}
 *   {type: "step", updates}           train for so many updates, then post a frame; pauses
 *   {type: "seek", update}            go back or forward to an update, then post a frame with `history`; pauses
 *   {type: "view", settings}          change parameters that have `view: true`; posts a frame, and forgets `history`
 *
 * Messages to the page:
 *   {type: "frame", id, update, finished, samples: Float32Array(2n), data?: Float32Array(2m), curves: {name: value},
 *    history?, field?, optimal?, arrows?, components?, kernels?, segments?}
 *   {type: "error", id, message}      the settings are wrong, or the experiment failed; nothing runs any more
 *
 *   data         the training points, in the frame of update 0 after "start"
 *   curves       losses and measures after this update; the names are the same in all frames but that of update 0,
 *                which has no losses. "W1 of data" is W1 between two sets of data, about what a perfect model reaches
 *   history      {updates: Float32Array, [name]: Float32Array} of all updates that frames measured, in their order; NaN
 *                where there was no value
 *   field        {name, size, values: Float32Array(size * size), low, high, diverging} over the square [-4, 4]^2, row 0
 *                at the top (y = 4), values at the centres of the cells; name: such as "D(x)" or "density"
 *   optimal      the same for D* = p / (p + q), from histograms of the data and of samples that were smoothed alike; NaN
 *                where neither has points
 *   arrows       Float32Array(4k): (x, y, dx, dy), longest 0.6: the direction in which G moves samples, the score or the
 *                velocity on a lattice, or the players' gradient
 *   components   [{weight, mean: [x, y], covariance: [xx, xy, yy]}]
 *   kernels      {bandwidth, centres: Float32Array(2k)}
 *   segments     Float32Array(4k): (x1, y1, x2, y2): the axes of PCA first, then points and their reconstructions; the
 *                path of the xy-game
 * All coordinates are in the plane of the page, -4 to 4.
 */

import { Experiment } from "./experiment.js";

/** Milliseconds between frames, and of work between two looks at the messages. */
const FRAME = 33, SLICE = 25;

let id = null;
let experiment = null;
/** What to work towards: {target, perFrame (of "run"), history}; null while paused. */
let goal = null;
let working = false;
let postedAt = -Infinity;

const channel = new MessageChannel();
let wake = null;
channel.port1.onmessage = () => wake();

/** Let waiting messages in; after `milliseconds` at the earliest. */
const nextTask = (milliseconds) =>
  new Promise((resolve) => {
    wake = resolve;
    if (milliseconds > 0) setTimeout(resolve, milliseconds);
    else channel.port2.postMessage(null);
  });

const HANDLERS = {
  start(message) {
    goal = experiment = null;
    id = message.id;
    experiment = new Experiment(message.settings);
    post(experiment.hasData ? { data: experiment.points.slice() } : {});
  },
  run({ updatesPerFrame = 1 }) {
    const perFrame = Math.max(1, Math.floor(updatesPerFrame));
    goal = { target: experiment.update + perFrame, perFrame };
  },
  pause() {
    goal = null;
  },
  step({ updates = 1 }) {
    goal = { target: experiment.update + Math.max(1, Math.floor(updates)) };
  },
  seek({ update }) {
    const target = Math.max(0, Math.floor(update));
    experiment.rewind(target);
    goal = { target, history: true };
  },
  view({ settings }) {
    experiment.view(settings);
    post({});
  },
};

self.onmessage = ({ data: message }) => attempt(() => {
  const handler = Object.hasOwn(HANDLERS, message.type) && HANDLERS[message.type];
  if (!handler) throw new Error(`unknown message "${message.type}"; known are ${Object.keys(HANDLERS).join(", ")}`);
  if (!experiment && message.type !== "start") return; // the start failed, and the page has the error message
  handler(message);
  if (goal && !working) work();
});

/** Work in slices until there is no goal, so that a message waits for one slice and one frame at most. */
async function work() {
  working = true;
  while (goal) {
    attempt(advance);
    const early = goal && reached() ? FRAME - (performance.now() - postedAt) : 0;
    await nextTask(early);
    attempt(deliver);
  }
  working = false;
}

const reached = () => experiment.finished || experiment.update >= goal.target;

function advance() {
  const end = performance.now() + SLICE;
  while (!reached() && performance.now() < end) experiment.step();
}

/** Post the frame of a reached goal; of "run", the next goal is a frame later. */
function deliver() {
  if (!goal || !reached()) return;
  const { perFrame, history } = goal;
  goal = perFrame && !experiment.finished ? { target: experiment.update + perFrame, perFrame } : null;
  post({ history });
}

function post({ history, ...rest }) {
  const frame = { type: "frame", id, ...experiment.frame(), ...rest };
  if (history) frame.history = experiment.historyTable();
  postedAt = performance.now();
  self.postMessage(frame, buffersOf(frame));
}

/** The buffers of all arrays in a message, which are moved to the page instead of copied. */
function buffersOf(value) {
  if (ArrayBuffer.isView(value)) return [value.buffer];
  return value && typeof value === "object" ? Object.values(value).flatMap(buffersOf) : [];
}

/** Tell the page of an error, and stop. */
function attempt(body) {
  try {
    body();
  } catch (error) {
    goal = null;
    if (!(error instanceof Error)) throw error;
    self.postMessage({ type: "error", id, message: error.message });
  }
}
