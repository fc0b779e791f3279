// What a sampler does to one image: a slider through its steps, with the current image beside the predicted one.

import { buildUrl, pngUrl, streamEvents } from "./api.js";
import { panel, slider } from "./controls.js";
import { make, runTask, showShape } from "./page.js";

/**
 * A panel with the steps of one sample of a draw: its `element`; `clear()`, for when the draw begins; `show(request, signal)`,
 * for when it has ended; and `choose(index)`. It requests the chosen image alone, which is the same as with the others, and
 * only while it is open.
 */
export function denoisingPanel(model) {
  const number = slider("denoised", "Image", { minimum: 1, maximum: 1 }, 1);
  const position = slider("step", "Step", { minimum: 1, maximum: 1 }, 1);
  const [image, step] = [number, position].map((control) => control.querySelector("input"));
  const state = make("img", { className: "large", alt: "the image after the step" });
  const guess = make("img", { className: "large", alt: "the final image that the model predicts in the step" });
  const box = make("div", { hidden: true },
    make("div", { className: "row" }, figure(state, "t", "the image after the step"), figure(guess, "0", "what the model predicts")), position, number);
  const element = panel("Step by step", box);
  element.className = "card";
  showShape(element, model);

  let draw = null; // the parameters of the images, null while they are generated
  let loaded = null; // the index of the image whose steps are shown
  /** What the image was after each step: the number of the `step`, `png`, and `guess`, which the last one lacks. */
  let frames = [];
  const showStep = () => {
    const frame = frames[step.value - 1];
    state.src = pngUrl(frame.png);
    guess.src = pngUrl(frame.guess ?? frame.png);
    position.querySelector("output").textContent = `${frame.step} of ${frames.at(-1).step}`;
  };
  const load = async (signal) => {
    const index = image.value - 1;
    if (!draw || !element.open || index === loaded) return;
    frames = await loadSteps(draw, index, signal);
    loaded = index;
    if (Number(step.max) !== frames.length) {
      step.max = frames.length;
      step.value = Math.ceil(frames.length / 2);
    }
    showStep();
    box.hidden = false;
  };
  const reload = () => draw && runTask(load);
  step.oninput = showStep;
  image.onchange = reload;
  element.addEventListener("toggle", reload);

  const clear = () => {
    draw = loaded = null;
    box.hidden = true;
  };
  const show = (request, signal) => {
    draw = request;
    image.max = Object.fromEntries(request).n;
    number.querySelector("output").textContent = image.value;
    number.hidden = image.max === "1";
    return load(signal);
  };
  const choose = (index) => {
    image.value = index + 1;
    image.dispatchEvent(new Event("input"));
    reload();
  };
  return { element, clear, show, choose };
}

/** An image under the name that papers give it. */
const figure = (image, index, text) => make("figure", {}, image,
  make("figcaption", { className: "small" }, make("i", {}, "x", make("sub", { textContent: index })), `: ${text}`));

/** The frames of the image `index` of a request. A slow connection may miss some. */
async function loadSteps(request, index, signal) {
  const { first = 0 } = Object.fromEntries(request);
  const one = [...request.filter(([name]) => !["n", "first"].includes(name)), ["n", 1], ["first", Number(first) + index]];
  const frames = [];
  let step = 0;
  for await (const { name, data } of streamEvents(buildUrl("generate", [...one, ["previews", true], ["guesses", true]]), { method: "POST", signal })) {
    if (name === "progress") step = data.gone;
    if (name === "preview" || name === "image") frames.push({ ...data, step });
  }
  return frames;
}
