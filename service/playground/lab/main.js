// The live lab: experiments that train in the browser, beside their settings, curves and a timeline.

import { make, showNotice, showView } from "../page.js";
import { addPresentation, readPresentation } from "../present.js";
import { addressProblems, scheduleAddress } from "../settings.js";
import { onColourChange } from "./colours.js";
import { setupForm } from "./form.js";
import { layerSwitches } from "./layers.js";
import { Panel } from "./panel.js";
import { Player } from "./player.js";
import { Plots } from "./plots.js";
import { attachPen, MAX_POINTS } from "./points.js";
import { presetOf, presets } from "./presets.js";
import { experimentSettings, experimentTitles, needsData, readAddress, writeAddress } from "./setup.js";
import { Transport } from "./transport.js";

const MIN_POINTS = 3;

addPresentation();
const address = readAddress(presets[0].setup);
readPresentation();
let { setup } = address;

const player = new Player({ onChange: redraw, onError: (error, index) => panels[index].showFault(error.message) });
const transport = new Transport(player, { onReset: () => load(), onSpeed: (speed) => setSetup({ ...setup, speed }) });
const panels = [0, 1].map((index) => new Panel(index));
const plots = new Plots((share) => player.seek(Math.round(share * player.furthest)));
const preset = make("select", { id: "preset" },
  ...presets.map(({ name, title }) => make("option", { value: name, textContent: title })),
  make("option", { value: "", textContent: "an experiment of your own" }));
const hint = make("p");
const lesson = make("section", { className: "card lesson", "aria-label": "What to look for" },
  make("label", { for: "preset", textContent: "An argument of the lecture" }), preset, hint);
const [planes, legend, settings] = ["panels", "legend", "settings"].map((className) => make("div", { className }));

// -- the setup --------------------------------------------------------------------------------------------------------

/** Take a changed setup that needs neither new experiments nor another form. */
function setSetup(changed) {
  setup = changed;
  player.speed = setup.speed === "max" ? Infinity : Number(setup.speed);
  showPreset();
  redraw();
}

/** Take a changed setup, build what shows it, and begin its experiments. */
function openSetup(changed, update = 0) {
  setSetup(changed);
  buildControls();
  load(update);
}

function buildControls() {
  const focused = document.activeElement?.id;
  settings.replaceChildren(setupForm(() => setup, { onChange: changeSetup, onView: changeView, drawing }));
  legend.replaceChildren(layerSwitches(setup, (layers) => setSetup({ ...setup, layers })));
  planes.replaceChildren(...setup.models.map((_, index) => panels[index].element));
  stage.classList.toggle("two", setup.models.length > 1);
  stage.classList.toggle("drawable", isDrawable());
  if (focused) document.getElementById(focused)?.focus();
}

/** Take the form's change; `isRebuilt` is true if the form has other fields then. */
function changeSetup(changed, isRebuilt) {
  showNotice("");
  if (isRebuilt) return openSetup(changed);
  setSetup(changed);
  load();
}

/** Take the form's change of parameters of model `index` that need no new training. */
function changeView(changed, index, values) {
  setSetup(changed);
  player.view(index, values);
}

/** Show the description of the preset that the setup is. */
function showPreset() {
  const current = presetOf(setup);
  preset.value = current?.name ?? "";
  hint.textContent = current?.hint ?? "";
}

preset.onchange = () => {
  const chosen = presets.find(({ name }) => name === preset.value);
  if (!chosen) return showPreset();
  showNotice("");
  openSetup(chosen.setup);
  player.play();
};

/** Begin the setup's experiments, and go to `update`. Drawn points are data once there are enough of them. */
function load(update = 0) {
  const hasData = setup.data !== "drawn" || !needsData(setup) || setup.points.length >= MIN_POINTS;
  for (const panel of panels) panel.showFault("");
  if (!hasData) panels[0].showFault(`Draw at least ${MIN_POINTS} points.`);
  plots.clear();
  player.load(hasData ? experimentSettings(setup) : [], update);
}

// -- drawn points -----------------------------------------------------------------------------------------------------

let strokes = []; // the number of points before each stroke
let cross = null; // of the keyboard's pen

const isDrawable = () => setup.data === "drawn" && needsData(setup);

function setPoints(points) {
  setSetup({ ...setup, points });
  load();
}

const drawing = {
  undo: () => setPoints(setup.points.slice(0, strokes.pop() ?? 0)),
  clear() {
    strokes = [];
    setPoints([]);
  },
};

for (const { canvas } of panels) {
  attachPen(canvas, {
    isOn: isDrawable,
    begin: () => strokes.push(setup.points.length),
    add: (points) => setSetup({ ...setup, points: [...setup.points, ...points].slice(0, MAX_POINTS) }),
    end: () => setPoints(setup.points),
    moveCross(point) {
      cross = point;
      redraw();
    },
  });
}

// -- drawing ----------------------------------------------------------------------------------------------------------

let isScheduled = false;

/** Draw before the next frame of the screen, and write the address soon. */
function redraw() {
  scheduleAddress(() => writeAddress(setup, player.target ?? player.update));
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(draw);
}

function draw() {
  isScheduled = false;
  const titles = experimentTitles(setup);
  setup.models.forEach((_, index) => {
    const data = isDrawable() ? setup.points.flat() : player.experiments[index]?.data;
    const frame = player.frames[index] ?? null;
    panels[index].draw({ frame, data, title: titles[index], shown: setup.layers, cross, isDrawable: isDrawable() });
  });
  planes.setAttribute("aria-busy", player.isDriving);
  plots.draw(player.experiments, titles, player.update, player.furthest);
  transport.draw(setup.speed);
}

const stage = make("div", { className: "stage" }, transport.element, planes, legend, plots.element);
showView(lesson, stage, settings);
onColourChange(redraw);
new ResizeObserver(redraw).observe(stage);
openSetup(setup, address.update);
showNotice(addressProblems());
