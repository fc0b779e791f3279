// Experiments that each show one argument of the lecture, with two sentences of what to look for.

import { makeSetup, sameExperiments } from "./setup.js";

const PRESETS = [
  {
    name: "collapse", title: "Mode collapse, and what Wasserstein does about it", data: "ring", source: { deviation: 0.15 },
    models: [{ name: "gan", momentum: 0.9 }, { name: "wgan_gp", momentum: 0.9 }],
    hint: "The GAN’s samples crowd on few of the eight modes, and jump to others as soon as the discriminator has caught up: compare the curves of the modes found. "
      + "The critic of WGAN-GP has a slope everywhere, which spreads its samples over the whole ring.",
  },
  {
    name: "packing", title: "Mode collapse: D that sees two samples at once", data: "ring", source: { deviation: 0.15 },
    models: [{ name: "gan", momentum: 0.9 }, { name: "pacgan2", momentum: 0.9 }],
    hint: "One point alone does not tell that all samples are alike; two points do, and PacGAN’s discriminator judges pairs. "
      + "Compare the modes found with those of the same GAN without pairs.",
  },
  {
    name: "game", title: "V = xy: why gradient play may not converge", speed: "60",
    models: [{ name: "xy_game" }, { name: "xy_game", play: "extragradient" }],
    hint: "With simultaneous steps the distance to the equilibrium (0, 0) grows by √(1 + η²) per step, so the path spirals outwards however small the steps are. "
      + "Extragradient looks one step ahead, and its path spirals inwards.",
  },
  {
    name: "objective", title: "Minimax or non-saturating", data: "two_gaussians", source: { distance: 5, deviation: 0.1 },
    models: [{ name: "gan", loss: "minimax", discriminator_steps: 5 }, { name: "gan", discriminator_steps: 5 }],
    hint: "Where D(x) is near 0 (orange), log(1 − D) is flat and −log D is steep: the minimax generator gets the weakest gradient where its samples are worst. "
      + "Compare the share of good samples at equal updates; both objectives have the same optimum.",
  },
  {
    name: "flat", title: "Jensen-Shannon is flat where Wasserstein has a slope", data: "two_gaussians", source: { distance: 6, deviation: 0.05 },
    models: [{ name: "gan", discriminator_steps: 5 }, { name: "wgan_gp" }], layers: ["data", "samples", "field", "arrows"],
    hint: "Samples and data hardly overlap at first: JS begins near its ceiling, log 2 ≈ 0.69, whatever their distance, while W1 is that distance. "
      + "The discriminator is flat away from the data (orange); the critic slopes towards it from everywhere, so that every sample has a direction.",
  },
  {
    name: "optimum", title: "The discriminator approaches p/(p + q)", data: "two_gaussians", source: { distance: 2.4, deviation: 0.6 },
    models: [{ name: "gan" }], layers: ["data", "samples", "field", "optimal", "arrows"],
    hint: "The lines are those of the optimal D* = p/(p + q), at 0.1, 0.3, 0.5, 0.7 and 0.9; the colours are what D has learned so far. "
      + "As the samples cover the data, both flatten towards one half, and the loss of D rises to 2 log 2 ≈ 1.39.",
  },
  {
    name: "penalties", title: "Mode collapse: a relativistic loss with R1 and R2", data: "ring", source: { deviation: 0.15 },
    models: [{ name: "gan", momentum: 0.9 }, { name: "r1_r2" }],
    hint: "The relativistic loss compares samples with data in pairs, and the penalties keep the critic’s slope small near both. "
      + "Compare the modes found with those of the GAN, and watch whether found modes are lost again.",
  },
  {
    name: "kernel", title: "Too narrow a kernel", data: "moons", source: { count: 200 }, speed: "2",
    models: [{ name: "kde", bandwidth: 0.04 }, { name: "kde" }], layers: ["data", "field", "kernels"],
    hint: "The narrow kernels place a peak on every training point: the density is high there and almost nothing between, and the log-likelihood of other points is low. "
      + "On the right, the bandwidth is narrowed until held-out points become less likely.",
  },
  {
    name: "rigid", title: "One Gaussian is too rigid", data: "moons", speed: "2",
    models: [{ name: "gaussian" }, { name: "gmm", components: 12 }],
    hint: "The likeliest Gaussian has the mean and covariance of the data, and puts samples where there are no points. "
      + "A mixture of twelve follows both moons; compare the log-likelihoods.",
  },
  {
    name: "em", title: "EM: the likelihood never falls", data: "spiral", speed: "2",
    models: [{ name: "gmm", components: 6 }, { name: "gmm", components: 20 }],
    hint: "Each update assigns the points to components, and then moves each component to its points; the objective rises with every update, or stays. "
      + "Six components cut across the turns of the spiral, twenty follow them.",
  },
  {
    name: "manifold", title: "PCA against an auto-encoder", data: "spiral",
    models: [{ name: "pca" }, { name: "ae" }],
    hint: "With one number per point, PCA can only project onto a straight line: the segments show how far each point moves. "
      + "The auto-encoder bends its line along the spiral, so that its reconstructions come closer with every update.",
  },
  {
    name: "codes", title: "Codes need a density", data: "moons",
    models: [{ name: "ae", latent: 2, prior: "standard" }, { name: "vae", latent: 2, prior: "standard" }],
    hint: "Both decode codes from N(0, I): the auto-encoder never saw such codes, so its samples miss the data although it reconstructs well. "
      + "The VAE’s KL term trains the codes to follow N(0, I); set the prior of samples to “fitted” to see what the auto-encoder lacks.",
  },
  {
    name: "gap", title: "The VAE’s gap between its codes and the prior", data: "ring", source: { deviation: 0.15 },
    models: [{ name: "vae", sigma: 0.1, prior: "standard" }, { name: "vae", sigma: 0.1 }],
    hint: "Both panels show the same VAE, whose codes of data do not fill N(0, I): codes drawn from N(0, I) fall into the gaps, and their samples between the modes (left). "
      + "Codes from a mixture that was fitted to the codes of data lead to the modes (right).",
  },
  {
    name: "score", title: "Diffusion: the score at two noise levels", data: "ring", source: { deviation: 0.1 },
    models: [{ name: "ddpm", time: 0.1 }, { name: "ddpm", time: 0.6 }],
    hint: "With little noise (left), the score points to the nearest mode; with much noise (right), it points to the middle of all. "
      + "Samples follow it from right to left, and so settle first for the ring and then for a mode.",
  },
  {
    name: "flow", title: "Flow: noise to data along a velocity field", data: "moons",
    models: [{ name: "flow", sampler: "euler", steps: 2 }, { name: "flow" }], layers: ["data", "samples", "arrows"],
    hint: "The arrows are the learned velocity half-way between noise and data; samples are carried along it. "
      + "Two Euler steps (left) leave the curved paths, and blur the moons that eight calls of Heun’s method (right) draw sharply.",
  },
  {
    name: "one_step", title: "MeanFlow: one step in place of many", data: "ring", source: { deviation: 0.15 },
    models: [{ name: "flow", sampler: "euler", steps: 1, time: 0, updates: 2000 }, { name: "meanflow" }],
    layers: ["data", "samples", "segments"],
    hint: "Both take one step from noise to samples, along the lines: flow’s leads all noise to the middle, and MeanFlow’s leads it onto the ring. "
      + "At the start, flow’s velocity points to the mean of the data; MeanFlow learns the average velocity of the whole path, which points to the path’s end.",
  },
];

/** The presets as {name, title, hint, setup}. */
export const presets = PRESETS.map(({ name, title, hint, ...parts }) => ({ name, title, hint, setup: makeSetup(parts) }));

/** The preset whose experiments a setup has, or undefined. */
export const presetOf = (setup) => presets.find((preset) => sameExperiments(preset.setup, setup));
