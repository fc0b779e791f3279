// View "Compare": the same request to several models, side by side.

import { buildUrl, requestBlobUrl } from "./api.js";
import { fillCards, modelCard } from "./cards.js";
import { countSlider, digitButtons, formValues, panel, runForm, seedField } from "./controls.js";
import { announce, make, showView } from "./page.js";
import { countSettings, oneOf, readSetting, setAddress } from "./settings.js";

const DEFAULT_MODELS = ["pca", "vae", "gan", "cgan", "flow"];

export default function showCompare(catalog) {
  const isModel = oneOf(catalog.models.map(({ name }) => name), "no such model");
  const named = Array.from({ length: countSettings("models") }, (_, index) => readSetting("models", isModel, null, index));
  const selected = new Set(named.some(Boolean) ? named : DEFAULT_MODELS);
  const boxes = catalog.models.map(({ name, takes }) => make("label", {},
    make("input", { type: "checkbox", name: "models", value: name, checked: selected.has(name) }),
    `${name}${takes.digit ? "" : " (unconditional)"}`));
  const conditional = catalog.models.find(({ takes }) => takes.digit);
  const form = make("form", {},
    panel("Models", make("div", { className: "models" }, ...boxes)),
    conditional ? digitButtons("Digit", conditional.takes.digit, { none: "any" }) : null,
    countSlider("Images per model"),
    seedField(),
    make("button", { className: "primary", textContent: "Generate" }));
  const box = make("div", { className: "cards" });
  showView(form, make("div", { className: "result" }, box));

  runForm(form, async (signal) => {
    const fields = formValues(form);
    const { digit, n, seed } = Object.fromEntries(fields);
    const names = new FormData(form).getAll("models");
    setAddress([["view", "compare"], ...fields]);
    const cards = catalog.models.filter(({ name }) => names.includes(name)).map((model) => [model, modelCard(model)]);
    box.replaceChildren(...(cards.length ? cards.map(([, card]) => card) : [make("p", { textContent: "Select at least one model." })]));
    await fillCards(cards, async (model, card) => {
      const params = [["model", model.name], ["digit", model.takes.digit && digit], ["n", n], ["seed", seed], ["format", "png"]];
      const src = await requestBlobUrl(buildUrl("generate", params), { signal });
      card.querySelector("h2").after(make("img", { src, alt: `${n} samples of ${model.name}` }));
    });
    announce(`${cards.length} models have generated images`);
  });
}
