// View "Latent space": a plane through the codes of three samples, decoded at every point.

import { buildUrl, pngUrl, request, requestJson } from "./api.js";
import { modelSelect, readModel, runForm, seedField } from "./controls.js";
import { announce, make, showShape, showView, withErrors } from "./page.js";
import { setAddress } from "./settings.js";

const SIDE = 11; // rows and columns of the background grid
const SLOW_SIDE = 5; // the same for models that take many steps
const MAX_NUMBERS = 400_000; // in the codes of a request
const RANGE = [-0.25, 1.25]; // of the plane's coordinates: 0 and 1 are the corners with the samples' codes
const KEY_STEP = 1 / 20; // share of the plane that an arrow key moves the point by
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const CORNER_DIGITS = ["3", "8", "0"];

export default function showLatent(catalog) {
  const models = catalog.models.filter(({ encodes }) => encodes);
  if (!models.length) {
    showView(make("p", { textContent: "No served model has a latent space to explore." }));
    return;
  }
  const model = readModel(catalog, models, "vae");
  const form = make("form", {},
    modelSelect(models, model, () => showLatent(catalog)),
    seedField(),
    make("button", { className: "primary", textContent: "New plane" }));
  const background = make("img", { alt: "images decoded from a grid of codes" });
  const marker = make("i");
  const pad = make("div", { className: "latent-plane", tabIndex: 0, role: "application", "aria-label": "Plane of latent codes; the arrow keys move the point" }, background, marker);
  const image = make("img", { className: "large", alt: "the image decoded at the point" });
  const coordinates = make("p", { className: "small" });
  showView(form, make("div", { className: "result" }, make("section", { className: "card" },
    make("div", { className: "latent" }, make("div", { className: "latent-point" }, image, coordinates), pad),
    make("p", { className: "small", textContent: "The model generates and encodes three samples. Their latent codes span this plane; every point of it is a code, decoded in the single image." }))));

  for (const element of [pad, image]) showShape(element, model);

  let corners = null, point = [0.5, 0.5], busy = false, changed = false;
  const codeAt = (place) => {
    const shares = cornerShares(model, place);
    const values = corners[0].map((_, i) => shares.reduce((sum, share, corner) => sum + share * corners[corner][i], 0));
    return nested(values.map((value) => Number(value.toPrecision(4))), model.code_shape);
  };
  const coordinate = (share) => RANGE[0] + share * (RANGE[1] - RANGE[0]);
  const decode = (codes, format, signal) => request("decode", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ model: model.name, codes, format }), signal,
  });
  /** Decode the code at the point. While a request runs, later moves are merged into one request for the last point. */
  const update = async () => {
    marker.style.left = `${100 * point[0]}%`;
    marker.style.top = `${100 * point[1]}%`;
    changed = true;
    if (busy || !corners) return;
    busy = true;
    try {
      while (changed && pad.isConnected) {
        changed = false;
        const [x, y] = point.map(coordinate);
        const decoded = await (await decode([codeAt([x, y])], "json")).json();
        image.src = pngUrl(decoded.images[0].png);
        coordinates.textContent = `right ${x.toFixed(2)}, down ${y.toFixed(2)}`;
      }
    } finally {
      busy = false;
    }
  };
  const moveTo = (x, y) => {
    point = [x, y].map((value) => Math.min(1, Math.max(0, value)));
    withErrors(update);
  };
  const followPointer = (event) => {
    const box = pad.getBoundingClientRect();
    moveTo((event.clientX - box.x) / box.width, (event.clientY - box.y) / box.height);
  };
  pad.onpointerdown = (event) => {
    pad.setPointerCapture(event.pointerId);
    followPointer(event);
  };
  pad.onpointermove = (event) => pad.hasPointerCapture(event.pointerId) && followPointer(event);
  pad.onkeydown = (event) => {
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    moveTo(...ARROWS[event.key].map((direction, axis) => point[axis] + direction * KEY_STEP));
  };
  runForm(form, async (signal) => {
    const seed = new FormData(form).get("seed");
    setAddress([["view", "latent"], ["model", model.name], ["seed", seed]]);
    const labels = cornerLabels(model).map((label) => ["label", label]);
    const url = buildUrl("generate", [["model", model.name], ["seed", seed], ["n", 3], ...labels, ["format", "npz"]]);
    const upload = new FormData();
    upload.append("image", await (await request(url, { signal })).blob(), "samples.npz");
    const encodeUrl = buildUrl("encode", [["model", model.name], ["format", "json"]]);
    corners = (await requestJson(encodeUrl, { method: "POST", body: upload, signal })).codes.map((code) => code.flat(Infinity));
    const side = Math.min(model.takes.steps ? SLOW_SIDE : SIDE, Math.floor(Math.sqrt(MAX_NUMBERS / corners[0].length)));
    const line = Array.from({ length: side }, (_, i) => coordinate((i + 0.5) / side));
    const codes = line.flatMap((y) => line.map((x) => codeAt([x, y])));
    background.src = URL.createObjectURL(await (await decode(codes, "png", signal)).blob());
    announce("The plane is ready; move the point.");
    await update();
  });
}

/** The labels of the samples at the corners; none for a model without labels. */
const cornerLabels = ({ classes, takes }) => (takes.digit ? CORNER_DIGITS.filter((digit) => classes.includes(digit)) : classes.slice(0, 3));

/** The shares of the three corners' codes in the code at (x, y). */
function cornerShares(model, [x, y]) {
  const shares = [1 - x - y, x, y];
  // The code of a model that takes many steps is noise: a mixture has to have the same variance.
  const length = model.takes.steps ? Math.hypot(...shares) : 1;
  return shares.map((share) => share / length);
}

/** Numbers in row-major order as nested arrays of the shape. */
function nested(values, [size, ...rest]) {
  if (!rest.length) return values;
  const length = values.length / size;
  return Array.from({ length: size }, (_, i) => nested(values.slice(i * length, (i + 1) * length), rest));
}
