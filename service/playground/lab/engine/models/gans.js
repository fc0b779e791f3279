/**
 * The GANs of models/families/gan.py, wgan_gp.py and dcgan.py, and PacGAN2 of training/lab, for points. Every
 * discriminator sees the points MAGNIFIED, as in training/lab/plane.py.
 */

import { SIZE, arrows, lattice } from "../measures.js";
import { Adam, Mlp, hiddenWidths } from "../nets.js";
import {
  add, constant, detach, gradients, logistic, mean, reduce, reshape, scale, scope, shift, softplus, sqrt, square,
  subtract, sum, tanh, times,
} from "../tensor.js";
import { Trained, fromPlane, toPlane } from "./trained.js";

const MAGNIFIED = 6;
const SHARPNESS = 300;
const ARROWS = 100;

/** |grad critic|^2 of each row at the rows of x, differentiable: [n, 1]. */
function squaredGradient(critic, x) {
  const at = detach(x), [slope] = gradients(sum(critic(at)), [at], true);
  return reduce(square(slope), x.rows, 1);
}

/** G, D and their training. Subclasses define `discriminatorTerms` and `generatorLoss`. */
class Gan extends Trained {
  static sampleCount = 1000;

  constructor(settings, points, { pack = 1, pace = 1, steps = settings.discriminator_steps } = {}) {
    super(settings, points);
    const { hidden, latent, groups = 0, momentum, seed } = settings, widths = hiddenWidths(hidden);
    this.steps = steps;
    this.pace = pace;
    this.pack = pack;
    this.width = latent + groups;
    this.generator = new Mlp([this.width, ...widths, 2], seed, 0);
    this.discriminator = new Mlp([2 * pack, ...widths.reverse(), 1], seed, 1);
    this.optimizers = [this.generator, this.discriminator].map((net) => new Adam(net, momentum));
    [this.sampler] = this.averaged(this.generator);
  }

  get batchesPerUpdate() {
    return this.steps;
  }

  /** Some updates of D, each on a fresh batch, then one of G. */
  train(lr) {
    const { batch } = this.settings, [ofGenerator, ofDiscriminator] = this.optimizers;
    let x, terms;
    for (let k = 0; k < this.steps; k++) {
      x = this.batches.get(this.done * this.steps + k);
      terms = this.discriminatorTerms(x, detach(this.generate(this.generator, this.randn(batch, this.width))));
      ofDiscriminator.minimise(terms["loss of D"], this.pace * lr);
    }
    const loss = this.generatorLoss(x, this.generate(this.generator, this.randn(batch, this.width)));
    ofGenerator.minimise(loss, lr);
    this.terms = { "loss of G": loss.value };
    for (const [name, term] of Object.entries(terms)) this.terms[name] = term.value;
  }

  /** G(z) in [-1, 1] for z [B, width]; the leading dimensions choose a group, if there are any. */
  generate(net, z) {
    return tanh(net.forward(this.settings.groups ? grouped(z, this.settings.groups) : z));
  }

  /** The outputs of D for x [B, 2]: [B / pack, 1]. */
  judge(x) {
    return this.discriminator.forward(reshape(scale(x, MAGNIFIED), x.rows / this.pack, 2 * this.pack));
  }

  sample(count) {
    const z = constant(count, this.width, this.noise.rows(0, count, this.width));
    return this.evaluate(() => toPlane(this.generate(this.sampler, z)));
  }

  /** D's field, and the direction in which G's loss falls at the first samples. */
  layers() {
    const points = this.sample(ARROWS);
    const slopes = scope(() => {
      const x = fromPlane(points), { data } = fromPlane(this.points.subarray(0, 2 * ARROWS));
      const repeated = Float32Array.from({ length: 2 * ARROWS }, (_, k) => data[k % data.length]);
      const real = constant(ARROWS, 2, repeated);
      return gradients(this.generatorLoss(real, x), [x])[0].data.slice();
    });
    return { field: this.field(), arrows: arrows(points, slopes.map((value) => -value)) };
  }

  /** D(x) without bounds: coloured around its mean, because only differences matter. */
  field() {
    const values = this.evaluate(() => this.judge(fromPlane(lattice(SIZE))).data.slice());
    const middle = values.reduce((total, value) => total + value, 0) / values.length;
    const reach = values.reduce((most, value) => Math.max(most, Math.abs(value - middle)), 0);
    return { name: this.fieldName, size: SIZE, values, low: middle - reach, high: middle + reach, diverging: true };
  }
}

/** Replace the first `groups` columns by sqrt(groups) times their steep softmax (GroupedGAN of models/adversarial.py). */
function grouped(z, groups) {
  const data = z.data.slice(), factor = Math.sqrt(groups);
  for (let row = 0; row < z.rows; row++) {
    const part = data.subarray(row * z.columns, row * z.columns + groups), most = Math.max(...part);
    part.forEach((value, k) => (part[k] = Math.exp(SHARPNESS * (value - most))));
    const total = part.reduce((whole, value) => whole + value, 0);
    part.forEach((value, k) => (part[k] = (factor * value) / total));
  }
  return constant(z.rows, z.columns, data);
}

/** The lecture's GAN: D is a classifier, and G's objective non-saturating or minimax. */
export class ClassifierGan extends Gan {
  constructor(settings, points, options) {
    super(settings, points, options);
    this.fieldName = "D(x)";
  }

  discriminatorTerms(x, generated) {
    const real = this.judge(x), fake = this.judge(generated);
    return {
      "loss of D": add(mean(softplus(scale(real, -1))), mean(softplus(fake))),
      "D(x)": meanLogistic(real), "D(G(z))": meanLogistic(fake),
    };
  }

  generatorLoss(_, generated) {
    const logits = this.judge(generated);
    if (this.settings.loss === "minimax") return scale(mean(softplus(logits)), -1);
    return mean(softplus(scale(logits, -1)));
  }

  field() {
    const values = this.evaluate(() => Float32Array.from(this.judge(fromPlane(lattice(SIZE))).data, logistic));
    return { name: "D(x)", size: SIZE, values, low: 0, high: 1, diverging: true };
  }
}

function meanLogistic(logits) {
  return { value: logits.data.reduce((total, value) => total + logistic(value), 0) / logits.data.length };
}

/** D classifies pairs (Lin et al. 2018). The field is the mean of D(x, y) over some data points y. */
export class PacGan2 extends ClassifierGan {
  static PARTNERS = 4;

  constructor(settings, points) {
    super(settings, points, { pack: 2 });
  }

  field() {
    const { PARTNERS } = PacGan2, places = lattice(SIZE), values = new Float32Array(SIZE * SIZE);
    for (let partner = 0; partner < PARTNERS; partner++) {
      const y = this.points.subarray(2 * partner, 2 * partner + 2), pairs = new Float32Array(2 * places.length);
      for (let k = 0; k < values.length; k++) pairs.set([places[2 * k], places[2 * k + 1], ...y], 4 * k);
      const logits = this.evaluate(() => this.judge(fromPlane(pairs)).data.slice());
      logits.forEach((value, k) => (values[k] += logistic(value) / PARTNERS));
    }
    return { name: "D(x, y), mean over data points y", size: SIZE, values, low: 0, high: 1, diverging: true };
  }
}

/** A critic with gradient penalty. */
export class WganGp extends Gan {
  constructor(settings, points) {
    super(settings, points, { steps: settings.critic_steps });
    this.fieldName = "C(x)";
  }

  discriminatorTerms(x, generated) {
    const w1 = subtract(mean(this.judge(x)), mean(this.judge(generated)));
    const share = constant(x.rows, 1, Float32Array.from(this.rand(x.rows)));
    const between = add(generated, times(subtract(x, generated), share));
    // The derivative of the square root is infinite at 0.
    const norm = sqrt(shift(squaredGradient((at) => this.judge(at), between), 1e-12));
    const penalty = mean(square(shift(norm, -1)));
    return { "loss of D": subtract(scale(penalty, this.settings.penalty), w1), "critic's W1": w1, penalty };
  }

  generatorLoss(_, generated) {
    return scale(mean(this.judge(generated)), -1);
  }
}

/** The relativistic game with R1 and R2. */
export class RelativisticGan extends Gan {
  constructor(settings, points) {
    super(settings, points, { pace: settings.discriminator_pace, steps: 1 });
    this.fieldName = "D(x), only differences matter";
  }

  discriminatorTerms(x, generated) {
    const margin = subtract(this.judge(x), this.judge(generated)), game = mean(softplus(scale(margin, -1)));
    const [r1, r2] = [x, generated].map((side) => mean(squaredGradient((at) => this.judge(at), side)));
    const loss = add(game, scale(add(r1, r2), this.settings.gamma / 2));
    return { "loss of D": loss, game, margin: mean(margin), R1: r1, R2: r2 };
  }

  generatorLoss(x, generated) {
    return mean(softplus(subtract(this.judge(x), this.judge(generated))));
  }
}
