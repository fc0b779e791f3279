// The controls of a model, built from what GET /models says that it takes.

import { make, newSeed, words } from "./page.js";

const HELP = {
  steps: "steps of its chain",
  sampler: "how the chain is walked",
  prior: "what codes are drawn from",
  guidance: "strength of the digit",
};

/** A labelled list of the names of `models`; `changed` is called with the model that was chosen. */
export function modelChoice(models, chosen, changed) {
  const select = make("select", { id: "model" });
  for (const model of models) {
    select.append(make("option", { value: model.name, textContent: `${model.name}: ${model.title}`, selected: model === chosen }));
  }
  select.onchange = () => changed(models.find((model) => model.name === select.value));
  return make("div", {}, make("label", { for: "model", textContent: "Model" }), select);
}

/** A slider with its value beside its name. */
export function slider(name, text, limits, value) {
  const input = make("input", { type: "range", id: name, name, min: limits.minimum, max: limits.maximum, step: limits.step ?? 1 });
  input.value = value;
  const output = make("output", { for: name, textContent: input.value });
  input.addEventListener("input", () => (output.textContent = input.value));
  return make("div", {}, make("label", { for: name }, `${text}: `, output), input);
}

/** A number that can be thrown like dice. */
export function seedField(name = "seed", text = "Seed") {
  const input = make("input", { type: "number", id: name, name, min: 0, max: 2 ** 53, required: true });
  input.value = words().get(name) ?? newSeed();
  const dice = make("button", { type: "button", textContent: "New" });
  dice.setAttribute("aria-label", `New ${text.toLowerCase()}`);
  dice.onclick = () => {
    input.value = newSeed();
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  return make("div", {}, make("label", { for: name, textContent: text }), make("div", { className: "row" }, input, dice));
}

/** Buttons of digits, of which one, or with `any` none, is chosen. */
export function digits(name, text, takes, chosen, any = true) {
  const box = make("div", { className: "digits" });
  const choices = takes.one_of.map((digit) => [String(digit), takes.names[digit] ?? digit]);
  if (any) choices.push(["", "any"]);
  for (const [value, label] of choices) {
    const input = make("input", { type: "radio", name, value, checked: value === (chosen ?? "") });
    box.append(make("label", {}, input, make("span", { textContent: label })));
  }
  return make("fieldset", {}, make("legend", { textContent: text }), box);
}

/** What the model leaves to choose of how it draws: its steps, sampler or prior, and guidance. */
export function plan(model) {
  const said = words();
  return Object.entries(model.takes).filter(([name]) => name in HELP).map(([name, takes]) => {
    if (takes.one_of) {
      const select = make("select", { id: name, name });
      for (const value of takes.one_of) {
        select.append(make("option", { value, textContent: value, selected: value === (said.get(name) ?? takes.default) }));
      }
      return make("div", {}, make("label", { for: name, textContent: HELP[name] }), select);
    }
    const whole = Number.isInteger(takes.maximum) && name === "steps";
    const limits = { minimum: takes.minimum, maximum: Math.min(takes.maximum, whole ? 100 : 5), step: whole ? 1 : 0.1 };
    return slider(name, HELP[name], limits, said.get(name) ?? takes.default);
  });
}

/** Names and values of a form, as pairs. */
export const values = (form) => [...new FormData(form)].filter(([, value]) => value !== "");

/** What a model is: title, formula, figures, and what goes wrong. */
export function card(model, manifest) {
  const metrics = manifest?.metrics ?? {};
  const figures = [
    ["MNIST-CNN-FD", metrics.mnist_cnn_fd, 3], ["precision", metrics.precision, 2], ["recall", metrics.recall, 2],
    ["coverage", metrics.coverage, 2], ["digit right", metrics.label_accuracy, 3],
  ].filter(([, value]) => value !== undefined);
  const list = figures.map(([name, value, places]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value.toFixed(places) })));
  return make("section", { className: "card" },
    make("h2", { textContent: model.title }),
    make("p", { className: "formula", textContent: model.formula }),
    make("dl", {}, ...list),
    model.caveat ? make("p", { className: "caveat", textContent: `What goes wrong: ${model.caveat}` }) : null,
    make("p", { className: "small", textContent: model.paper }));
}
