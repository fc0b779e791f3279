// Your digit: drawn by hand, encoded, given back, and walked towards any other.

import { ask, read, url } from "./api.js";
import { digits } from "./controls.js";
import { guarded, make, remember, say, show, words } from "./page.js";

const SIZE = 280;

export default function pen(catalog) {
  const encoders = catalog.models.filter(({ encodes }) => encodes);
  const told = catalog.models.find(({ name }) => name === catalog.defaults.conditional);
  const paper = make("canvas", { className: "pen", width: SIZE, height: SIZE, role: "img",
    "aria-label": "Draw a digit here with mouse, pen or finger; or choose a picture below" });
  const ink = paper.getContext("2d");
  const clear = make("button", { type: "button", textContent: "Clear" });
  const file = make("input", { type: "file", id: "file", accept: "image/png,image/jpeg" });
  const form = make("form", {},
    paper,
    make("div", { className: "row" }, make("button", { className: "first", textContent: "Encode" }), clear),
    make("div", {}, make("label", { for: "file", textContent: "Or a picture of a digit, white on black or black on white" }), file),
    told ? digits("to", "Walk it towards", told.takes.digit, words().get("to") ?? "3", false) : null);
  const cards = make("div", { className: "cards" });
  show(form, make("div", { className: "result" },
    make("p", { className: "small", textContent: "What each model that has an encoder makes of it, and the way to the other digit." }), cards));

  const wipe = () => {
    ink.fillStyle = "#000";
    ink.fillRect(0, 0, SIZE, SIZE);
    file.value = "";
  };
  wipe();
  Object.assign(ink, { lineWidth: 24, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  const at = (event) => {
    const box = paper.getBoundingClientRect();
    return [((event.clientX - box.x) * SIZE) / box.width, ((event.clientY - box.y) * SIZE) / box.height];
  };
  paper.onpointerdown = (event) => {
    paper.setPointerCapture(event.pointerId);
    ink.beginPath();
    ink.moveTo(...at(event));
    ink.lineTo(...at(event));
    ink.stroke();
  };
  paper.onpointermove = (event) => {
    if (!paper.hasPointerCapture(event.pointerId)) return;
    ink.lineTo(...at(event));
    ink.stroke();
  };
  clear.onclick = wipe;
  form.onsubmit = (event) => {
    event.preventDefault();
    const to = new FormData(form).get("to");
    remember([["view", "pen"], ["to", to]]);
    guarded(async () => {
      const mine = file.files[0] ?? (await new Promise((done) => paper.toBlob(done)));
      const other = told && (await (await ask(url("generate", [["model", told.name], ["digit", to], ["seed", 1], ["format", "png"]]))).blob());
      const boxes = encoders.map((model) => {
        const box = make("section", { className: "card" }, make("h2", { textContent: model.name }), make("p", { textContent: "…" }));
        guarded(() => fill(box, model, mine, other, to));
        return box;
      });
      cards.replaceChildren(...boxes);
    });
  };
}

/** What `model` makes of the image, and the way from it to the other. */
async function fill(box, model, mine, other, to) {
  const one = new FormData();
  one.append("image", mine, "mine.png");
  const back = await read(url("reconstruct", [["model", model.name], ["format", "json"]]), { method: "POST", body: one });
  const shown = make("img", { className: "big", src: `data:image/png;base64,${back.images[0].png}`, alt: `your digit as ${model.name} gives it back` });
  box.replaceChildren(make("h2", { textContent: model.name }), shown,
    make("p", { className: "small", textContent: `mean squared error ${back.images[0].error.toFixed(4)}` }));
  if (other) {
    const both = new FormData();
    both.append("image", mine, "mine.png");
    both.append("image", other, "other.png");
    const way = await ask(url("interpolate", [["model", model.name], ["frames", 8], ["format", "png"]]), { method: "POST", body: both });
    const address = URL.createObjectURL(await way.blob());
    box.append(make("img", { className: "strip", src: address, alt: `the way from it to a ${to}` }));
  }
  say(`${model.name} gave it back`);
}
