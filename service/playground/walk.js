// Walk: from one draw to another, by hand.

import { picture, read, source, url } from "./api.js";
import { digits, modelChoice, plan, seedField, slider, values } from "./controls.js";
import { guarded, lead, make, remember, say, show, words } from "./page.js";

const FRAMES = 33;

export default function walk(catalog) {
  const said = words();
  const model = catalog.models.find(({ name }) => name === said.get("model")) ??
    catalog.models.find(({ name }) => name === catalog.defaults.conditional) ?? catalog.models[0];
  const takes = model.takes.digit;
  const [from, to] = said.getAll("digit");
  const form = make("form", {},
    modelChoice(catalog.models, model, (chosen) => {
      remember([["view", "walk"], ["model", chosen.name]]);
      guarded(() => walk(catalog));
    }),
    takes ? digits("from", "From", takes, from ?? "3", false) : null,
    takes ? digits("to", "To", takes, to ?? "8", false) : null,
    seedField("seed", takes ? "Seed" : "From seed"),
    takes ? null : seedField("end", "To seed"),
    ...plan(model),
    make("button", { className: "first", textContent: "Walk" }));
  const image = make("img", { className: "big", alt: "where the walk stands" });
  const hand = slider("place", "place", { minimum: 0, maximum: FRAMES - 1 }, 0);
  const place = hand.querySelector("input");
  const strip = make("img", { className: "strip", alt: "" });
  const gif = make("a", { className: "button", textContent: "GIF", download: "walk.gif" });
  const play = make("button", { type: "button", textContent: "Play" });
  show(form, make("div", { className: "result" }, make("section", { className: "card" },
    make("p", { className: "small", textContent: "Drag from one end to the other." }), image, hand,
    make("div", { className: "row" }, play, gif), strip)));

  let frames = [];
  place.oninput = () => {
    if (frames.length) image.src = picture(frames[place.value].png);
  };
  let timer = null;
  play.onclick = () => {
    clearInterval(timer);
    timer = play.textContent === "Stop" ? null : setInterval(() => {
      if (!image.isConnected) return clearInterval(timer);
      place.value = (Number(place.value) + 1) % FRAMES;
      place.dispatchEvent(new Event("input"));
    }, 80);
    play.textContent = timer ? "Stop" : "Play";
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    const { from, to, seed, end, ...rest } = Object.fromEntries(values(form));
    const ends = takes ? [["seed", seed], ["digit", from], ["digit", to]] : [["seed", seed], ["seed", end]];
    const asked = [["model", model.name], ...ends, ...Object.entries(rest)];
    remember([["view", "walk"], ...asked, ["end", end]]);
    guarded(async () => {
      const answer = await read(url("interpolate", [...asked, ["frames", FRAMES], ["format", "json"]]), { method: "POST" });
      frames = answer.images;
      place.oninput();
      lead(gif, url("interpolate", [...asked, ["frames", 24], ["format", "gif"]]));
      strip.src = await source(url("interpolate", [...asked, ["frames", 12], ["format", "png"]]));
      say("The walk is ready; move the place.");
    });
  };
  form.requestSubmit();
}
