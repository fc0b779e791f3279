// Plane: all that lies between three draws of an auto-encoder, under one's hand.

import { ask, picture, read, url } from "./api.js";
import { modelChoice, seedField } from "./controls.js";
import { guarded, make, remember, say, show, words } from "./page.js";

const SIDE = 11;
const REACH = [-0.25, 1.25];

export default function plane(catalog) {
  const models = catalog.models.filter(({ encodes, takes }) => encodes && !takes.steps);
  if (!models.length) {
    show(make("p", { textContent: "None of the models that are served has codes that make a plane." }));
    return;
  }
  const model = models.find(({ name }) => name === words().get("model")) ?? models.find(({ name }) => name === "vae") ?? models[0];
  const form = make("form", {},
    modelChoice(models, model, (chosen) => {
      remember([["view", "plane"], ["model", chosen.name]]);
      guarded(() => plane(catalog));
    }),
    seedField(),
    make("button", { className: "first", textContent: "New plane" }),
    make("p", { className: "small", textContent: "Three draws are encoded. Their codes lie at three corners, and every point is a code of its own." }));
  const sheet = make("img", { alt: "digits decoded from a grid of codes" });
  const mark = make("i");
  const pad = make("div", { className: "plane", tabIndex: 0, role: "application", "aria-label": "The plane of codes; arrow keys move the point" }, sheet, mark);
  const image = make("img", { className: "big", alt: "the code under the point, decoded" });
  const where = make("p", { className: "small" });
  show(form, make("div", { className: "result" }, make("section", { className: "card side" }, pad, make("div", {}, image, where))));

  let corners = null, point = [0.5, 0.5], busy = false, wanted = false;
  const code = ([x, y]) => corners[0].map((value, i) => value + x * (corners[1][i] - value) + y * (corners[2][i] - value));
  const place = (share) => REACH[0] + share * (REACH[1] - REACH[0]);
  const decode = (codes, format) => ask("decode", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ model: model.name, codes, format }),
  });
  /** Show the code under the point; while one is on its way, only the last of the others is asked for. */
  const look = async () => {
    mark.style.left = `${100 * point[0]}%`;
    mark.style.top = `${100 * point[1]}%`;
    wanted = true;
    if (busy || !corners) return;
    busy = true;
    try {
      while (wanted) {
        wanted = false;
        const [x, y] = point.map(place);
        const answer = await (await decode([code([x, y])], "json")).json();
        image.src = picture(answer.images[0].png);
        where.textContent = `${x.toFixed(2)} of the way to the right corner, ${y.toFixed(2)} to the lower one`;
      }
    } finally {
      busy = false;
    }
  };
  const move = (x, y) => {
    point = [x, y].map((value) => Math.min(1, Math.max(0, value)));
    guarded(look);
  };
  const follow = (event) => {
    const box = pad.getBoundingClientRect();
    move((event.clientX - box.x) / box.width, (event.clientY - box.y) / box.height);
  };
  pad.onpointerdown = (event) => {
    pad.setPointerCapture(event.pointerId);
    follow(event);
  };
  pad.onpointermove = (event) => pad.hasPointerCapture(event.pointerId) && follow(event);
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  pad.onkeydown = (event) => {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    move(...STEPS[event.key].map((step, axis) => point[axis] + step / 20));
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    const seed = new FormData(form).get("seed");
    remember([["view", "plane"], ["model", model.name], ["seed", seed]]);
    guarded(async () => {
      const digits = model.takes.digit ? [["digit", 3], ["digit", 8], ["digit", 0]] : [];
      const drawn = await (await ask(url("generate", [["model", model.name], ["seed", seed], ["n", 3], ...digits, ["format", "npz"]]))).blob();
      const files = new FormData();
      files.append("image", drawn, "draws.npz");
      corners = (await read(url("encode", [["model", model.name], ["format", "json"]]), { method: "POST", body: files })).codes;
      const line = Array.from({ length: SIDE }, (_, i) => place((i + 0.5) / SIDE));
      const codes = line.flatMap((y) => line.map((x) => code([x, y])));
      sheet.src = URL.createObjectURL(await (await decode(codes, "png")).blob());
      say("The plane is ready; move the point.");
      await look();
    });
  };
  form.requestSubmit();
}
