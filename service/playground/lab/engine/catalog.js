/**
 * The data sets and models of the live lab, their parameters, and the check of an experiment's settings.
 *
 * Lengths are in units of the page's plane, the square from -4 to 4. One unit of the Python families and of
 * `training/lab`, whose data lie in [-1, 1], is PLANE units of the page.
 *
 * A parameter is {name, title, kind, default, help}, of kind "number" with min, max, step (1: integers only; absent:
 * any number) and scale ("log" for a logarithmic control), or of kind "choice" with values. One with `view: true` does
 * not affect training: the message "view" changes it without a restart.
 */

export const PLANE = 4;
const MAX_POINTS = 20000;
export const MAX_SEED = 2 ** 32 - 1;

const number = (name, title, min, max, value, help, rest = {}) => ({
  name, title, kind: "number", min, max, default: value, help, ...rest,
});
const integer = (name, title, min, max, value, help, rest = {}) =>
  number(name, title, min, max, value, help, { step: 1, ...rest });
const choice = (name, title, values, value, help, rest = {}) => ({
  name, title, kind: "choice", values, default: value, help, ...rest,
});
const VIEW = { view: true };
const LOG = { scale: "log" };

const count = integer("count", "Points", 50, MAX_POINTS, 2000, "training points");
const deviation = (value) =>
  number("deviation", "Deviation", 0.005, 1.5, value, "standard deviation of each Gaussian", LOG);

export const DATA = [
  {
    name: "ring", title: "Ring of Gaussians",
    parameters: [count, integer("modes", "Modes", 2, 16, 8, "Gaussians on the circle"), deviation(0.028)],
  },
  { name: "grid", title: "Grid of 25 Gaussians", parameters: [count, deviation(0.035)] },
  {
    name: "moons", title: "Two moons",
    parameters: [count, number("noise", "Noise", 0, 1, 0.12, "standard deviation around the half circles")],
  },
  {
    name: "spiral", title: "Spiral",
    parameters: [count, number("noise", "Noise", 0, 1, 0.12, "standard deviation around the spiral")],
  },
  {
    name: "two_gaussians", title: "Two Gaussians",
    parameters: [
      count, number("distance", "Distance", 0, 6, 2.4, "distance between the two centres"), deviation(0.6),
    ],
  },
  { name: "drawn", title: "Drawn points", parameters: [] },
];

/** The widths of hidden layers. The families have 128-256 (GANs) or 128-128-128 for points, denoisers one layer more. */
const HIDDEN = [
  "32-32", "64-64", "128-256", "64-64-64", "128-128-128", "64-64-64-64", "128-128-128-128",
];
const hidden = (value, help) => choice("hidden", "Hidden layers", HIDDEN, value, help);
const training = (updates, lr, ema = 0) => [
  integer("updates", "Length", 100, 50000, updates, "updates after which training ends", LOG),
  number("lr", "Learning rate", 1e-5, 0.1, lr, "Adam's highest learning rate", LOG),
  choice("decay", "Learning rate over time", ["cosine", "constant"], "cosine", "half a cosine down to 0, or constant"),
  integer("ema", "Averaging", 0, 1000000, ema, "half-life of the averaged weights in points; 0: the last weights"),
  choice("batch", "Batch", [16, 32, 64, 128, 256, 512], 128, "points per update of each network"),
];
const GAN_HIDDEN = "units of G's hidden layers; the discriminator has them in reverse";
const latent = (value, max) => integer("latent", "Dimensions of z", 1, max, value, "dimensions of the code z");
const momentum = number("momentum", "Adam's first beta", 0, 0.95, 0.5, "memory of Adam's mean gradient");
const groups = integer(
  "groups", "Groups", 0, 50, 0, "dimensions of z of which the largest chooses a group of samples; 0: a continuous G"
);
const prior = choice(
  "prior", "Prior of samples", ["fitted", "standard"], "fitted", "a mixture fitted to the codes, or N(0, I)", VIEW
);
const ganLoss = choice(
  "loss", "Generator's objective", ["non_saturating", "minimax"], "non_saturating",
  "maximise log D(G(z)), or minimise log(1 - D(G(z)))"
);
const discriminatorSteps = integer(
  "discriminator_steps", "Steps of D", 1, 10, 1, "updates of the discriminator per update of G"
);
const fieldTime = (value, help) =>
  number("time", "Time of the arrows", 0, 0.98, value, help, { step: 0.02, ...VIEW });

export const MODELS = [
  { name: "gaussian", title: "Gaussian", parameters: [], shows: ["field", "components"] },
  {
    name: "kde", title: "Kernel density estimate",
    parameters: [
      number("bandwidth", "Bandwidth", 0, 2, 0, "deviation of the kernels; 0: the likeliest for held-out points"),
      number("spread", "Spread of samples", 0, 1, 0.5, "scale of the bandwidth for samples", VIEW),
    ],
    shows: ["field", "kernels"],
  },
  {
    name: "gmm", title: "Gaussian mixture by EM",
    parameters: [
      integer("components", "Components", 1, 32, 8, "number of Gaussians"),
      number("prior_strength", "Prior", 0, 1, 0.05, "keeps components from collapsing onto points; 0: none"),
    ],
    shows: ["field", "components"],
  },
  {
    name: "pca", title: "Principal components",
    parameters: [integer("code", "Dimensions of the code", 1, 2, 1, "principal components that are kept")],
    shows: ["segments"],
  },
  {
    name: "ae", title: "Auto-encoder",
    parameters: [
      latent(1, 8), hidden("64-64-64", "units of the encoder's and of the decoder's hidden layers"),
      ...training(3000, 1e-3, 50000), prior,
    ],
    shows: ["segments"],
  },
  {
    name: "vae", title: "Variational auto-encoder",
    parameters: [
      latent(2, 8), hidden("64-64-64", "units of the encoder's and of the decoder's hidden layers"),
      choice(
        "likelihood", "Likelihood", ["gaussian", "bernoulli"], "gaussian",
        "p(x|z): a Gaussian for points, or a Bernoulli as for pixels"
      ),
      number("sigma", "Deviation of p(x|z)", 0.02, 4, 0.2, "standard deviation of the Gaussian likelihood", LOG),
      number("beta", "beta", 0, 10, 1, "weight of the KL term"), ...training(3000, 1e-3, 50000), prior,
    ],
    shows: ["segments"],
  },
  {
    name: "gan", title: "GAN",
    parameters: [
      latent(2, 100), hidden("64-64", GAN_HIDDEN), ganLoss, discriminatorSteps, ...training(4000, 1e-3), momentum,
    ],
    shows: ["field", "optimal", "arrows"],
  },
  {
    name: "pacgan2", title: "PacGAN2",
    parameters: [
      latent(2, 100), hidden("64-64", GAN_HIDDEN), ganLoss, discriminatorSteps, ...training(4000, 1e-3), momentum,
    ],
    shows: ["field", "arrows"],
  },
  {
    name: "wgan_gp", title: "WGAN-GP",
    parameters: [
      latent(2, 100), groups, hidden("64-64", GAN_HIDDEN),
      number("penalty", "Penalty", 0, 100, 0.1, "lambda, the weight of the gradient penalty"),
      integer("critic_steps", "Steps of the critic", 1, 10, 3, "updates of the critic per update of G"),
      ...training(2000, 1e-3), momentum,
    ],
    shows: ["field", "arrows"],
  },
  {
    name: "r1_r2", title: "Relativistic GAN with R1 and R2",
    parameters: [
      latent(2, 100), groups, hidden("64-64", GAN_HIDDEN),
      number("gamma", "gamma", 0, 1, 1e-3, "weight of the two gradient penalties"),
      number("discriminator_pace", "Pace of D", 0.1, 10, 1, "the discriminator's learning rate over G's", LOG),
      ...training(2500, 1e-3), momentum,
    ],
    shows: ["field", "arrows"],
  },
  {
    name: "ddpm", title: "Diffusion",
    parameters: [
      hidden("64-64-64-64", "units of the denoiser's hidden layers"), ...training(4000, 3e-3, 5120),
      choice("sampler", "Sampler", ["dpm++2m", "ddim", "ddpm"], "dpm++2m", "how samples are denoised", VIEW),
      integer("steps", "Steps", 1, 200, 20, "denoising steps of a sample", VIEW),
      fieldTime(0.2, "share of the forward chain after which the score is shown"),
    ],
    shows: ["arrows"],
  },
  {
    name: "flow", title: "Rectified flow",
    parameters: [
      hidden("64-64-64-64", "units of the network's hidden layers"), ...training(4000, 3e-3, 5120),
      choice("sampler", "Sampler", ["heun", "euler"], "heun", "how the differential equation is integrated", VIEW),
      integer("steps", "Steps", 1, 200, 8, "calls of the network for a sample", VIEW),
      fieldTime(0.5, "time between noise (0) and data (1) at which the velocity is shown"),
    ],
    shows: ["arrows", "segments"],
  },
  {
    name: "meanflow", title: "MeanFlow",
    parameters: [
      hidden("64-64-64-64", "units of the hidden layers of both networks"), ...training(2000, 3e-3, 5120),
      integer("steps", "Steps", 1, 8, 1, "calls of the network for a sample", VIEW),
      fieldTime(0, "time from which the average velocity to data (1) is shown"),
    ],
    shows: ["arrows", "segments"],
  },
  {
    name: "xy_game", title: "The game V = xy", needsData: false,
    parameters: [
      choice(
        "play", "Steps", ["simultaneous", "alternating", "extragradient", "optimistic"], "simultaneous",
        "how the two players take their gradient steps"
      ),
      number("eta", "Step size", 0.001, 1, 0.1, "eta, the size of a gradient step", LOG),
      number("x", "x at the start", -4, 4, 1, "the player who minimises xy"),
      number("y", "y at the start", -4, 4, 0, "the player who maximises xy"),
      integer("updates", "Length", 10, 5000, 300, "steps after which the game ends", LOG),
    ],
    shows: ["segments", "arrows"],
  },
];

/** The entry of `list` with this name. Throws Error if there is none. */
export function find(list, what, name) {
  const entry = list.find((each) => each.name === name);
  if (!entry) throw new Error(`unknown ${what} "${name}"; known are ${list.map((each) => each.name).join(", ")}`);
  return entry;
}

/**
 * `settings` with defaults for all missing parameters: {data, model, seed, points (of data "drawn"), ...parameters}.
 * Throws Error with one line that says what is wrong and what is allowed.
 */
export function checkSettings(settings) {
  const { data = "ring", model = "gan", seed = 0, points, ...given } = settings;
  const chosen = find(MODELS, "model", model);
  const source = find(DATA, "data", data);
  const parameters = [...source.parameters, ...chosen.parameters];
  const checked = { data, model, seed: checkNumber({ name: "seed", min: 0, max: MAX_SEED, step: 1 }, seed) };
  if (data === "drawn") checked.points = checkPoints(points, chosen.needsData ?? true);
  else if (points !== undefined) throw new Error(`points belong to data "drawn"; the data is "${data}"`);
  for (const name of Object.keys(given)) {
    if (!parameters.some((parameter) => parameter.name === name)) {
      const known = parameters.map((parameter) => parameter.name).join(", ") || "none";
      throw new Error(`unknown parameter "${name}" of ${model} on ${data}; known are ${known}`);
    }
  }
  for (const parameter of parameters) {
    const value = given[parameter.name] ?? parameter.default;
    const check = parameter.kind === "choice" ? checkChoice : checkNumber;
    checked[parameter.name] = check(parameter, value);
  }
  return checked;
}

function checkNumber({ name, min, max, step }, value) {
  const valid = typeof value === "number" && value >= min && value <= max && (step !== 1 || Number.isInteger(value));
  if (!valid) {
    const kind = step === 1 ? "a whole number" : "a number";
    throw new Error(`${name} must be ${kind} from ${min} to ${max}; it is ${JSON.stringify(value)}`);
  }
  return value;
}

function checkChoice({ name, values }, value) {
  if (!values.includes(value)) {
    throw new Error(`${name} must be one of ${values.join(", ")}; it is ${JSON.stringify(value)}`);
  }
  return value;
}

function checkPoints(points, needed) {
  const least = needed ? 3 : 0;
  if (!Array.isArray(points) || points.length < least || points.length > MAX_POINTS) {
    throw new Error(`data "drawn" needs points: [[x, y], ...], from ${least} to ${MAX_POINTS}`);
  }
  const valid = (point) =>
    Array.isArray(point) && point.length === 2 && point.every((value) => Math.abs(value) <= PLANE);
  const wrong = points.find((point) => !valid(point));
  if (wrong !== undefined) {
    throw new Error(`a point must be [x, y] with numbers from ${-PLANE} to ${PLANE}; one is ${JSON.stringify(wrong)}`);
  }
  return points;
}
