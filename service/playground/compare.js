// Compare: the same request on several models, side by side.

import { read, source, url } from "./api.js";
import { card, digits, seedField, slider, values } from "./controls.js";
import { guarded, make, remember, say, show, words } from "./page.js";

const FIRST = ["pca", "vae", "gan", "cgan", "flow"];

export default function compare(catalog) {
  const said = words();
  const chosen = new Set(said.getAll("models").length ? said.getAll("models") : FIRST);
  const boxes = catalog.models.map(({ name, takes }) => make("label", {},
    make("input", { type: "checkbox", name: "models", value: name, checked: chosen.has(name) }),
    `${name}${takes.digit ? "" : " (draws any digit)"}`));
  const told = catalog.models.find(({ takes }) => takes.digit);
  const form = make("form", {},
    make("fieldset", {}, make("legend", { textContent: "Models" }), make("div", { className: "models" }, ...boxes)),
    told ? digits("digit", "Digit", told.takes.digit, said.get("digit")) : null,
    slider("n", "images each", { minimum: 1, maximum: 36 }, said.get("n") ?? 16),
    seedField(),
    make("button", { className: "first", textContent: "Draw" }));
  const cards = make("div", { className: "cards" });
  show(form, make("div", { className: "result" }, cards));
  form.onsubmit = (event) => {
    event.preventDefault();
    const asked = values(form);
    const { digit, n, seed } = Object.fromEntries(asked);
    remember([["view", "compare"], ...asked]);
    guarded(async () => {
      const models = catalog.models.filter(({ name }) => new FormData(form).getAll("models").includes(name));
      const made = await Promise.all(models.map(async (model) => {
        const { manifest } = await read(`models/${model.name}`);
        const address = url("generate", [["model", model.name], ["digit", model.takes.digit && digit], ["n", n], ["seed", seed], ["format", "png"]]);
        const box = card(model, manifest);
        box.querySelector("h2").after(make("img", { src: await source(address), alt: `${n} draws of ${model.name}` }));
        return box;
      }));
      cards.replaceChildren(...made);
      say(`${made.length} models drew`);
    });
  };
  form.requestSubmit();
}
