// View "Film": how the samples of a model, or of two side by side, changed during training.

import { buildUrl, request, requestJson } from "./api.js";
import { modelTitle } from "./cards.js";
import { modelLabel, modelSelect, readModel } from "./controls.js";
import { labelWord } from "./labels.js";
import { announce, make, runTask, showNotice, showView } from "./page.js";
import { oneOf, readSetting, setAddress, setSetting, wholeNumber } from "./settings.js";

const FRAME_TIME = 500; // milliseconds from a frame to the next

export default function showFilm(catalog) {
  const models = catalog.models.filter(({ film }) => film);
  if (!models.length) {
    showView(make("p", { textContent: "No served model has a film of its training." }));
    return;
  }
  const model = readModel(catalog, models, "gan");
  const others = models.filter((other) => other !== model);
  const beside = others.find(({ name }) => name === readSetting("beside", oneOf(others.map(({ name }) => name), "no other model with a film")));
  const updates = readSetting("updates", wholeNumber(0, Number.MAX_SAFE_INTEGER));
  const show = () => showFilm(catalog);
  const form = make("form", {}, modelSelect(models, model, show), besideSelect(others, beside, show));
  const screens = [model, beside].filter(Boolean).map(makeScreen);
  const box = make("div", { className: "result" }, make("div", { className: "films" }, ...screens.map(({ element }) => element)));
  showView(form, box);

  const address = (time) => setAddress([["view", "film"], ["model", model.name], ["beside", beside?.name], ["updates", time]]);
  address(updates);
  runTask(async (signal) => {
    await Promise.all(screens.map((screen) => screen.load(signal)));
    const times = [...new Set(screens.flatMap(({ times }) => times))].sort((a, b) => a - b);
    const still = updates !== undefined || matchMedia("(prefers-reduced-motion: reduce)").matches;
    const remember = (time) => {
      setSetting("updates", String(time));
      address(time);
    };
    const player = makePlayer(times, (time) => screens.map((screen) => screen.show(time)).join("; "), remember);
    box.append(player.element);
    player.go(updates === undefined ? 0 : Math.max(0, times.findLastIndex((time) => time <= updates)));
    if (!still) player.play();
  });
}

/** A list of the models that can be shown beside the first one. */
function besideSelect(models, selected, show) {
  const options = models.map((model) => make("option", { value: model.name, textContent: modelLabel(model), selected: model === selected }));
  const select = make("select", { id: "beside", name: "beside" }, make("option", { value: "", textContent: "no other model" }), ...options);
  select.onchange = () => {
    showNotice("");
    setSetting("beside", select.value);
    show();
    document.getElementById("beside").focus();
  };
  return make("div", {}, make("label", { for: "beside", textContent: "Beside it" }), select);
}

/**
 * A card with the film of a model: its `element`; `load(signal)`; then `times`, the updates before each frame; and
 * `show(time)`, which shows the last frame until then and returns its caption.
 */
function makeScreen(model) {
  const canvas = make("canvas", { role: "img", "aria-label": `Samples of ${model.name}` });
  const caption = make("p", { className: "moment" });
  const note = make("p", { className: "small" });
  const element = make("section", { className: "card" }, modelTitle(model), canvas, caption, note);
  const screen = { element, times: [] };
  let film = null, image = null;
  screen.load = async (signal) => {
    film = await requestJson(`models/${model.name}/film`, { signal });
    const response = await request(buildUrl(`models/${model.name}/film.webp`, [["digest", film.image]]), { signal });
    image = await createImageBitmap(await response.blob());
    [canvas.width, canvas.height] = [film.width, film.height];
    screen.times = film.frames.map((frame) => frame.updates);
    note.textContent = describe(model, film);
  };
  screen.show = (time) => {
    const number = screen.times.findLastIndex((updates) => updates <= time);
    const [left, top] = [(number % film.across) * film.width, Math.floor(number / film.across) * film.height];
    canvas.getContext("2d").drawImage(image, left, top, film.width, film.height, 0, 0, film.width, film.height);
    const { updates, images } = film.frames[number], isLast = number === film.frames.length - 1;
    caption.textContent = `${isLast ? "The served weights, after" : "After"} ${counted(updates, "update")}, ${counted(images, "image")}`;
    canvas.setAttribute("aria-label", `Samples of ${model.name}. ${caption.textContent}`);
    return caption.textContent;
  };
  return screen;
}

const counted = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** What the frames of a film have in common, and where they come from. */
function describe(model, { columns, rows, frames, same_run: isSameRun }) {
  const column = model.classes.length === columns ? `, a column for each ${labelWord(model)}` : "";
  const before = frames.at(-2);
  const source = isSameRun
    ? "They are of the training of these weights."
    : `All but the last one are of another run by the same recipe, up to its update ${before.updates.toLocaleString("en")}; the last one shows the served weights.`;
  return `Each frame shows the same ${columns * rows} samples of seed 0${column}. ${source}`;
}

/**
 * Controls for a film with a frame at each of `times`: their `element`; `go(number)`, to a frame; and `play()`, from
 * there to the end. `show(time)` shows a frame and returns its caption; `remember(time)` receives the frame at which
 * the film stands.
 */
function makePlayer(times, show, remember) {
  const button = make("button", { type: "button", className: "primary", textContent: "Play" });
  const input = make("input", { type: "range", id: "frame", min: 0, max: times.length - 1, "aria-label": "Updates" });
  const end = make("span", { className: "small", textContent: counted(times.at(-1), "update") });
  let timer = null;
  const go = (number) => {
    input.value = number;
    input.setAttribute("aria-valuetext", show(times[number]));
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  const pause = () => {
    stop();
    remember(times[input.value]);
  };
  const advance = () => {
    if (!input.isConnected) stop(); // another view is open
    else if (Number(input.value) === times.length - 1) pause();
    else go(Number(input.value) + 1);
  };
  const play = () => {
    if (Number(input.value) === times.length - 1) go(0);
    button.textContent = "Pause";
    timer = setInterval(advance, FRAME_TIME);
  };
  button.onclick = () => {
    if (timer === null) return play();
    pause();
    announce(input.getAttribute("aria-valuetext"));
  };
  input.oninput = () => {
    stop();
    go(Number(input.value));
  };
  input.onchange = pause;
  const element = make("div", { className: "player card" }, button, input, end);
  return { element, go, play };
}
