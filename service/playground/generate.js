// View "Generate": a grid of samples from one model, which appear as they are generated.

import { buildUrl, getKey, pngUrl, streamEvents } from "./api.js";
import { modelCard } from "./cards.js";
import { countSlider, formValues, modelSelect, readModel, runForm, samplingControls, seedField } from "./controls.js";
import { describeLabel, labelField, labelWord, readLabel } from "./labels.js";
import { announce, cancelTask, capitalize, codeSample, fileName, make, setDownload, showShape, showView } from "./page.js";
import { setAddress } from "./settings.js";

export default function showGenerate(catalog) {
  const model = readModel(catalog, catalog.models, catalog.defaults.conditional);
  const { label } = model.takes;
  const cancel = make("button", { type: "button", textContent: "Cancel", disabled: true });
  const form = make("form", {},
    modelSelect(catalog.models, model, () => showGenerate(catalog)),
    label ? labelField(capitalize(labelWord(model)), label, readLabel(label), { any: "any" }) : null,
    countSlider("Images"),
    seedField(),
    samplingControls(model),
    make("div", { className: "row" }, make("button", { className: "primary", textContent: "Generate" }), cancel));
  const grid = make("div", { className: "grid", role: "group", "aria-label": "Generated images" });
  const progress = make("progress", { value: 0, max: 1 });
  progress.setAttribute("aria-label", "Progress");
  const status = make("p", { className: "small", textContent: "No images generated yet." });
  const links = make("section", { className: "card", hidden: true });
  showView(form, make("div", { className: "result" },
    make("section", { className: "card" }, grid, progress, status), links, modelCard(model)));

  cancel.onclick = () => {
    cancelTask();
    status.textContent = "Cancelled. The service has stopped generating these images.";
    cancel.disabled = true;
  };
  runForm(form, async (signal) => {
    const request = formValues(form);
    setAddress([["view", "generate"], ...request]);
    cancel.disabled = false;
    try {
      await generate(model, request, signal, { grid, progress, status, links });
    } catch (error) {
      if (!signal.aborted) status.textContent = "The request failed.";
      throw error;
    } finally {
      if (!signal.aborted) cancel.disabled = true;
    }
  });
}

/** Send the request, and show each image from its first preview on. */
async function generate(model, request, signal, { grid, progress, status, links }) {
  const count = Number(Object.fromEntries(request).n);
  const cells = Array.from({ length: count }, (_, i) => make("img", { className: "pending", alt: `image ${i + 1}, in progress` }));
  grid.replaceChildren(...cells);
  grid.className = count === 1 ? "grid single" : "grid";
  showShape(grid, model);
  links.hidden = true;
  progress.value = 0;
  status.textContent = "Waiting for the service…";
  const startedAt = performance.now();
  for await (const { name, data } of streamEvents(buildUrl("generate", [...request, ["previews", true]]), { method: "POST", signal })) {
    if (name === "progress") {
      progress.value = data.gone / data.links;
      const queued = !data.gone && data.ahead ? `${data.ahead} images ahead in the queue; ` : "";
      status.textContent = `${queued}about ${data.seconds.toFixed(1)} s left`;
    } else if (name === "preview") {
      cells[data.index].src = pngUrl(data.png);
    } else if (name === "image") {
      cells[data.index].src = pngUrl(data.png);
      cells[data.index].alt = data.class === null ? `generated image ${data.index + 1}` : `generated ${describeLabel(model, data.class)}`;
      cells[data.index].classList.remove("pending");
    }
  }
  progress.value = 1;
  const seconds = ((performance.now() - startedAt) / 1000).toFixed(2);
  status.textContent = `${count} ${count === 1 ? "image" : "images"} in ${seconds} s`;
  announce(status.textContent);
  links.replaceChildren(...reproduceLinks(model, request));
  links.hidden = false;
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
