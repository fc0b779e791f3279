// View "Your digit": a digit drawn or uploaded by the user, reconstructed by every model with an encoder.

import { buildUrl, pngUrl, request, requestJson } from "./api.js";
import { digitButtons } from "./controls.js";
import { addressParams, announce, make, setAddress, showView, withErrors } from "./page.js";

const SIZE = 280; // pixels of the canvas
const TARGET_SEED = 1;

export default function showReconstruct(catalog) {
  const encoders = catalog.models.filter(({ encodes }) => encodes);
  const conditional = catalog.models.find(({ name }) => name === catalog.defaults.conditional);
  const canvas = make("canvas", { className: "drawing-pad", width: SIZE, height: SIZE, role: "img",
    "aria-label": "Draw a digit here with a mouse, pen or finger; or choose an image below" });
  const context = canvas.getContext("2d");
  const clear = make("button", { type: "button", textContent: "Clear" });
  const file = make("input", { type: "file", id: "file", accept: "image/png,image/jpeg" });
  const form = make("form", {},
    canvas,
    make("div", { className: "row" }, make("button", { className: "primary", textContent: "Reconstruct" }), clear),
    make("div", {}, make("label", { for: "file", textContent: "Or upload an image of a digit, white on black or black on white" }), file),
    conditional ? digitButtons("to", "Interpolate to digit", conditional.takes.digit, addressParams().get("to") ?? "3", false) : null);
  const cards = make("div", { className: "cards" });
  showView(form, make("div", { className: "result" },
    make("p", { className: "small", textContent: "Each model with an encoder reconstructs your digit, and interpolates from it to the digit that you choose." }), cards));

  const clearCanvas = () => {
    context.fillStyle = "#000";
    context.fillRect(0, 0, SIZE, SIZE);
    file.value = "";
  };
  clearCanvas();
  Object.assign(context, { lineWidth: 24, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  const position = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.x) * SIZE) / box.width, ((event.clientY - box.y) * SIZE) / box.height];
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    context.beginPath();
    context.moveTo(...position(event));
    context.lineTo(...position(event));
    context.stroke();
  };
  canvas.onpointermove = (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    context.lineTo(...position(event));
    context.stroke();
  };
  clear.onclick = clearCanvas;
  form.onsubmit = (event) => {
    event.preventDefault();
    const digit = new FormData(form).get("to");
    setAddress([["view", "reconstruct"], ["to", digit]]);
    withErrors(async () => {
      const source = file.files[0] ?? (await new Promise((resolve) => canvas.toBlob(resolve)));
      const target = conditional && { digit, image: await generateTarget(conditional, digit) };
      cards.replaceChildren(...encoders.map((model) => {
        const card = make("section", { className: "card" }, make("h2", { textContent: model.name }), make("p", { textContent: "…" }));
        withErrors(() => fillCard(card, model, source, target));
        return card;
      }));
    });
  };
}

/** A sample of `digit`, as a PNG. */
async function generateTarget(model, digit) {
  const params = [["model", model.name], ["digit", digit], ["seed", TARGET_SEED], ["format", "png"]];
  return (await request(buildUrl("generate", params))).blob();
}

/** Fill `card` with the model's reconstruction of `source`, and the frames from `source` to `target`, if there is one. */
async function fillCard(card, model, source, target) {
  const upload = new FormData();
  upload.append("image", source, "source.png");
  const reconstruction = await requestJson(buildUrl("reconstruct", [["model", model.name], ["format", "json"]]), { method: "POST", body: upload });
  const [{ png, error }] = reconstruction.images;
  card.replaceChildren(make("h2", { textContent: model.name }),
    make("img", { className: "large", src: pngUrl(png), alt: `your digit, reconstructed by ${model.name}` }),
    make("p", { className: "small", textContent: `mean squared error ${error.toFixed(4)}` }));
  if (target) {
    upload.append("image", target.image, "target.png");
    const url = buildUrl("interpolate", [["model", model.name], ["frames", 8], ["format", "png"]]);
    const strip = await (await request(url, { method: "POST", body: upload })).blob();
    card.append(make("img", { className: "strip", src: URL.createObjectURL(strip), alt: `frames from your digit to a ${target.digit}` }));
  }
  announce(`${model.name} has reconstructed your digit`);
}
