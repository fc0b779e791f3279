// Draw: a grid of one model, which denoises before one's eyes where there is something to denoise.

import { events, key, picture, read, url } from "./api.js";
import { card, digits, modelChoice, plan, seedField, slider, values } from "./controls.js";
import { copyable, guarded, lead, make, remember, say, show, words } from "./page.js";

const MOST = 64;

export default async function draw(catalog) {
  const said = words();
  const model = catalog.models.find(({ name }) => name === said.get("model")) ??
    catalog.models.find(({ name }) => name === catalog.defaults.conditional) ?? catalog.models[0];
  const changed = (chosen) => {
    remember([["view", "draw"], ["model", chosen.name], ["digit", chosen.takes.digit && said.get("digit")]]);
    guarded(() => draw(catalog));
  };
  const go = make("button", { className: "first", textContent: "Draw" });
  const cancel = make("button", { type: "button", textContent: "Cancel", disabled: true });
  const form = make("form", {},
    modelChoice(catalog.models, model, changed),
    model.takes.digit ? digits("digit", "Digit", model.takes.digit, said.get("digit")) : null,
    slider("n", "images", { minimum: 1, maximum: MOST }, said.get("n") ?? 16),
    seedField(),
    ...plan(model),
    make("div", { className: "row" }, go, cancel));
  const grid = make("div", { className: "grid", role: "group", "aria-label": "Draws" });
  const bar = make("progress", { value: 0, max: 1 });
  bar.setAttribute("aria-label", "How far the drawing is");
  const state = make("p", { className: "small", textContent: "Nothing drawn yet." });
  const again = make("section", { className: "card", hidden: true });
  show(form, make("div", { className: "result" },
    make("section", { className: "card" }, grid, bar, state), again,
    card(model, (await read(`models/${model.name}`)).manifest)));

  let running = null;
  form.onsubmit = (event) => {
    event.preventDefault();
    running?.abort();
    const mine = (running = new AbortController());
    go.disabled = true;
    cancel.disabled = false;
    const asked = [["model", model.name], ...values(form)];
    remember([["view", "draw"], ...asked]);
    guarded(() => run(asked, mine.signal, { grid, bar, state, again })).finally(() => {
      if (mine.signal.aborted) state.textContent = "Cancelled; the service has stopped drawing it.";
      if (running !== mine) return;
      go.disabled = false;
      cancel.disabled = true;
    });
  };
  cancel.onclick = () => running?.abort();
  form.requestSubmit();
}

/** Draw, and show each image from its noise on. */
async function run(asked, signal, { grid, bar, state, again }) {
  const count = Number(Object.fromEntries(asked).n);
  const cells = Array.from({ length: count }, (_, i) => make("img", { className: "under-way", alt: `draw ${i + 1}, under way` }));
  grid.replaceChildren(...cells);
  grid.className = count === 1 ? "grid one" : "grid";
  again.hidden = true;
  bar.value = 0;
  state.textContent = "Asking…";
  const begun = performance.now();
  for await (const { name, data } of events(url("generate", [...asked, ["previews", true]]), { method: "POST", signal })) {
    if (!grid.isConnected) return; // another view is open
    if (name === "progress") {
      bar.value = data.gone / data.links;
      const waiting = !data.gone && data.ahead ? `${data.ahead} images are before these; ` : "";
      state.textContent = `${waiting}about ${data.seconds.toFixed(1)} s to go`;
    } else if (name === "preview") {
      cells[data.index].src = picture(data.png);
    } else if (name === "image") {
      cells[data.index].src = picture(data.png);
      cells[data.index].alt = data.label < 0 ? `draw ${data.index + 1}` : `a drawn ${data.label}`;
      cells[data.index].classList.remove("under-way");
    }
  }
  bar.value = 1;
  const seconds = ((performance.now() - begun) / 1000).toFixed(2);
  state.textContent = `${count} ${count === 1 ? "image" : "images"} in ${seconds} s`;
  say(state.textContent);
  again.replaceChildren(...repeat(asked));
  again.hidden = false;
}

/** How to get the same again, elsewhere. */
function repeat(asked) {
  const here = new URL(".", location.href);
  const as = (format) => url("generate", [...asked, ["format", format]]);
  const links = [["png", "PNG"], ["zip", "zip"], ["npz", "npz"]].map(([format, text]) => {
    const link = make("a", { className: "button", download: `digits.${format}`, textContent: text });
    lead(link, as(format));
    return link;
  });
  const keyed = (text) => (key() ? text : "");
  const words = asked.map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`).join(", ");
  return [
    make("h2", { textContent: "The same again" }),
    make("div", { className: "row" }, make("span", { className: "small", textContent: "Download" }), ...links),
    make("p", { className: "small", textContent: "The page's address holds this very draw: share it." }),
    copyable("curl", `curl -X POST${keyed(" -H 'Authorization: Bearer KEY'")} '${here}${as("png")}' -o digits.png`),
    copyable("Python", `import httpx\n\nanswer = httpx.post("${here}generate", params={${words}, "format": "png"}${keyed(', headers={"Authorization": "Bearer KEY"}')})\nopen("digits.png", "wb").write(answer.content)`),
  ];
}
