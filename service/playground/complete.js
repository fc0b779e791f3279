// View "Complete": an image whose masked part a model completes in several ways, or which it varies as a whole.

import { buildUrl, getKey, loadManifest, request, requestBlobUrl } from "./api.js";
import { modelCard } from "./cards.js";
import { MAX_SEED, countSlider, formValues, modelSelect, panel, randomSeed, readModel, runForm, samplingControls, seedField, slider } from "./controls.js";
import { drawingPad, pictureZone, receiveFiles } from "./drawing.js";
import { describeLabel, labelField, labelWord, readLabel } from "./labels.js";
import { lowerHalf, maskLayer, rectangleProblem } from "./masking.js";
import { capitalize, codeSample, fileName, make, showShape, showView, withErrors } from "./page.js";
import { sampleGrid } from "./samples.js";
import { multipleOf, readSetting, setAddress, setSetting, wholeNumber } from "./settings.js";

const PREFERRED_MODEL = "flow";
const COMPLETION_STEPS = 20; // the service's default is at least this, too: each step adapts the completion to what is known
const TOOLS = { draw: "Draw", pen: "Mask by pen", rectangle: "Mask by rectangle" };
/** CSS for how the service brings a picture to the model's shape. */
const OBJECT_FITS = { crop: "cover", pad: "contain", stretch: "fill" };

/** Show the view. `kept` is the image and the mask of the user, when another model is selected. */
export default function showComplete(catalog, kept = {}) {
  const models = catalog.models.filter(({ edits }) => edits);
  if (!models.length) {
    showView(make("p", { textContent: "No served model completes images." }));
    return;
  }
  const model = readModel(catalog, models, PREFERRED_MODEL);
  const isDrawn = model.uploads === "digit";
  const fitsMask = kept.pixels?.length === model.width * model.height;
  if (kept.pixels && !fitsMask) setSetting("mask", ""); // its pixels are those of an image of another size
  const pad = isDrawn ? drawingPad("Draw a digit here with a mouse, pen or finger; or choose an image below", { isCropped: true })
    : pictureZone("Drop an image here, or choose a file", "file");
  const image = make("input", { type: "hidden", name: "image", value: readSetting("image", wholeNumber(0, MAX_SEED), "") });
  const masked = make("input", { type: "hidden", name: "mask", value: readSetting("mask", rectangleProblem(model), "") });
  const mask = maskLayer(model, () => change(masked, mask.rectangle()));
  const file = make("input", { type: "file", id: "file", accept: "image/*" });
  const button = (textContent, onclick) => make("button", { type: "button", textContent, onclick });
  const strength = slider("strength", "Strength", { minimum: 0.05, maximum: 1, step: 0.05 }, readSetting("strength", multipleOf(0.05, 0.05, 1), 0.5));
  const samples = sampleGrid(model, "Completed images");
  const showResult = () => samples.element.scrollIntoView({ block: "nearest" }); // on a phone it is below the form
  const submit = make("button", { className: "primary", onclick: showResult });
  const { label } = model.takes;
  const form = make("form", { className: "dense" }, image, masked,
    modelSelect(models, model, async () => showComplete(catalog, { uploads: model.uploads, isOwn, source: image.value ? null : await pad.source(), pixels: mask.pixels() })),
    make("div", { className: "masked" }, pad.element, mask.element),
    toolButtons(mask, isDrawn),
    make("div", { className: "row" }, button("Mask lower half", () => setMask(lowerHalf(model))), button("Clear mask", () => setMask(""))),
    make("div", { className: "row" }, button("Generate an image", () => change(image, randomSeed())), button("Clear image", () => clear())),
    make("div", {}, make("label", { for: "file", textContent: "Or choose an image, or drop one here" }), file),
    panel("Options",
      label ? labelField(capitalize(labelWord(model)), { ...label, none: false }, readLabel(label), { any: "any" }) : null,
      countSlider("Images"),
      strength,
      seedField()),
    samplingControls({ takes: samplingOf(model) }),
    make("div", { className: "row" }, submit, samples.cancel));
  const links = make("section", { className: "card", hidden: true });
  const result = make("div", { className: "result" }, samples.element, links, modelCard(model));
  showView(form, result);
  showShape(form, model);
  if (!isDrawn) withErrors(async () => form.style.setProperty("--fit", OBJECT_FITS[(await loadManifest(model.name)).dataset.resize ?? "crop"]));

  /** The image is the user's drawing or a generated one, and no file. */
  let isOwn = kept.isOwn ?? true;
  /** The seed of the generated image that is shown. */
  let generated = "";
  const change = (field, value) => {
    field.value = value;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const setMask = (rectangle) => {
    mask.setRectangle(rectangle);
    change(masked, rectangle);
    if (rectangle) showResult();
  };
  /** Forget the generated image: the user gives another one. */
  const forget = () => {
    image.value = generated = "";
    setSetting("image", "");
    isOwn = true;
  };
  const clear = () => {
    forget();
    pad.clear();
    file.value = "";
    form.requestSubmit();
  };
  receiveFiles(file, [form, result], async (chosen) => {
    forget();
    isOwn = false;
    await pad.show(chosen);
    form.requestSubmit();
  });
  pad.element.addEventListener("pointerdown", () => {
    if (!isDrawn) return;
    forget();
    file.value = "";
  });
  /** Show the generated image that the form names. */
  const generate = async (signal) => {
    const seed = image.value;
    const url = buildUrl("generate", [["model", model.name], ["seed", seed], ["format", "png"]]);
    await pad.show(new File([await (await request(url, { signal })).blob()], `generated from seed ${seed}`));
    [generated, isOwn, file.value] = [seed, true, ""];
  };

  mask.setRectangle(masked.value);
  if (!masked.value && fitsMask) mask.set(kept.pixels);
  if (kept.source && kept.uploads === model.uploads && !image.value) pad.show(kept.source);
  runForm(form, async (signal) => {
    const isMasked = !mask.isEmpty();
    strength.hidden = strength.querySelector("input").disabled = isMasked;
    submit.textContent = isMasked ? "Complete" : "Vary";
    const fields = formValues(form);
    setAddress([["view", "complete"], ...fields]);
    links.hidden = true;
    if (image.value && image.value !== generated) await generate(signal);
    const source = await pad.source();
    if (!source) return samples.say(`There is no image yet. ${isDrawn ? "Draw a digit on the black square, choose a file" : "Choose a file"}, or generate an image. Then mask a part of it.`);
    const upload = { image: source, ...(isMasked && { mask: await mask.toFile() }) };
    const params = requestOf(model, fields, isDrawn && isOwn);
    const path = isMasked ? "inpaint" : "vary";
    const describe = ({ index, class: name }) => `${isMasked ? "completion" : "variation"} ${index + 1}${name === null ? "" : `: ${describeLabel(model, name)}`}`;
    const { n } = Object.fromEntries(fields);
    await samples.fill(signal, Number(n), buildUrl(path, [...params, ["previews", true]]), { body: bodyOf(upload) }, describe);
    links.replaceChildren(...reproduceLinks(model, path, params, upload));
    links.hidden = false;
  });
}

/** Buttons for what the pointer does on the image. */
function toolButtons(mask, isDrawn) {
  const names = Object.keys(TOOLS).filter((name) => isDrawn || name !== "draw");
  const buttons = names.map((name) => make("button", { type: "button", textContent: TOOLS[name] }));
  const choose = (chosen) => {
    mask.use(names[chosen] === "draw" ? null : names[chosen]);
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === chosen));
  };
  buttons.forEach((button, i) => (button.onclick = () => choose(i)));
  choose(0);
  return make("div", { className: "row", role: "group", "aria-label": "Tool" }, ...buttons);
}

/** The sampling parameters that both routes take, with the defaults of a completion. */
function samplingOf({ takes: { steps, guidance } }) {
  const completing = { ...steps, default: Math.min(Math.max(steps.default, COMPLETION_STEPS), steps.maximum) };
  return { steps: completing, ...(guidance && { guidance }) };
}

/** The parameters of the request. Without a label, the guidance has no effect but twice the cost. */
function requestOf(model, fields, isLightOnDark) {
  const { label } = Object.fromEntries(fields);
  const hidden = ["image", "mask", ...(label ? [] : ["guidance"])];
  return [...fields.filter(([name]) => !hidden.includes(name)), ["polarity", isLightOnDark ? "light-on-dark" : null]].filter(([, value]) => value !== null);
}

/** Files by their field, as a form. */
function bodyOf(files) {
  const body = new FormData();
  for (const [name, content] of Object.entries(files)) body.append(name, content, `${name}.png`);
  return body;
}

/** Downloads of the images and of what was sent, and a code sample that reproduces the images with it. */
function reproduceLinks(model, path, params, upload) {
  const address = buildUrl(path, [...params, ["format", "png"]]);
  const name = fileName([model.name, path], "png");
  const images = make("button", { type: "button", textContent: "PNG" });
  images.onclick = () => withErrors(async () => {
    make("a", { href: await requestBlobUrl(address, { method: "POST", body: bodyOf(upload) }), download: name }).click();
  });
  const sent = Object.entries(upload).map(([field, content]) =>
    make("a", { className: "button", href: URL.createObjectURL(content), download: `${field}.png`, textContent: capitalize(field) }));
  const files = Object.keys(upload).map((field) => ` -F ${field}=@${field}.png`).join("");
  const key = getKey() ? " -H 'Authorization: Bearer KEY'" : "";
  return [
    make("h2", { textContent: "Reproduce" }),
    make("div", { className: "row" }, make("span", { className: "small", textContent: "Download" }), images, ...sent),
    codeSample("curl", `curl -X POST${key} '${new URL(".", location.href)}${address}'${files} -o '${name}'`),
  ];
}
