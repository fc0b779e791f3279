// View "Grid": one seed under two parameters that change, one along the rows and one along the columns.

import { buildUrl, requestBlobUrl } from "./api.js";
import { MAX_SEED, currentGroup, formValues, modelSelect, readModel, runForm, samplingControls, seedField } from "./controls.js";
import { describeLabel, findLabel, labelField, labelWord, readLabel } from "./labels.js";
import { announce, capitalize, fileName, make, showNotice, showShape, showView } from "./page.js";
import { multipleOf, oneOf, readSetting, setAddress, setSetting, wholeNumber } from "./settings.js";

const SEPARATOR = ";";
const MAX_VALUES = 12; // of an axis
const PARALLEL = 3; // requests at a time
const STEPS = [1, 2, 4, 8, 16, 32, 64];
const GUIDANCE = [1, 1.5, 2, 3, 4, 5];
const SEEDS = 6;
const DEFAULT_AXES = ["guidance", "steps", "label", "seed", "model"]; // the first two that the model has are the rows and columns at first
const SIDES = ["rows", "columns"];
/** Pixels of the downloaded picture. */
const CELL = 112, CAPTION = 28, HEADING = 120, GAP = 4;

export default function showGrid(catalog) {
  const model = readModel(catalog, catalog.models, catalog.models.find(({ edits }) => edits)?.name ?? catalog.defaults.conditional);
  const seed = seedField();
  const axes = axesOf(model, currentGroup(catalog.models).models, seed.querySelector("input").value);
  const again = () => showGrid(catalog);
  const [rows, columns] = readAxes(axes);
  const fixed = Object.fromEntries(Object.entries(model.takes).filter(([name]) => ![rows, columns, "label", "digit"].includes(name)));
  const isFixed = (name) => ![rows, columns].includes(name);
  const { label } = model.takes;
  const form = make("form", {},
    modelSelect(catalog.models, model, again),
    axisFields("rows", rows, columns, axes, again),
    axisFields("columns", columns, rows, axes, again),
    label && isFixed("label") ? labelField(capitalize(labelWord(model)), label, readLabel(label), { any: "any" }) : null,
    seed,
    isFixed("model") ? samplingControls({ takes: fixed }) : null,
    make("button", { className: "primary", textContent: "Generate" }));
  seed.hidden = !isFixed("seed");
  const table = make("table", { className: "axes" });
  const status = make("p", { className: "small" });
  const download = make("button", { type: "button", textContent: "Download PNG", disabled: true });
  showView(form, make("div", { className: "result" }, make("section", { className: "card" },
    make("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": "Generated images" }, table), status, download)));
  showShape(table, model);

  runForm(form, async (signal) => {
    const fields = formValues(form);
    const values = SIDES.map((side) => fields.find(([name]) => name === `${side}-values`)[1].split(SEPARATOR).map((text) => text.trim()));
    const shared = fields.filter(([name]) => isFixed(name) && !SIDES.some((side) => name.startsWith(side)));
    setAddress([["view", "grid"], ...fields.filter(([name]) => name !== "seed" || isFixed("seed"))]);
    const captions = values.map((texts, i) => texts.map((text) => axes[[rows, columns][i]].caption(text)));
    const cells = values[0].map((row) => values[1].map((column) => ({ row, column, element: make("td", { className: "waiting" }) })));
    table.replaceChildren(
      make("tr", {}, make("td"), ...captions[1].map((text) => make("th", { scope: "col", textContent: text }))),
      ...cells.map((line, i) => make("tr", {}, make("th", { scope: "row", textContent: captions[0][i] }), ...line.map(({ element }) => element))));
    download.disabled = true;
    const queue = cells.flat();
    const total = queue.length;
    const fillAll = async () => {
      while (queue.length) {
        status.textContent = `Generating ${total - queue.length + 1} of ${total}…`;
        const { row, column, element } = queue.shift();
        const { params, problem } = requestOf(catalog.models, [...shared, [rows, row], [columns, column]]);
        element.replaceChildren(problem ?? make("img", {
          src: await requestBlobUrl(buildUrl("generate", params), { signal }),
          alt: `${axes[rows].caption(row)}, ${axes[columns].caption(column)}`,
        }));
        element.classList.remove("waiting");
      }
    };
    await Promise.all(Array.from({ length: PARALLEL }, fillAll));
    announce((status.textContent = `${table.querySelectorAll("img").length} images`));
    download.disabled = false;
    download.onclick = async () => {
      const file = await drawTable(table, captions, model);
      make("a", { href: URL.createObjectURL(file), download: fileName([model.name, rows, columns], "png") }).click();
    };
  });
}

/** The axes that a model has: the `values` that an axis begins with, the `check` of a value, and its `caption`. */
function axesOf(model, related, seed) {
  const plain = (name) => (text) => `${name} ${text}`;
  const { steps, sampler, prior, guidance, label } = model.takes;
  const within = (values, { minimum, maximum }) => values.filter((value) => value >= minimum && value <= maximum);
  const seeds = Array.from({ length: SEEDS }, (_, i) => BigInt(seed) + BigInt(i)).filter((value) => value <= MAX_SEED);
  return {
    model: { values: related.map(({ name }) => name), check: oneOf(related.map(({ name }) => name)), caption: (text) => text },
    ...(label && { label: { values: label.one_of, check: (text) => (findLabel(label, text) === null ? "no such class" : null), caption: (text) => describeLabel(model, text) } }),
    seed: { values: seeds, check: wholeNumber(0, MAX_SEED), caption: plain("seed") },
    ...(steps && { steps: { values: within(STEPS, steps), check: wholeNumber(steps.minimum, steps.maximum), caption: (text) => `${text} ${text === "1" ? "step" : "steps"}` } }),
    ...(guidance && { guidance: { values: within(GUIDANCE, guidance), check: multipleOf(0.1, guidance.minimum, guidance.maximum), caption: plain("guidance") } }),
    ...Object.fromEntries(Object.entries({ sampler, prior }).filter(([, choices]) => choices).map(([name, { one_of }]) => [name, { values: one_of, check: oneOf(one_of), caption: (text) => text }])),
  };
}

/** The names of the axes of the rows and columns: those that the settings name, else the first two by default. */
function readAxes(axes) {
  const names = Object.keys(axes);
  const chosen = [];
  for (const side of SIDES) {
    const free = names.filter((name) => !chosen.includes(name));
    chosen.push(readSetting(side, oneOf(free), DEFAULT_AXES.find((name) => free.includes(name))));
  }
  return chosen;
}

/** Fields for the parameter of one side and for its values. `show` shows the view again, for another parameter. */
function axisFields(side, selected, other, axes, show) {
  const options = Object.keys(axes).filter((name) => name !== other)
    .map((name) => make("option", { value: name, textContent: capitalize(name), selected: name === selected }));
  const select = make("select", { id: side, name: side }, ...options);
  const setting = `${side}-values`;
  select.onchange = (event) => {
    event.stopPropagation(); // from the form, which `show` replaces
    showNotice("");
    setSetting(side, select.value);
    setSetting(setting, "");
    show();
    document.getElementById(side).focus();
  };
  const { values, check } = axes[selected];
  const problemOf = (text) => {
    const texts = text.split(SEPARATOR).map((one) => one.trim());
    if (texts.length > MAX_VALUES) return `at most ${MAX_VALUES} values`;
    return texts.map((one) => check(one) && `${one || "an empty value"}: ${check(one)}`).find(Boolean) ?? null;
  };
  const input = make("input", { id: setting, name: setting, required: true, autocomplete: "off", type: "search", "aria-describedby": `${side}-problem`,
    value: readSetting(setting, problemOf, values.slice(0, MAX_VALUES).join(`${SEPARATOR} `)) });
  const message = make("p", { className: "fault small", id: `${side}-problem` });
  input.addEventListener("change", () => {
    message.textContent = problemOf(input.value) ?? "";
    input.setCustomValidity(message.textContent);
  });
  return make("div", {},
    make("label", { for: side, textContent: capitalize(side) }), select,
    make("label", { for: setting, textContent: `Values, with ${SEPARATOR} between them` }), input, message);
}

/** The `params` of one image, of which the last two are those of the axes; and the `problem`, if its model does not take one of these. */
function requestOf(models, params) {
  const { model: name, label } = Object.fromEntries(params);
  const { takes } = models.find((model) => model.name === name);
  const isTaken = ([key]) => ["model", "seed"].includes(key) || key in takes;
  const [lacking] = params.slice(-2).find((pair) => !isTaken(pair)) ?? [];
  const isUnknown = label && takes.label && findLabel(takes.label, label) === null;
  return { params: params.filter(isTaken), problem: lacking ? `takes no ${lacking}` : isUnknown ? `no class ${label}` : null };
}

/** The table as a PNG, with its captions. */
function drawTable(table, [rows, columns], { width, height }) {
  const tall = Math.round((CELL * height) / width);
  const canvas = make("canvas", { width: HEADING + columns.length * (CELL + GAP), height: CAPTION + rows.length * (tall + GAP) });
  const context = canvas.getContext("2d");
  Object.assign(context, { fillStyle: "#fff", imageSmoothingEnabled: false });
  context.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(context, { fillStyle: "#000", font: "15px system-ui, sans-serif", textBaseline: "middle" });
  columns.forEach((text, i) => context.fillText(text, HEADING + i * (CELL + GAP), CAPTION / 2, CELL));
  rows.forEach((text, i) => context.fillText(text, GAP, CAPTION + i * (tall + GAP) + tall / 2, HEADING - 2 * GAP));
  [...table.rows].slice(1).forEach((row, i) => [...row.querySelectorAll("td")].forEach((cell, j) => {
    const [x, y, image] = [HEADING + j * (CELL + GAP), CAPTION + i * (tall + GAP), cell.querySelector("img")];
    if (image) context.drawImage(image, x, y, CELL, tall);
    else context.fillText(cell.textContent, x, y + tall / 2, CELL);
  }));
  return new Promise((resolve) => canvas.toBlob(resolve));
}
