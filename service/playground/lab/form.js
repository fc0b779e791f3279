// The form of the setup: data, models and their parameters, built from the catalog.

import { make } from "../page.js";
import { DATA, MAX_SEED, MODELS } from "./engine/catalog.js";
import { checkOf, findData, findModel, makeSetup, needsData, parse, PREFIXES, words } from "./setup.js";

const SECOND = { gan: "wgan_gp" }; // the model that is compared with this one at first; else "gan"
const OPEN = "Model’s parameters";
const panels = new Map(); // whether the user has opened each panel

/**
 * The form of the setup that `getSetup()` returns.
 *
 * `onChange(setup, isRebuilt)` receives a changed setup; `isRebuilt` is true if it needs a form of other fields.
 * `onView(setup, index, values)` receives one that differs in parameters of model `index` that need no new training. `drawing` has
 * `undo()` and `clear()` for drawn points.
 */
export function setupForm(getSetup, { onChange, onView, drawing }) {
  const setup = getSetup();
  const form = make("form", { "aria-label": "Settings", onsubmit: (event) => event.preventDefault() });
  const change = (changes, isRebuilt = true) => onChange({ ...getSetup(), ...changes }, isRebuilt);
  const compare = make("input", { type: "checkbox", id: "compare", checked: setup.models.length > 1 });
  compare.onchange = () => {
    const [first] = getSetup().models;
    change({ models: compare.checked ? [first, newModel(SECOND[first.name] ?? "gan")] : [first] });
  };
  form.append(dataFields(setup, getSetup, change, drawing),
    make("label", { className: "switch" }, compare, "Compare two models"),
    ...setup.models.map((model, index) => modelFields(model, index, getSetup, change, onView)));
  return form;
}

const newModel = (name) => makeSetup({ models: [{ name }] }).models[0];

function dataFields(setup, getSetup, change, drawing) {
  const legend = make("legend", { textContent: "Data" });
  const seed = seedField(setup.seed, change);
  if (!needsData(setup)) return make("fieldset", {}, legend, make("p", { className: "small", textContent: "This game has no data." }), seed);
  const setValue = (name, value) => change({ source: { ...getSetup().source, [name]: value } }, false);
  return make("fieldset", {}, legend,
    selectField("data", "Data", DATA, setup.data, (data) => change({ ...makeSetup({ data, models: [] }), ...keep(getSetup()), data })),
    setup.data === "drawn" ? drawingFields(drawing) : null,
    parameterPanel("Data’s parameters", findData(setup.data).parameters, setup.source, "", setValue), seed);
}

/** What stays when the data changes. */
const keep = ({ points, seed, speed, layers, models }) => ({ points, seed, speed, layers, models });

const drawingFields = ({ undo, clear }) => make("div", {},
  make("p", { className: "small", textContent: "Draw on the plane with mouse, pen or finger. Or go there with Tab, move the cross with the arrows, and press Enter." }),
  make("div", { className: "row" },
    make("button", { type: "button", textContent: "Undo", onclick: undo, "aria-label": "Undo the last stroke" }),
    make("button", { type: "button", textContent: "Clear", onclick: clear, "aria-label": "Clear all points" })));

function modelFields(model, index, getSetup, change, onView) {
  const title = ["Model", "Second model"][index];
  const { parameters } = findModel(model.name);
  const withModel = (changed) => ({ models: getSetup().models.map((each, i) => (i === index ? changed : each)) });
  const setValue = (name, value) => {
    const { name: kind, values } = getSetup().models[index];
    const changed = { name: kind, values: { ...values, [name]: value } };
    if (parameters.find((parameter) => parameter.name === name).view) onView({ ...getSetup(), ...withModel(changed) }, index, { [name]: value });
    else change(withModel(changed), false);
  };
  return make("fieldset", {}, make("legend", { textContent: title }),
    selectField(`${PREFIXES[index]}model`, title, MODELS, model.name, (name) => change(withModel(newModel(name)))),
    parameterPanel(`${title}’s parameters`, parameters, model.values, PREFIXES[index], setValue));
}

function selectField(id, label, entries, value, onSelect) {
  const select = make("select", { id, name: id }, ...entries.map(({ name, title }) =>
    make("option", { value: name, textContent: title, selected: name === value })));
  select.onchange = () => onSelect(select.value);
  return make("div", {}, make("label", { for: id, textContent: label }), select);
}

/** A panel that can be collapsed, with a field for each parameter. Only the first model's begins open, and not on a phone. */
function parameterPanel(title, parameters, values, prefix, onValue) {
  if (!parameters.length) return null;
  const open = panels.get(title) ?? (title === OPEN && !matchMedia("(max-width: 48rem)").matches);
  const details = make("details", { open }, make("summary", { textContent: title }),
    make("div", { className: "parameters" }, ...parameters.map((parameter) =>
      parameterField(parameter, values[parameter.name], prefix, (value) => onValue(parameter.name, value)))));
  details.ontoggle = () => panels.set(title, details.open);
  return details;
}

/** A field of one parameter, with its help. A value that is not allowed is refused with a message, and has no effect. */
function parameterField(parameter, value, prefix, onValue) {
  const { name, title, kind, values, min, max, step, help } = parameter;
  const id = prefix + name;
  const properties = { id, name: id, "aria-describedby": `${id}-help` };
  const field = kind === "choice"
    ? make("select", properties, ...values.map((each) => make("option", { value: each, textContent: words(each), selected: each === value })))
    : make("input", { ...properties, type: "number", min, max, step: step === 1 ? 1 : "any", required: true, value });
  field.onchange = () => {
    const problem = checkOf(parameter)(field.value);
    field.setCustomValidity?.(problem ? `${title}: ${problem}` : "");
    if (problem) field.reportValidity();
    else onValue(parse(parameter, field.value));
  };
  return make("div", {}, make("label", { for: id, textContent: title }), field,
    make("p", { id: `${id}-help`, className: "small", textContent: help }));
}

function seedField(seed, change) {
  const parameter = { kind: "number", min: 0, max: MAX_SEED, step: 1 };
  const input = make("input", { type: "number", id: "seed", name: "seed", min: 0, max: MAX_SEED, required: true, value: seed });
  input.onchange = () => (checkOf(parameter)(input.value) ? input.reportValidity() : change({ seed: Number(input.value) }, false));
  const random = make("button", { type: "button", textContent: "Random", "aria-label": "Random seed" });
  random.onclick = () => change({ seed: Math.floor(Math.random() * MAX_SEED) });
  return make("div", {}, make("label", { for: "seed", textContent: "Seed" }), make("div", { className: "row" }, input, random));
}
