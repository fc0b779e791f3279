// View "Generate": a grid of samples from one model, which appear as they are generated.

import { buildUrl, getKey } from "./api.js";
import { modelCard } from "./cards.js";
import { countSlider, formValues, modelSelect, readModel, runForm, samplingControls, seedField } from "./controls.js";
import { denoisingPanel } from "./denoising.js";
import { formulasPanel, formulasSetting } from "./formulas.js";
import { describeLabel, labelField, labelWord, readLabel } from "./labels.js";
import { nearestPanel } from "./nearest.js";
import { capitalize, codeSample, fileName, make, setDownload, showView } from "./page.js";
import { sampleGrid } from "./samples.js";
import { readSetting, setAddress, wholeNumber } from "./settings.js";

const MAX_FIRST = 2 ** 53;

export default function showGenerate(catalog) {
  const model = readModel(catalog, catalog.models, catalog.defaults.conditional);
  const { label } = model.takes;
  const steps = model.edits ? denoisingPanel(model) : null;
  const samples = sampleGrid(model, "Generated images", (index) => panels.forEach((panel) => panel.choose(index)));
  let request = [];
  const showAddress = () => setAddress([["view", "generate"], ...request, ["nearest", nearest?.chosen()], formulasSetting()]);
  const nearest = model.nearest ? nearestPanel(model, samples.source, showAddress) : null;
  const panels = [steps, nearest].filter(Boolean);
  const form = make("form", {},
    modelSelect(catalog.models, model, () => showGenerate(catalog)),
    label ? labelField(capitalize(labelWord(model)), label, readLabel(label), { any: "any" }) : null,
    countSlider("Images"),
    seedField(),
    firstField(),
    samplingControls(model),
    make("div", { className: "row" }, make("button", { className: "primary", textContent: "Generate" }), samples.cancel));
  const links = make("section", { className: "card", hidden: true });
  showView(form, make("div", { className: "result" }, samples.element, ...panels.map(({ element }) => element), links, formulasPanel(model, showAddress), modelCard(model)));

  runForm(form, async (signal) => {
    request = formValues(form);
    showAddress();
    links.hidden = true;
    panels.forEach((panel) => panel.clear());
    const count = Number(Object.fromEntries(request).n);
    const describe = (data) => (data.class === null ? `generated image ${data.index + 1}` : `generated ${describeLabel(model, data.class)}`);
    await samples.fill(signal, count, buildUrl("generate", [...request, ["previews", true]]), {}, describe);
    links.replaceChildren(...reproduceLinks(model, request));
    links.hidden = false;
    await Promise.all([steps?.show(request, signal), nearest?.show(count)]);
  });
}

/** A field for the index of the first image, if the settings name one: images of large sets are named so. */
function firstField() {
  const first = readSetting("first", wholeNumber(0, MAX_FIRST), "");
  if (!first) return null;
  const input = make("input", { type: "number", id: "first", name: "first", min: 0, max: MAX_FIRST, value: first });
  return make("div", {}, make("label", { for: "first", textContent: "Index of the first image" }), input);
}

/** Downloads and code samples that reproduce the images. */
function reproduceLinks(model, request) {
  const base = new URL(".", location.href);
  const urlFor = (format) => buildUrl("generate", [...request, ["format", format]]);
  const nameOf = (suffix) => fileName([model.name, Object.fromEntries(request).label], suffix);
  const downloads = [["png", "PNG"], ["zip", "zip"], ["npz", "npz"]].map(([format, text]) => {
    const link = make("a", { className: "button", download: nameOf(format), textContent: text });
    setDownload(link, urlFor(format));
    return link;
  });
  const withKey = (text) => (getKey() ? text : "");
  const params = request.map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`).join(", ");
  return [
    make("h2", { textContent: "Reproduce" }),
    make("div", { className: "row" }, make("span", { className: "small", textContent: "Download" }), ...downloads),
    make("p", { className: "small", textContent: "The address of this page reproduces these images." }),
    codeSample("curl", `curl -X POST${withKey(" -H 'Authorization: Bearer KEY'")} '${base}${urlFor("png")}' -o '${nameOf("png")}'`),
    codeSample("Python", `import httpx\n\nresponse = httpx.post("${base}generate", params={${params}, "format": "png"}${withKey(', headers={"Authorization": "Bearer KEY"}')})\nopen("${nameOf("png")}", "wb").write(response.content)`),
  ];
}
