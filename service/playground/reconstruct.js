// View "Your image": an image drawn or uploaded by the user, reconstructed by every model of a data set with an encoder.

import { buildUrl, pngUrl, request, requestBlobUrl, requestJson } from "./api.js";
import { cost, fillCards, modelTitle } from "./cards.js";
import { currentGroup } from "./controls.js";
import { groupByData } from "./datasets.js";
import { drawingPad, pictureZone, receiveFiles } from "./drawing.js";
import { describeLabel, labelField, labelWord, readLabel } from "./labels.js";
import { announce, make, runTask, showNotice, showShape, showView } from "./page.js";
import { oneOf, readSetting, setAddress, setSetting } from "./settings.js";

const TARGET_SEED = 1;
const FRAMES = 8;

export default function showReconstruct(catalog) {
  const groups = groupByData(catalog.models).filter(({ models }) => models.some(({ encodes }) => encodes));
  if (!groups.length) {
    showView(make("p", { textContent: "No served model has an encoder." }));
    return;
  }
  const data = readData(catalog, groups);
  const encoders = data.models.filter(({ encodes }) => encodes);
  const conditional = targetModel(data.models, catalog.defaults.conditional);
  const isDrawn = encoders.every(({ uploads }) => uploads === "digit");
  const pad = isDrawn ? drawingPad("Draw a digit here with a mouse, pen or finger; or choose an image below")
    : pictureZone("Drop an image here, or choose a file", "file");
  const clear = make("button", { type: "button", textContent: "Clear" });
  const file = make("input", { type: "file", id: "file", accept: "image/*" });
  const fileHint = isDrawn ? "Or choose an image of a digit, or drop one here: white on black or black on white"
    : `Images are scaled to ${encoders[0].height} × ${encoders[0].width}`;
  const form = make("form", {},
    groups.length > 1 ? dataSelect(groups, data, () => showReconstruct(catalog)) : null,
    pad.element,
    make("div", { className: "row" }, make("button", { className: "primary", textContent: "Reconstruct" }), clear),
    make("div", {}, make("label", { for: "file", textContent: fileHint }), file),
    conditional ? targetField(conditional) : null);
  const hint = `Each model with an encoder reconstructs your image.${conditional ? ` Choose a ${labelWord(conditional)} to see the images between the two.` : ""}`;
  const box = make("div", { className: "cards" });
  const result = make("div", { className: "result" },
    make("p", { className: "small", textContent: hint }), box);
  showView(form, result);
  showShape(box, encoders[0]);

  let source = null, cards = [];
  /** Fill the cards that are not filled yet: first the reconstructions, then the images up to the chosen label. */
  const fill = async (signal) => {
    try {
      await fillCards(cards, (model, card) => card.querySelector(".large") || showReconstruction(card, model, source, signal));
      const label = new FormData(form).get("to");
      if (label) await showInterpolations(cards, source, conditional, label, signal);
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
      if (!source) throw new Error(`There is no image yet. ${isDrawn ? "Draw a digit on the black square, or choose a file." : "Choose a file, or drop one here."}`);
      cards[0][1].scrollIntoView({ block: "nearest" }); // on a phone the cards are below the pad
      await fill(signal);
      announce(`${cards.length} models have reconstructed your image`);
    });
  };
  const showAddress = () => setAddress([["view", "reconstruct"], ["data", groups.length > 1 ? data.id : null], ["to", new FormData(form).get("to")]]);
  form.onchange = ({ target }) => {
    if (target.name !== "to" || !target.checkValidity()) return;
    showNotice("");
    setSetting("to", target.value);
    showAddress();
    for (const strip of box.querySelectorAll(".strip")) strip.remove();
    if (cards.length) runTask(fill);
  };

  receiveFiles(file, [form, result], async (chosen) => {
    await pad.show(chosen);
    form.requestSubmit();
  });
  clear.onclick = () => {
    pad.clear();
    file.value = "";
  };
  if (isDrawn) pad.element.addEventListener("pointerdown", () => (file.value = ""));
}

/** The data set that the settings name, else that of the model that they name. */
function readData(catalog, groups) {
  const find = (wanted) => groups.find(({ id }) => id === wanted);
  const named = readSetting("data", oneOf(groups.map(({ id }) => id)));
  return find(named) ?? find(currentGroup(catalog.models).id) ?? groups[0];
}

/** A labelled list of data sets. `show` shows the view again, for the one that the user has selected. */
function dataSelect(groups, selected, show) {
  const options = groups.map(({ id, title }) => make("option", { value: id, textContent: title, selected: id === selected.id }));
  const select = make("select", { id: "data", name: "data" }, ...options);
  select.onchange = () => {
    showNotice("");
    setSetting("data", select.value);
    setAddress([["view", "reconstruct"], ["data", select.value]]);
    show();
    document.getElementById("data").focus();
  };
  return make("div", {}, make("label", { for: "data", textContent: "Data" }), select);
}

/** The model that generates the second image: the one called `preferred`, else the one of the fewest steps; undefined if none takes a label. */
function targetModel(models, preferred) {
  const conditional = models.filter(({ takes }) => takes.label).toSorted((a, b) => cost(a) - cost(b));
  return conditional.find(({ name }) => name === preferred) ?? conditional[0];
}

function targetField(model) {
  const label = { ...model.takes.label, none: false };
  return labelField(`Interpolate to ${labelWord(model)}`, label, readLabel(label, "", { name: "to" }), { name: "to", any: "off" });
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
    make("img", { className: "large", src: pngUrl(png), alt: `your image, reconstructed by ${model.name}` }),
    make("p", { className: "small", textContent: `mean squared error ${error.toFixed(4)}` }));
}

/** Append to each card the images from `source` to a sample of `label`. */
async function showInterpolations(cards, source, conditional, label, signal) {
  const params = [["model", conditional.name], ["label", label], ["seed", TARGET_SEED], ["format", "png"]];
  const target = await (await request(buildUrl("generate", params), { signal })).blob();
  const upload = new FormData();
  upload.append("image", source, "source");
  upload.append("image", target, "target");
  await fillCards(cards.filter(([, card]) => card.querySelector(".large")), async (model, card) => {
    const url = buildUrl("interpolate", [["model", model.name], ["frames", FRAMES], ["format", "png"]]);
    const src = await requestBlobUrl(url, { method: "POST", body: upload, signal });
    card.append(make("img", { className: "strip", src, alt: `images from your image to ${describeLabel(conditional, label)}` }));
  });
}
