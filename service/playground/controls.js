// Form controls, built from the parameters that GET /models lists for a model. Each reads its value from the settings.

import { groupByData, groupOf } from "./datasets.js";
import { make, runTask, showNotice } from "./page.js";
import { multipleOf, oneOf, readSetting, setSetting, setSettings, wholeNumber } from "./settings.js";

const LABELS = { steps: "Steps", sampler: "Sampler", prior: "Prior", guidance: "Guidance scale" };
const MAX_STEPS = 100; // of the slider; the address may name more
const MAX_GUIDANCE = 5;
const MAX_IMAGES = 64;
export const MAX_SEED = 2n ** 63n - 1n;
const SUBMIT_INTERVAL = 200; // milliseconds between requests, at least: a key that is held changes a setting more often

/** The name of a model in the page. Two models of one family have the same title. */
export const modelLabel = (model) => `${model.name}: ${model.title}`;

/**
 * The one of the view's `models` that the settings name.
 *
 * If they name a model that the view lacks, one of the same data; of these the one called `preferred`, if it is there.
 */
export function readModel(catalog, models, preferred) {
  const name = readSetting("model", oneOf(models.map((model) => model.name), "no such model in this view"));
  const { models: related } = currentGroup(catalog.models);
  const candidates = [related.filter((model) => models.includes(model)), models].find(({ length }) => length);
  const find = (wanted, among) => among.find((model) => model.name === wanted);
  return find(name, models) ?? find(preferred, candidates) ?? candidates[0];
}

/** The group of `models` with the model that the settings name. */
export function currentGroup(models) {
  const isModel = oneOf(models.map(({ name }) => name), "no such model in this view");
  return groupOf(groupByData(models), readSetting("model", isModel));
}

/** A labelled list of models, by their data. `show` shows the view again, for the model that the user has selected. */
export function modelSelect(models, selected, show) {
  const groups = groupByData(models);
  const select = make("select", { id: "model", name: "model" }, ...groups.flatMap(({ title, models: members }) => {
    const options = members.map((model) =>
      make("option", { value: model.name, textContent: modelLabel(model), selected: model === selected }));
    return groups.length > 1 ? [make("optgroup", { label: title }, ...options)] : options;
  }));
  select.onchange = async (event) => {
    event.stopPropagation(); // from the form, which `show` replaces
    showNotice("");
    // A default value is not the user's choice: the next model has defaults of its own.
    for (const [name, parameter] of Object.entries(selected.takes)) {
      if (readSetting(name, () => null) === String(parameter.default)) setSettings(name, []);
    }
    setSetting("model", select.value);
    await show();
    document.getElementById("model").focus();
  };
  return make("div", {}, make("label", { for: "model", textContent: "Model" }), select);
}

/** A slider that shows its value in its label. */
export function slider(name, label, limits, value) {
  const input = make("input", { type: "range", id: name, name, min: limits.minimum, max: limits.maximum, step: limits.step ?? 1 });
  input.value = value;
  const output = make("output", { for: name, textContent: input.value });
  input.addEventListener("input", () => (output.textContent = input.value));
  return make("div", {}, make("label", { for: name }, `${label}: `, output), input);
}

/** A slider for the number of images. */
export const countSlider = (label) =>
  slider("n", label, { minimum: 1, maximum: MAX_IMAGES }, readSetting("n", wholeNumber(1, MAX_IMAGES), 16));

/** A number field for seed `index`, with a button that sets it to a random seed. */
export function seedField(label = "Seed", index = 0) {
  const check = wholeNumber(0, MAX_SEED);
  const old = index ? readSetting("end", check) : undefined; // the name of the second seed before version 0.2
  const seed = readSetting("seed", check, old ?? randomSeed(), index);
  setSetting("seed", seed, index);
  const id = `seed-${index}`;
  const input = make("input", { type: "number", id, name: "seed", min: 0, max: MAX_SEED, required: true, value: seed });
  input.dataset.index = index;
  const button = make("button", { type: "button", textContent: "Random" });
  button.setAttribute("aria-label", `Random ${label.toLowerCase()}`);
  button.onclick = () => {
    input.value = randomSeed();
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  return make("div", {}, make("label", { for: id, textContent: label }), make("div", { className: "row" }, input, button));
}

export const randomSeed = () => String(Math.floor(Math.random() * 2 ** 32));

const panels = new Map();

/** A panel that can be collapsed. On a phone it begins collapsed, so that the images are on the screen. */
export function panel(title, ...children) {
  const open = panels.get(title) ?? !matchMedia("(max-width: 48rem)").matches;
  const details = make("details", { open }, make("summary", { textContent: title }), ...children);
  details.ontoggle = () => panels.set(title, details.open);
  return details;
}

/** A panel with controls for the sampling parameters that the model takes: steps, sampler or prior, guidance scale. */
export function samplingControls(model) {
  const controls = Object.entries(model.takes).filter(([name]) => name in LABELS).map(([name, parameter]) => {
    if (parameter.one_of) {
      const value = readSetting(name, oneOf(parameter.one_of), parameter.default);
      const options = parameter.one_of.map((choice) => make("option", { value: choice, textContent: choice, selected: choice === value }));
      return make("div", {}, make("label", { for: name, textContent: LABELS[name] }), make("select", { id: name, name }, ...options));
    }
    const { minimum, maximum } = parameter;
    const [highest, step] = name === "steps" ? [MAX_STEPS, 1] : [MAX_GUIDANCE, 0.1];
    const value = readSetting(name, multipleOf(step, minimum, maximum), parameter.default);
    return slider(name, LABELS[name], { minimum, maximum: Math.min(maximum, Math.max(highest, value)), step }, value);
  });
  return controls.length ? panel("Sampling", ...controls) : null;
}

/** Run `task(signal)` when the user submits the form or changes a setting in it, which is remembered, and now. */
export function runForm(form, task) {
  let timer = null, submittedAt = -Infinity;
  form.onsubmit = (event) => {
    event.preventDefault();
    clearTimeout(timer);
    submittedAt = performance.now();
    runTask(task);
  };
  form.onchange = ({ target }) => {
    if (!target.name) return;
    showNotice("");
    const { setting = target.name, index = 0 } = target.dataset;
    if (target.type === "checkbox") setSettings(setting, new FormData(form).getAll(setting));
    else if (target.checkValidity()) setSetting(setting, target.value, index);
    clearTimeout(timer);
    timer = setTimeout(() => form.isConnected && form.requestSubmit(), submittedAt + SUBMIT_INTERVAL - performance.now());
  };
  form.requestSubmit();
}

/** The non-empty fields of a form, as pairs of names and values. */
export const formValues = (form) => [...new FormData(form)].filter(([, value]) => value !== "");
