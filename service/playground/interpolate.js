// View "Interpolate": the frames between two samples, with a slider.

import { buildUrl, pngUrl, requestJson } from "./api.js";
import { modelSelect, readModel, runForm, samplingControls, seedField, slider } from "./controls.js";
import { describeLabel, labelField, labelWord, readLabel } from "./labels.js";
import { announce, fileName, make, setDownload, showShape, showView } from "./page.js";
import { setAddress } from "./settings.js";

const FRAMES = 33;
const STRIP_STRIDE = 4; // the strip shows frames 0, 4, ..., 32
const GIF_FRAMES = 24;
const DEFAULT_DIGITS = ["3", "8"];
const PLAY_INTERVAL = 80; // milliseconds between frames

export default function showInterpolate(catalog) {
  const model = readModel(catalog, catalog.models, catalog.defaults.conditional);
  const isLabelled = model.classes.length > 1; // two labels are the ends; else two seeds
  const form = make("form", {},
    modelSelect(catalog.models, model, () => showInterpolate(catalog)),
    ...(isLabelled ? endFields(model) : []),
    seedField(isLabelled ? "Seed" : "From seed"),
    isLabelled ? null : seedField("To seed", 1),
    samplingControls(model),
    make("button", { className: "primary", textContent: "Interpolate" }));
  const image = make("img", { className: "large", alt: "the current frame" });
  const control = slider("frame", "Frame", { minimum: 0, maximum: FRAMES - 1 }, 0);
  const frame = control.querySelector("input");
  const strip = make("div", { className: "strip", role: "img", "aria-label": `every ${STRIP_STRIDE}th frame` });
  const gif = make("a", { className: "button", textContent: "GIF" });
  const play = make("button", { type: "button", textContent: "Play" });
  showView(form, make("div", { className: "result" }, make("section", { className: "card" },
    make("p", { className: "small", textContent: "Move the slider from one end to the other." }), image, control,
    make("div", { className: "row" }, play, gif), strip)));

  showShape(image, model);

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
    const request = [...new FormData(form)].map(([name, value]) => [name === "label-1" ? "label" : name, value]);
    const urlFor = (count, format) => buildUrl("interpolate", [...request, ["frames", count], ["format", format]]);
    setAddress([["view", "interpolate"], ...request]);
    frames = (await requestJson(urlFor(FRAMES, "json"), { method: "POST", signal })).images.map(({ png }) => pngUrl(png));
    frame.oninput();
    strip.replaceChildren(...frames.filter((_, i) => i % STRIP_STRIDE === 0).map((src) => make("img", { src, alt: "" })));
    const ends = isLabelled ? new URLSearchParams(request).getAll("label") : [];
    image.alt = isLabelled ? `the current frame, from ${ends.map((end) => describeLabel(model, end)).join(" to ")}` : "the current frame";
    gif.download = fileName([model.name, ...ends], "gif");
    setDownload(gif, urlFor(GIF_FRAMES, "gif"));
    announce("The frames are ready; move the slider.");
  });
}

/** Fields for the labels of both ends: by default a 3 and an 8, of other classes the first two. */
function endFields(model) {
  const { label } = model.takes;
  const digits = model.takes.digit ? DEFAULT_DIGITS : [];
  const defaults = [...digits, ...label.one_of].filter((name) => label.one_of.includes(name));
  const from = readLabel(label, defaults[0]);
  const to = readLabel(label, [defaults[1], ...defaults].find((name) => name !== from), { index: 1 });
  return [labelField(`From ${labelWord(model)}`, label, from), labelField(`To ${labelWord(model)}`, label, to, { index: 1 })];
}
