// How many updates to ask a worker for at a time.

const REQUEST = 120; // milliseconds that a request should take, if frames are cheap
const PROBES = [1, 2, 3]; // updates of the first requests, to tell the time of a frame from that of updates
const DECAY = 0.85; // of the weight of a request with each later one
const MIN_SPREAD = 0.05; // of the updates per request, relative to their mean, for a new estimate

/**
 * The number of updates per request with which most of the time goes into training, and frames come often nevertheless.
 *
 * A request takes the time of a frame and that of each update; least squares over the last requests estimate both.
 */
export class Pace {
  #count = 0;
  #sums = [0, 0, 0, 0, 0]; // of the weights, updates, times, updates^2 and updates * time
  #cost = Infinity; // milliseconds per update
  updates = PROBES[0];

  /** Take the time of a request in milliseconds. */
  add(updates, time) {
    const terms = [1, updates, time, updates ** 2, updates * time];
    this.#sums = this.#sums.map((sum, i) => DECAY * sum + terms[i]);
    const [weight, ...others] = this.#sums;
    const [meanUpdates, meanTime, squares, products] = others.map((sum) => sum / weight);
    const variance = squares - meanUpdates ** 2;
    const highest = meanTime / meanUpdates;
    if (variance > (MIN_SPREAD * meanUpdates) ** 2) this.#cost = (products - meanUpdates * meanTime) / variance;
    const cost = Math.min(highest, Math.max(highest / 50, this.#cost)); // noise may hide the cost
    const frame = Math.max(0, meanTime - cost * meanUpdates);
    const fitting = Math.max(REQUEST - frame, frame) / cost;
    this.updates = PROBES[++this.#count] ?? Math.max(1, Math.floor(Math.min(fitting, 2 * this.updates)));
  }
}
