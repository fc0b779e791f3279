// View "Compare": the same request to several models, side by side.

import { buildUrl, loadable, requestJson } from "./api.js";
import { digitButtons, formValues, modelCard, seedField, slider } from "./controls.js";
import { addressParams, announce, make, setAddress, showView, withErrors } from "./page.js";

const DEFAULT_MODELS = ["pca", "vae", "gan", "cgan", "flow"];
const MAX_IMAGES = 36;

export default function showCompare(catalog) {
  const params = addressParams();
  const named = params.getAll("models");
  const selected = new Set(named.length ? named : DEFAULT_MODELS);
  const boxes = catalog.models.map(({ name, takes }) => make("label", {},
    make("input", { type: "checkbox", name: "models", value: name, checked: selected.has(name) }),
    `${name}${takes.digit ? "" : " (unconditional)"}`));
  const conditional = catalog.models.find(({ takes }) => takes.digit);
  const form = make("form", {},
    make("fieldset", {}, make("legend", { textContent: "Models" }), make("div", { className: "models" }, ...boxes)),
    conditional ? digitButtons("digit", "Digit", conditional.takes.digit, params.get("digit")) : null,
    slider("n", "Images per model", { minimum: 1, maximum: MAX_IMAGES }, params.get("n") ?? 16),
    seedField(),
    make("button", { className: "primary", textContent: "Generate" }));
  const cards = make("div", { className: "cards" });
  showView(form, make("div", { className: "result" }, cards));
  form.onsubmit = (event) => {
    event.preventDefault();
    const fields = formValues(form);
    const { digit, n, seed } = Object.fromEntries(fields);
    const names = new FormData(form).getAll("models");
    setAddress([["view", "compare"], ...fields]);
    withErrors(async () => {
      const models = catalog.models.filter(({ name }) => names.includes(name));
      cards.replaceChildren(...await Promise.all(models.map((model) => sampleCard(model, { digit, n, seed }))));
      announce(`${models.length} models have generated images`);
    });
  };
  form.requestSubmit();
}

/** The model's card with a grid of its samples. */
async function sampleCard(model, { digit, n, seed }) {
  const { manifest } = await requestJson(`models/${model.name}`);
  const params = [["model", model.name], ["digit", model.takes.digit && digit], ["n", n], ["seed", seed], ["format", "png"]];
  const card = modelCard(model, manifest);
  card.querySelector("h2").after(make("img", { src: await loadable(buildUrl("generate", params)), alt: `${n} samples of ${model.name}` }));
  return card;
}
