// View "Your digit": a digit drawn or uploaded by the user, reconstructed by every model with an encoder.

import { buildUrl, pngUrl, request, requestBlobUrl, requestJson } from "./api.js";
import { fillCards, modelTitle } from "./cards.js";
import { digitButtons } from "./controls.js";
import { drawingPad } from "./drawing.js";
import { announce, make, runTask, showNotice, showView } from "./page.js";
import { setAddress, setSetting } from "./settings.js";

const TARGET_SEED = 1;
const FRAMES = 8;

export default function showReconstruct(catalog) {
  const encoders = catalog.models.filter(({ encodes }) => encodes);
  const conditional = catalog.models.find(({ name }) => name === catalog.defaults.conditional);
  const pad = drawingPad("Draw a digit here with a mouse, pen or finger; or choose an image below");
  const clear = make("button", { type: "button", textContent: "Clear" });
  const file = make("input", { type: "file", id: "file", accept: "image/*" });
  const form = make("form", {},
    pad.canvas,
    make("div", { className: "row" }, make("button", { className: "primary", textContent: "Reconstruct" }), clear),
    make("div", {}, make("label", { for: "file", textContent: "Or choose an image of a digit, or drop one here: white on black or black on white" }), file),
    conditional ? digitButtons("Interpolate to digit", conditional.takes.digit, { name: "to", none: "none" }) : null);
  const box = make("div", { className: "cards" });
  const result = make("div", { className: "result" },
    make("p", { className: "small", textContent: "Each model with an encoder reconstructs your digit. Choose a second digit to see the images between the two." }), box);
  showView(form, result);

  let source = null, cards = [];
  /** Fill the cards that are not filled yet: first the reconstructions, then the images up to the second digit. */
  const fill = async (signal) => {
    try {
      await fillCards(cards, (model, card) => card.querySelector(".large") || showReconstruction(card, model, source, signal));
      const digit = new FormData(form).get("to");
      if (digit) await showInterpolations(cards, source, conditional, digit, signal);
    } catch (error) {
      if (error.name !== "AbortError") box.replaceChildren(...(cards = []));
      throw error;
    }
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    runTask(async (signal) => {
      source = await pad.source();
      cards = source ? encoders.map((model) => [model, make("section", { className: "card" }, ...waiting(model))]) : [];
      box.replaceChildren(...cards.map(([, card]) => card));
      if (!source) throw new Error("There is no digit yet. Draw one on the black square, or choose an image.");
      cards[0][1].scrollIntoView({ block: "nearest" }); // on a phone the cards are below the pad
      await fill(signal);
      announce(`${cards.length} models have reconstructed your digit`);
    });
  };
  form.onchange = ({ target }) => {
    if (target.name !== "to") return;
    showNotice("");
    setSetting("to", target.value);
    setAddress([["view", "reconstruct"], ["to", target.value]]);
    for (const strip of box.querySelectorAll(".strip")) strip.remove();
    if (cards.length) runTask(fill);
  };

  const use = async (chosen) => {
    await pad.show(chosen);
    form.requestSubmit();
  };
  file.onchange = () => file.files[0] && use(file.files[0]);
  for (const target of [form, result]) {
    target.ondragover = (event) => event.preventDefault();
    target.ondrop = (event) => {
      event.preventDefault();
      if (!event.dataTransfer.files.length) return;
      file.files = event.dataTransfer.files;
      use(file.files[0]);
    };
  }
  clear.onclick = () => {
    pad.clear();
    file.value = "";
  };
  pad.canvas.addEventListener("pointerdown", () => (file.value = ""));
}

/** The content of a card that has no image yet. */
const waiting = (model) => [modelTitle(model), make("div", { className: "waiting" })];

async function showReconstruction(card, model, source, signal) {
  card.replaceChildren(...waiting(model));
  const upload = new FormData();
  upload.append("image", source, "source");
  const url = buildUrl("reconstruct", [["model", model.name], ["format", "json"]]);
  const [{ png, error }] = (await requestJson(url, { method: "POST", body: upload, signal })).images;
  card.replaceChildren(modelTitle(model),
    make("img", { className: "large", src: pngUrl(png), alt: `your digit, reconstructed by ${model.name}` }),
    make("p", { className: "small", textContent: `mean squared error ${error.toFixed(4)}` }));
}

/** Append to each card the images from `source` to a sample of `digit`. */
async function showInterpolations(cards, source, conditional, digit, signal) {
  const params = [["model", conditional.name], ["digit", digit], ["seed", TARGET_SEED], ["format", "png"]];
  const target = await (await request(buildUrl("generate", params), { signal })).blob();
  const upload = new FormData();
  upload.append("image", source, "source");
  upload.append("image", target, "target");
  await fillCards(cards.filter(([, card]) => card.querySelector(".large")), async (model, card) => {
    const url = buildUrl("interpolate", [["model", model.name], ["frames", FRAMES], ["format", "png"]]);
    const src = await requestBlobUrl(url, { method: "POST", body: upload, signal });
    card.append(make("img", { className: "strip", src, alt: `images from your digit to a ${digit}` }));
  });
}
