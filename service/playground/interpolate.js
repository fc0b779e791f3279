// View "Interpolate": the frames between two samples, with a slider.

import { buildUrl, pngUrl, requestJson } from "./api.js";
import { digitButtons, modelSelect, readModel, runForm, samplingControls, seedField, slider } from "./controls.js";
import { announce, make, setDownload, showView } from "./page.js";
import { setAddress } from "./settings.js";

const FRAMES = 33;
const STRIP_STRIDE = 4; // the strip shows frames 0, 4, ..., 32
const GIF_FRAMES = 24;
const PLAY_INTERVAL = 80; // milliseconds between frames

export default function showInterpolate(catalog) {
  const model = readModel(catalog.models, catalog.defaults.conditional);
  const digit = model.takes.digit;
  const form = make("form", {},
    modelSelect(catalog.models, model, () => showInterpolate(catalog)),
    digit ? digitButtons("From digit", digit, { fallback: "3" }) : null,
    digit ? digitButtons("To digit", digit, { index: 1, fallback: "8" }) : null,
    seedField(digit ? "Seed" : "From seed"),
    digit ? null : seedField("To seed", 1),
    samplingControls(model),
    make("button", { className: "primary", textContent: "Interpolate" }));
  const image = make("img", { className: "large", alt: "the current frame" });
  const control = slider("frame", "Frame", { minimum: 0, maximum: FRAMES - 1 }, 0);
  const frame = control.querySelector("input");
  const strip = make("div", { className: "strip", role: "img", "aria-label": `every ${STRIP_STRIDE}th frame` });
  const gif = make("a", { className: "button", textContent: "GIF", download: "interpolation.gif" });
  const play = make("button", { type: "button", textContent: "Play" });
  showView(form, make("div", { className: "result" }, make("section", { className: "card" },
    make("p", { className: "small", textContent: "Move the slider from one end to the other." }), image, control,
    make("div", { className: "row" }, play, gif), strip)));

  let frames = [];
  frame.oninput = () => {
    if (frames.length) image.src = frames[frame.value];
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
  runForm(form, async (signal) => {
    const request = [...new FormData(form)].map(([name, value]) => [name === "digit-1" ? "digit" : name, value]);
    const urlFor = (count, format) => buildUrl("interpolate", [...request, ["frames", count], ["format", format]]);
    setAddress([["view", "interpolate"], ...request]);
    frames = (await requestJson(urlFor(FRAMES, "json"), { method: "POST", signal })).images.map(({ png }) => pngUrl(png));
    frame.oninput();
    strip.replaceChildren(...frames.filter((_, i) => i % STRIP_STRIDE === 0).map((src) => make("img", { src, alt: "" })));
    setDownload(gif, urlFor(GIF_FRAMES, "gif"));
    announce("The frames are ready; move the slider.");
  });
}
