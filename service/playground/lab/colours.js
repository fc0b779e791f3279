// The colours of the drawings, in light and in dark. Data is blue and samples are orange, after Okabe and Ito (2008,
// "Color Universal Design"), whose colours people with any form of colour blindness can tell.

const LIGHT = {
  paper: [255, 255, 255], ink: "#1c2126", muted: "#5b646d", line: "#c9cdd1",
  data: "#0072b2", samples: "#d55e00", arrows: "#1c2126", shapes: "#8a3d78",
  high: [124, 189, 230], low: [246, 190, 132], dense: [90, 165, 135],
  runs: ["#1c2126", "#b0307f"],
};
const DARK = {
  paper: [31, 36, 41], ink: "#e6e9ec", muted: "#a3adb6", line: "#3b4249",
  data: "#63b8f0", samples: "#ff9a4a", arrows: "#e6e9ec", shapes: "#e59bd0",
  high: [31, 98, 148], low: [138, 74, 24], dense: [40, 110, 90],
  runs: ["#e6e9ec", "#f086c4"],
};

const dark = matchMedia("(prefers-color-scheme: dark)");

/** The colours to draw with now. */
export const colours = () => (dark.matches ? DARK : LIGHT);

/** Call `redraw` when the colours change. */
export const onColourChange = (redraw) => dark.addEventListener("change", redraw);

/** The colour between `from` and `to`, three numbers each, at `share` from 0 to 1. */
export const between = (from, to, share) => from.map((value, i) => value + (to[i] - value) * share);
