// Labels: the classes of a model by name, as buttons, or in a search field where there are many.
// A `label` is `takes.label` of a model: `one_of`, the names of its classes, and `none`, whether it also takes "none".

import { make } from "./page.js";
import { readSetting } from "./settings.js";

const MAX_BUTTONS = 12;
const NEAREST = 5; // names that a message lists
const SIMILAR = 0.3;
/** The label of an image without one. */
export const NONE = "none";

/** What the page calls a label of the model. */
export const labelWord = (model) => (model.takes.digit?.one_of.length <= 10 ? "digit" : "label");

/** A label of the model in words: digit 7, or the name of the class in quotes. */
export const describeLabel = (model, name) => (labelWord(model) === "digit" ? `digit ${name}` : `“${name}”`);

/** The name of the class that `text` means, in any case if only one class fits; "none" for no label; null if there is no such class. */
export function findLabel(label, text) {
  if (label.one_of.includes(text) || (label.none && text === NONE)) return text;
  const found = label.one_of.filter((name) => fold(name) === fold(text));
  return found.length === 1 ? found[0] : null;
}

const fold = (name) => name.normalize("NFC").toLowerCase();

/** What is wrong with `text` as a label, or null. */
function labelProblem(label, text) {
  if (findLabel(label, text) !== null) return null;
  if (label.one_of.length <= MAX_BUTTONS) return `not one of ${label.one_of.join(", ")}`;
  const nearest = label.one_of.map((name) => [similarity(name, text), name])
    .filter(([share]) => share > SIMILAR).toSorted(([a], [b]) => b - a).slice(0, NEAREST).map(([, name]) => name);
  return nearest.length ? `no such class; the nearest are: ${nearest.join(", ")}` : `none of the ${label.one_of.length} classes`;
}

/** The share of pairs of letters that two names have in common. */
function similarity(a, b) {
  const [one, other] = [pairs(fold(a)), pairs(fold(b))];
  return (2 * one.filter((pair) => other.includes(pair)).length) / (one.length + other.length);
}

const pairs = (text) => Array.from({ length: text.length + 1 }, (_, i) => ` ${text} `.slice(i, i + 2));

/** The label that the setting `name` has at `index`, else `fallback`. */
export function readLabel(label, fallback = "", { name = "label", index = 0 } = {}) {
  const text = readSetting(name, (value) => labelProblem(label, value), fallback, index);
  return text && findLabel(label, text);
}

/** A field for the setting `name` at `index`, in which `selected` is selected. `any` names the choice of no label, ""; without it there is none. */
export function labelField(legend, label, selected, { name = "label", index = 0, any = null } = {}) {
  const field = { name: index ? `${name}-${index}` : name, setting: name, index };
  const choices = [...(any ? [["", any]] : []), ...(label.none ? [[NONE, NONE]] : [])];
  const control = label.one_of.length <= MAX_BUTTONS ? labelButtons : labelSearch;
  return make("fieldset", {}, make("legend", { textContent: legend }), ...control(label, selected, choices, field));
}

/** One button per class, and per other choice. */
function labelButtons(label, selected, choices, { name, setting, index }) {
  const hasWords = label.one_of.some((text) => text.length > 2);
  const button = ([value, text]) => {
    const input = make("input", { type: "radio", name, value, checked: value === selected });
    Object.assign(input.dataset, { setting, index });
    return make("label", {}, input, make("span", { textContent: text }));
  };
  return [make("div", { className: hasWords ? "labels words" : "labels" },
    ...label.one_of.map((text) => button([text, text])), make("div", {}, ...choices.map(button)))];
}

/** A field that suggests classes while the user types and takes no unknown one, and a button per other choice. */
function labelSearch(label, selected, choices, { name, setting, index }) {
  const any = choices.find(([value]) => value === "")?.[1];
  const input = make("input", { type: "search", id: name, name, value: selected, required: any === undefined, autocomplete: "off",
    placeholder: `${any ?? "one"} of ${label.one_of.length} classes`, list: `${name}-classes`,
    "aria-label": "Name of a class", "aria-describedby": `${name}-problem` });
  Object.assign(input.dataset, { setting, index });
  const message = make("p", { className: "fault small", id: `${name}-problem` });
  input.addEventListener("change", () => {
    const text = input.value.trim();
    const problem = text && labelProblem(label, text);
    input.value = problem ? text : text && findLabel(label, text);
    message.textContent = problem ? `${text}: ${problem}` : "";
    input.setCustomValidity(message.textContent);
  });
  const buttons = choices.map(([value, text]) => {
    const button = make("button", { type: "button", textContent: text });
    button.onclick = () => {
      input.value = value;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    };
    return button;
  });
  const options = label.one_of.map((value) => make("option", { value }));
  return [make("div", { className: "row" }, input, ...buttons), make("datalist", { id: `${name}-classes` }, ...options), message];
}
