/** The auto-encoders of models/families/ae.py and vae.py for points, with the priors of models/prior.py. */

import { PLANE } from "../catalog.js";
import { segments } from "../measures.js";
import { Adam, Mlp, hiddenWidths } from "../nets.js";
import {
  add, columns, constant, exp, mean, reduce, scale, shift, sigmoid, softplus, square, subtract, tanh, times,
} from "../tensor.js";
import { Em } from "./mixture.js";
import { Trained, fromPlane, toPlane } from "./trained.js";

const COMPONENTS = 40, CODES = 1000, ITERATIONS = 10;
const SHOWN = 200;

class Autoencoder extends Trained {
  static sampleCount = 1000;

  constructor(settings, points, outputs) {
    super(settings, points);
    const widths = hiddenWidths(settings.hidden), { latent, seed } = settings;
    this.nets = [new Mlp([2, ...widths, outputs], seed, 0), new Mlp([latent, ...widths, 2], seed, 1)];
    const both = { parameters: this.nets.flatMap((net) => net.parameters) };
    this.optimizers = [new Adam(both)];
    [this.encoder, this.decoder] = this.averaged(...this.nets);
  }

  /** Codes [count * latent] of samples: from N(0, I), or from a mixture fitted to codes of the data. */
  sampleCodes(count) {
    const { latent, prior, seed } = this.settings;
    if (prior === "standard") return this.noise.rows(0, count, latent);
    const x = this.points.subarray(0, 2 * CODES), components = Math.min(COMPONENTS, x.length / 2);
    const codes = this.evaluate(() => this.codes(fromPlane(x)).data.slice());
    const em = new Em(codes, latent, components, { prior: 0.05, seed });
    for (let k = 1, before = -Infinity; k < ITERATIONS && em.objective - before >= 1e-4; k++) {
      before = em.objective;
      em.iterate();
    }
    return Float32Array.from(Array.from({ length: count }, (_, k) => em.mixture.sample(this.noise, k)).flat());
  }

  sample(count) {
    const z = constant(count, this.settings.latent, this.sampleCodes(count));
    return this.evaluate(() => toPlane(this.sampleData(z)));
  }

  /** Lines from points to their reconstructions. */
  layers() {
    const points = this.points.subarray(0, 2 * SHOWN);
    return { segments: segments(points, this.evaluate(() => toPlane(this.reconstruct(fromPlane(points))))) };
  }
}

export class Ae extends Autoencoder {
  constructor(settings, points) {
    super(settings, points, settings.latent);
  }

  train(lr) {
    const x = this.batches.get(this.done), [encoder, decoder] = this.nets;
    const loss = squaredError(x, tanh(decoder.forward(encoder.forward(x))));
    this.optimizers[0].minimise(loss, lr);
    this.terms = { loss: loss.value };
  }

  codes(x) {
    return this.encoder.forward(x);
  }

  sampleData(z) {
    return tanh(this.decoder.forward(z));
  }

  reconstruct(x) {
    return this.sampleData(this.codes(x));
  }
}

/** |x - y|^2 summed over coordinates, averaged over points. */
const squaredError = (x, y) => mean(reduce(square(subtract(x, y)), x.rows, 1));

export class Vae extends Autoencoder {
  constructor(settings, points) {
    super(settings, points, 2 * settings.latent);
    this.sigma = settings.sigma / PLANE;
  }

  train(lr) {
    const x = this.batches.get(this.done), [encoder, decoder] = this.nets;
    const { mu, logVariance } = this.posterior(encoder, x);
    const { reconstruction, kl } = this.bound(decoder, x, mu, logVariance, this.randn(mu.rows, mu.columns));
    const loss = add(reconstruction, scale(kl, this.settings.beta));
    this.optimizers[0].minimise(loss, lr);
    this.terms = { loss: loss.value, reconstruction: reconstruction.value, KL: kl.value };
  }

  posterior(encoder, x) {
    const out = encoder.forward(x), { latent } = this.settings;
    return { mu: columns(out, 0, latent), logVariance: columns(out, latent, 2 * latent) };
  }

  /** -log p(x|z) and the KL term in nats, averaged over points. */
  bound(decoder, x, mu, logVariance, eps) {
    const output = decoder.forward(add(mu, times(eps, exp(scale(logVariance, 0.5)))));
    const kl = mean(reduce(scale(subtract(shift(add(square(mu), exp(logVariance)), -1), logVariance), 0.5), mu.rows, 1));
    if (this.settings.likelihood === "gaussian") {
      const norm = Math.log(2 * Math.PI * this.sigma ** 2);
      return { reconstruction: shift(scale(squaredError(x, tanh(output)), 1 / (2 * this.sigma ** 2)), norm), kl };
    }
    const target = scale(shift(x, 1), 0.5);
    return { reconstruction: mean(reduce(subtract(softplus(output), times(output, target)), x.rows, 1)), kl };
  }

  codes(x) {
    const { mu, logVariance } = this.posterior(this.encoder, x);
    const eps = constant(mu.rows, mu.columns, this.noise.rows(0, mu.rows, mu.columns, 2));
    return add(mu, times(eps, exp(scale(logVariance, 0.5))));
  }

  /** The mean of p(x|z), as the family; of the Gaussian a sample, because its deviation is a setting. */
  sampleData(z) {
    const x = this.decodedMean(z);
    if (this.settings.likelihood === "bernoulli") return x;
    return add(x, scale(constant(x.rows, 2, this.noise.rows(0, x.rows, 2, 1)), this.sigma));
  }

  decodedMean(z) {
    const output = this.decoder.forward(z);
    return this.settings.likelihood === "gaussian" ? tanh(output) : shift(scale(sigmoid(output), 2), -1);
  }

  reconstruct(x) {
    return this.decodedMean(this.posterior(this.encoder, x).mu);
  }

  curves(reference) {
    if (this.settings.likelihood !== "gaussian") return this.terms;
    const bound = this.evaluate(() => {
      const x = fromPlane(reference), { mu, logVariance } = this.posterior(this.encoder, x);
      const eps = constant(mu.rows, mu.columns, this.noise.rows(0, mu.rows, mu.columns, 3));
      const { reconstruction, kl } = this.bound(this.decoder, x, mu, logVariance, eps);
      return -reconstruction.value - kl.value;
    });
    return { ...this.terms, "log-likelihood, lower bound": bound - 2 * Math.log(PLANE) };
  }
}
