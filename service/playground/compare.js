// View "Compare": the same request to several models, side by side.

import { buildUrl, requestBlobUrl } from "./api.js";
import { fillCards, modelCard } from "./cards.js";
import { countSlider, currentGroup, formValues, panel, runForm, seedField } from "./controls.js";
import { groupByData } from "./datasets.js";
import { NONE, describeLabel, findLabel, labelField, labelWord, readLabel } from "./labels.js";
import { announce, make, showView } from "./page.js";
import { countSettings, oneOf, readSetting, setAddress } from "./settings.js";

const DEFAULT_MODELS = ["pca", "vae", "gan", "cgan", "flow"];

export default function showCompare(catalog) {
  const selected = readSelection(catalog.models);
  const labels = make("div", {}, ...labelFields(catalog.models.filter(({ name }) => selected.has(name))));
  const form = make("form", {},
    panel("Models", modelBoxes(catalog.models, selected)),
    labels,
    countSlider("Images per model"),
    seedField(),
    make("button", { className: "primary", textContent: "Generate" }));
  const warning = make("p", { className: "fault", hidden: true });
  const box = make("div", { className: "result" });
  showView(form, make("div", { className: "result" }, warning, box));

  const chosen = () => {
    const names = new FormData(form).getAll("models");
    return catalog.models.filter(({ name }) => names.includes(name));
  };
  form.addEventListener("change", ({ target }) => {
    if (target.name === "models") labels.replaceChildren(...labelFields(chosen()));
  });
  runForm(form, async (signal) => {
    const fields = formValues(form);
    const { label, n, seed } = Object.fromEntries(fields);
    setAddress([["view", "compare"], ...fields]);
    const models = chosen();
    const groups = groupByData(catalog.models)
      .map(({ models: members, ...group }) => ({ ...group, cards: members.filter((model) => models.includes(model)).map((model) => [model, modelCard(model)]) }))
      .filter(({ cards }) => cards.length);
    warning.hidden = groups.length < 2;
    warning.textContent = `These models were trained on different data (${groups.map(({ id }) => id).join(", ")}). Neither their images nor their figures can be compared across the data.`;
    box.replaceChildren(...groups.flatMap(({ title, cards }) => [
      ...(groups.length > 1 ? [make("h2", { textContent: title })] : []),
      make("div", { className: "cards" }, ...cards.map(([, card]) => card))]));
    const cards = groups.flatMap((group) => group.cards);
    if (!cards.length) box.replaceChildren(make("p", { textContent: "Select at least one model." }));
    await fillCards(cards, async (model, card) => {
      const taken = label && model.takes.label && findLabel(model.takes.label, label);
      const params = [["model", model.name], ["label", taken], ["n", n], ["seed", seed], ["format", "png"]];
      const src = await requestBlobUrl(buildUrl("generate", params), { signal });
      card.querySelector("h2").after(
        make("img", { src, alt: `${n} samples of ${model.name}${taken ? `: ${describeLabel(model, taken)}` : ""}` }),
        ...(label && !taken ? [make("p", { className: "small note", textContent: lackOf(model, label) })] : []));
    });
    announce(`${cards.length} models have generated images`);
  });
}

/** The names of the models that the settings select; by default a few of one data set. */
function readSelection(models) {
  const isModel = oneOf(models.map(({ name }) => name), "no such model");
  const named = Array.from({ length: countSettings("models") }, (_, index) => readSetting("models", isModel, null, index));
  if (named.some(Boolean)) return new Set(named);
  const names = currentGroup(models).models.map(({ name }) => name);
  const defaults = names.filter((name) => DEFAULT_MODELS.includes(name));
  return new Set(defaults.length ? defaults : names.slice(0, DEFAULT_MODELS.length));
}

/** A box to check for each model, by their data. */
function modelBoxes(models, selected) {
  const groups = groupByData(models);
  return make("div", { className: "models" }, ...groups.map(({ title, models: members }) => {
    const boxes = members.map(({ name, takes }) => make("label", {},
      make("input", { type: "checkbox", name: "models", value: name, checked: selected.has(name) }),
      `${name}${takes.label ? "" : " (unconditional)"}`));
    return make("fieldset", {}, groups.length > 1 ? make("legend", { textContent: title }) : null, ...boxes);
  }));
}

/** A field for the labels that any of the models takes, if there is one. */
function labelFields(models) {
  const conditional = models.filter(({ takes }) => takes.label);
  if (!conditional.length) return [];
  const label = {
    one_of: [...new Set(conditional.flatMap(({ takes }) => takes.label.one_of))],
    none: conditional.some(({ takes }) => takes.label.none),
  };
  const word = conditional.every((model) => labelWord(model) === "digit") ? "Digit" : "Label";
  return [labelField(word, label, readLabel(label), { any: "any" })];
}

/** Why the images of a model are not of the label. */
function lackOf({ takes: { label } }, text) {
  if (!label) return "Takes no label: images of any class.";
  return `${text === NONE ? "Always takes a label" : `Has no class ${text}`}: images of any class.`;
}
