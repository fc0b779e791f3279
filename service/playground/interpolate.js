// View "Interpolate": the frames between two samples, with a slider.

import { buildUrl, loadable, pngUrl, requestJson } from "./api.js";
import { digitButtons, formValues, modelSelect, samplingControls, seedField, selectedModel, slider } from "./controls.js";
import { addressParams, announce, make, setAddress, setDownload, showView, withErrors } from "./page.js";

const FRAMES = 33;
const GIF_FRAMES = 24;
const STRIP_FRAMES = 12;
const PLAY_INTERVAL = 80; // milliseconds between frames

export default function showInterpolate(catalog) {
  const model = selectedModel(catalog);
  const digit = model.takes.digit;
  const [from, to] = addressParams().getAll("digit");
  const form = make("form", {},
    modelSelect(catalog.models, model, (selected) => {
      setAddress([["view", "interpolate"], ["model", selected.name]]);
      withErrors(() => showInterpolate(catalog));
    }),
    digit ? digitButtons("from", "From digit", digit, from ?? "3", false) : null,
    digit ? digitButtons("to", "To digit", digit, to ?? "8", false) : null,
    seedField("seed", digit ? "Seed" : "From seed"),
    digit ? null : seedField("end", "To seed"),
    ...samplingControls(model),
    make("button", { className: "primary", textContent: "Interpolate" }));
  const image = make("img", { className: "large", alt: "the current frame" });
  const control = slider("frame", "Frame", { minimum: 0, maximum: FRAMES - 1 }, 0);
  const frame = control.querySelector("input");
  const strip = make("img", { className: "strip", alt: "" });
  const gif = make("a", { className: "button", textContent: "GIF", download: "interpolation.gif" });
  const play = make("button", { type: "button", textContent: "Play" });
  showView(form, make("div", { className: "result" }, make("section", { className: "card" },
    make("p", { className: "small", textContent: "Move the slider from one end to the other." }), image, control,
    make("div", { className: "row" }, play, gif), strip)));

  let frames = [];
  frame.oninput = () => {
    if (frames.length) image.src = pngUrl(frames[frame.value].png);
  };
  let timer = null;
  play.onclick = () => {
    clearInterval(timer);
    timer = play.textContent === "Stop" ? null : setInterval(() => {
      if (!image.isConnected) return clearInterval(timer);
      frame.value = (Number(frame.value) + 1) % FRAMES;
      frame.dispatchEvent(new Event("input"));
    }, PLAY_INTERVAL);
    play.textContent = timer ? "Stop" : "Play";
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    const { from, to, seed, end, ...rest } = Object.fromEntries(formValues(form));
    const ends = digit ? [["seed", seed], ["digit", from], ["digit", to]] : [["seed", seed], ["seed", end]];
    const request = [["model", model.name], ...ends, ...Object.entries(rest)];
    const urlFor = (count, format) => buildUrl("interpolate", [...request, ["frames", count], ["format", format]]);
    setAddress([["view", "interpolate"], ...request, ["end", end]]);
    withErrors(async () => {
      frames = (await requestJson(urlFor(FRAMES, "json"), { method: "POST" })).images;
      frame.oninput();
      setDownload(gif, urlFor(GIF_FRAMES, "gif"));
      strip.src = await loadable(urlFor(STRIP_FRAMES, "png"));
      announce("The frames are ready; move the slider.");
    });
  };
  form.requestSubmit();
}
