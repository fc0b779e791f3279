// Experiments that each show one argument of the lecture, with two sentences of what to look for.

import { makeSetup, sameExperiments } from "./setup.js";

const RING = { data: "ring" };
const PRESETS = [
  {
    name: "collapse", title: "Mode collapse, and what Wasserstein does about it", ...RING,
    models: [{ name: "gan", hidden: "128-256" }, { name: "wgan_gp" }],
    hint: "Watch how many of the eight modes the GAN’s samples reach, and how they jump between modes when the discriminator catches up. "
      + "The critic of WGAN-GP has a slope everywhere, so its samples spread over the ring.",
  },
  {
    name: "game", title: "V = xy: why alternating gradients may circle", data: "ring",
    models: [{ name: "xy_game" }, { name: "xy_game", play: "extragradient" }],
    hint: "With simultaneous steps the distance to the equilibrium (0, 0) grows by √(1 + η²) per step: the path spirals outwards, however small the step. "
      + "Extragradient looks one step ahead, and its path spirals inwards.",
  },
];

/** The presets as {name, title, hint, setup}. */
export const presets = PRESETS.map(({ name, title, hint, ...parts }) => ({ name, title, hint, setup: makeSetup(parts) }));

/** The preset whose experiments a setup has, or undefined. */
export const presetOf = (setup) => presets.find((preset) => sameExperiments(preset.setup, setup));
