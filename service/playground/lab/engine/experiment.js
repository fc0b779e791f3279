/** One experiment: a model on a data set, its measures, and the states that it can go back to. */

import { checkSettings, find, MODELS } from "./catalog.js";
import * as measures from "./measures.js";
import { Ae, Vae } from "./models/autoencoders.js";
import { Ddpm, Flow, MeanFlow } from "./models/denoisers.js";
import { ClassifierGan, PacGan2, RelativisticGan, WganGp } from "./models/gans.js";
import { Kde } from "./models/kde.js";
import { Gaussian, Gmm } from "./models/mixture.js";
import { Pca } from "./models/pca.js";
import { XyGame } from "./models/xy_game.js";
import * as shapes from "./shapes.js";

const KINDS = {
  gaussian: Gaussian, kde: Kde, gmm: Gmm, pca: Pca, ae: Ae, vae: Vae, gan: ClassifierGan, pacgan2: PacGan2,
  wgan_gp: WganGp, r1_r2: RelativisticGan, ddpm: Ddpm, flow: Flow, meanflow: MeanFlow,
  xy_game: XyGame,
};

/** First indices of points that training does not use. */
const REFERENCE = 2 ** 20, ANSWER = 2 ** 21;
const REFERENCE_COUNT = 200, ANSWER_COUNT = 20000;
/** Samples that W1 is measured on; JS and modes use COMPARED, the same number for every model. */
const MATCHED = 200, COMPARED = 400;
const MAX_STATES = 64;
const PLAIN_SAMPLES = 1000;

export class Experiment {
  /** Throws Error with one line if the settings are wrong. */
  constructor(settings) {
    this.settings = checkSettings(settings);
    const kind = KINDS[this.settings.model];
    this.hasData = find(MODELS, "model", this.settings.model).needsData ?? true;
    this.sampleCount = kind.sampleCount ?? PLAIN_SAMPLES;
    if (this.hasData) {
      const count = this.settings.count ?? this.settings.points.length;
      this.points = shapes.points(this.settings, 0, count);
      this.reference = shapes.points(this.settings, REFERENCE, REFERENCE_COUNT);
      this.answer = shapes.points(this.settings, ANSWER, ANSWER_COUNT);
      this.centres = shapes.centres(this.settings);
      this.realDistance = measures.wasserstein1(this.reference, shapes.points(this.settings, ANSWER, MATCHED));
    }
    this.model = new kind({ ...this.settings }, this.points);
    this.update = 0;
    this.states = new Map([[0, this.model.state()]]);
    this.interval = 1;
  }

  get finished() {
    return this.model.finished;
  }

  /** Train for one update. Throws Error if training diverges. */
  step() {
    this.model.update();
    this.update++;
    if (this.update % this.interval === 0 && !this.states.has(this.update)) this.keepState();
  }

  /** Keep the state of this update; if there are too many, keep every second only. */
  keepState() {
    this.states.set(this.update, this.model.state());
    if (this.states.size <= MAX_STATES) return;
    this.interval *= 2;
    for (const update of this.states.keys()) if (update % this.interval) this.states.delete(update);
  }

  /** Go to the last state at or before `update` if that is nearer; the rest is left to `step`. */
  rewind(update) {
    const last = Math.max(...[...this.states.keys()].filter((kept) => kept <= update));
    if (this.update <= update && this.update >= last) return;
    this.model.restore(this.states.get(last));
    this.update = last;
  }

  /** Change parameters that do not affect training. Throws Error if one does, or is wrong. */
  view(settings) {
    const { parameters } = find(MODELS, "model", this.settings.model);
    const fixed = Object.keys(settings).find((name) => !parameters.find((each) => each.name === name)?.view);
    if (fixed) throw new Error(`${fixed} cannot change during an experiment; start a new one`);
    this.settings = checkSettings({ ...this.settings, ...settings });
    this.model.view?.(settings);
  }

  /** What the page shows of this update. */
  frame() {
    const samples = this.model.sample(this.sampleCount), curves = { ...this.model.curves(this.reference) };
    if (this.hasData) Object.assign(curves, this.measure(samples));
    const { update, finished } = this, frame = { update, finished, samples, curves, ...this.model.layers() };
    if (this.settings.model === "gan" && this.settings.data !== "drawn") {
      this.smoothedAnswer ??= measures.smoothed(this.answer);
      frame.optimal = measures.optimalField(this.smoothedAnswer, measures.smoothed(samples));
    }
    return frame;
  }

  /** Distances between samples and data: W1 of MATCHED points each, in units of the plane; others of COMPARED samples. */
  measure(samples) {
    const compared = samples.subarray(0, 2 * COMPARED);
    const values = {
      W1: measures.wasserstein1(samples.subarray(0, 2 * MATCHED), this.reference), "W1 of data": this.realDistance,
      JS: measures.jensenShannon(this.answer, compared),
    };
    if (!this.centres) return values;
    const { modes, good } = measures.modesFound(compared, this.centres, this.settings.deviation);
    return { ...values, modes, "good samples": good };
  }
}
