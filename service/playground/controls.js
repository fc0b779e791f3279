// Form controls, built from the parameters that GET /models lists for a model.

import { addressParams, make, randomSeed } from "./page.js";

const LABELS = { steps: "Steps", sampler: "Sampler", prior: "Prior", guidance: "Guidance scale" };
const MAX_STEPS = 100;
const MAX_GUIDANCE = 5;

/** The model that the page address names, else the default conditional model, else the first. */
export function selectedModel(catalog) {
  const find = (wanted) => catalog.models.find(({ name }) => name === wanted);
  return find(addressParams().get("model")) ?? find(catalog.defaults.conditional) ?? catalog.models[0];
}

/** A labelled list of models. `onChange` receives the model that the user selects. */
export function modelSelect(models, selected, onChange) {
  const select = make("select", { id: "model" });
  for (const model of models) {
    select.append(make("option", { value: model.name, textContent: `${model.name}: ${model.title}`, selected: model === selected }));
  }
  select.onchange = () => onChange(models.find((model) => model.name === select.value));
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

/** A number field with a button that sets it to a random seed. */
export function seedField(name = "seed", label = "Seed") {
  const input = make("input", { type: "number", id: name, name, min: 0, max: 2 ** 53, required: true });
  input.value = addressParams().get(name) ?? randomSeed();
  const button = make("button", { type: "button", textContent: "Random" });
  button.setAttribute("aria-label", `Random ${label.toLowerCase()}`);
  button.onclick = () => {
    input.value = randomSeed();
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  return make("div", {}, make("label", { for: name, textContent: label }), make("div", { className: "row" }, input, button));
}

/** One button per digit, of which one is selected; `optional` adds a button for any digit. */
export function digitButtons(name, label, digit, selected, optional = true) {
  const box = make("div", { className: "digits" });
  const choices = digit.one_of.map((value) => [String(value), digit.names[value] ?? value]);
  if (optional) choices.push(["", "any"]);
  for (const [value, text] of choices) {
    const input = make("input", { type: "radio", name, value, checked: value === (selected ?? "") });
    box.append(make("label", {}, input, make("span", { textContent: text })));
  }
  return make("fieldset", {}, make("legend", { textContent: label }), box);
}

/** Controls for the sampling parameters that the model takes: steps, sampler or prior, guidance scale. */
export function samplingControls(model) {
  const params = addressParams();
  return Object.entries(model.takes).filter(([name]) => name in LABELS).map(([name, parameter]) => {
    const value = params.get(name) ?? parameter.default;
    if (parameter.one_of) {
      const options = parameter.one_of.map((choice) => make("option", { value: choice, textContent: choice, selected: choice === value }));
      return make("div", {}, make("label", { for: name, textContent: LABELS[name] }), make("select", { id: name, name }, ...options));
    }
    const [highest, step] = name === "steps" ? [MAX_STEPS, 1] : [MAX_GUIDANCE, 0.1];
    const limits = { minimum: parameter.minimum, maximum: Math.min(parameter.maximum, highest), step };
    return slider(name, LABELS[name], limits, value);
  });
}

/** The non-empty fields of a form, as pairs of names and values. */
export const formValues = (form) => [...new FormData(form)].filter(([, value]) => value !== "");

/** A card that describes a model: title, objective, quality figures, limitations, paper. */
export function modelCard(model, manifest) {
  const metrics = manifest?.metrics ?? {};
  const figures = [
    ["MNIST-CNN-FD", metrics.mnist_cnn_fd, 3], ["precision", metrics.precision, 2], ["recall", metrics.recall, 2],
    ["coverage", metrics.coverage, 2], ["label accuracy", metrics.accuracy, 3],
  ].filter(([, value]) => value !== undefined);
  const list = figures.map(([name, value, places]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value.toFixed(places) })));
  return make("section", { className: "card" },
    make("h2", { textContent: model.title }),
    make("p", { className: "formula", textContent: model.formula }),
    make("dl", {}, ...list),
    model.caveat ? make("p", { className: "caveat", textContent: `Limitations: ${model.caveat}` }) : null,
    make("p", { className: "small", textContent: model.paper }));
}
