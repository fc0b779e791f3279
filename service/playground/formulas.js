// Panel "How it works": the formulas and the algorithm of a model's family, and what each symbol means.

import { request } from "./api.js";
import { make, withErrors } from "./page.js";
import { oneOf, readSetting, setSettings } from "./settings.js";

const SETTING = "formulas";
const OPEN = "open";
const HINT = "Touch a symbol to see what it means. The arrow keys move between symbols.";
const REACH = 24; // pixels from a touch to the symbol that it means

const pages = new Map();

/** Whether the panel is open, as a pair for the page address. */
export const formulasSetting = () => [SETTING, readSetting(SETTING, oneOf([OPEN]))];

/** A collapsed panel about the family of `model`, hidden if there is no file formulas/FAMILY.html. `onToggle` shows its setting. */
export function formulasPanel(model, onToggle) {
  const open = formulasSetting()[1] === OPEN;
  const panel = make("details", { className: "card formulas", hidden: true, open }, make("summary", { textContent: "How it works" }));
  panel.addEventListener("toggle", () => {
    if (!panel.isConnected || panel.hidden) return;
    setSettings(SETTING, panel.open ? [OPEN] : []);
    onToggle();
  });
  withErrors(async () => {
    const page = new DOMParser().parseFromString(await loadPage(model.family), "text/html").querySelector("article");
    if (!page) return;
    explainSymbols(page);
    panel.append(page);
    panel.hidden = false;
  });
  return panel;
}

/** The page about a family as HTML, "" if there is none. */
function loadPage(family) {
  if (!pages.has(family)) {
    const page = request(`playground/formulas/${family}.html`).then((response) => response.text());
    page.catch(() => pages.delete(family));
    pages.set(family, page);
  }
  return pages.get(family);
}

/** Take the list of meanings from the page, and explain the symbol that is under the mouse or has the focus, below its formula. */
function explainSymbols(page) {
  const list = page.querySelector("dl");
  const meanings = new Map([...list.querySelectorAll("dt")].map((term) => [term.dataset.symbol, [term, term.nextElementSibling]]));
  list.remove();
  for (const formula of page.querySelectorAll("math[display=block]")) {
    const frame = make("div", { className: "frame" });
    formula.replaceWith(frame);
    frame.append(formula);
  }
  const sections = [...page.querySelectorAll("section")].map((section, index) => moveByKeys(section, meanings, index ? "" : HINT));

  const symbolAt = (target) => target.closest("[data-symbol]");
  let hovered = null, focused = null;
  const update = () => {
    const name = (hovered ?? focused)?.dataset.symbol;
    for (const symbol of page.querySelectorAll("[data-symbol]")) symbol.classList.toggle("chosen", symbol.dataset.symbol === name);
    for (const { section, explain } of sections) explain([hovered, focused].find((symbol) => section.contains(symbol)));
  };
  const listen = (type, react) => page.addEventListener(type, (event) => {
    react(event);
    update();
  });
  listen("focusin", ({ target }) => (focused = symbolAt(target)));
  listen("focusout", () => (focused = null));
  listen("pointerover", ({ target, pointerType }) => (hovered = pointerType === "mouse" ? symbolAt(target) : null));
  listen("pointerleave", () => (hovered = null));
  listen("keydown", (event) => {
    if (event.key !== "Escape" || !(hovered ?? focused)) return;
    event.stopPropagation(); // the presentation goes on
    hovered = focused = null;
  });
}

/**
 * Let the tabulator stop at one symbol of a section, and arrow keys and touches choose another. The result is the `section`,
 * and `explain(symbol)`, which shows the meaning of a symbol, or without one the hint, in a line at its end.
 */
function moveByKeys(section, meanings, hint) {
  const symbols = [...section.querySelectorAll("[data-symbol]")];
  const line = make("p", { className: "meaning small", "aria-live": "polite", textContent: hint });
  section.append(line);
  const stopAt = (chosen) => symbols.forEach((symbol) => (symbol.tabIndex = symbol === chosen ? 0 : -1));
  stopAt(symbols[0]);
  section.addEventListener("focusin", ({ target }) => symbols.includes(target) && stopAt(target));
  section.addEventListener("click", (event) => nearest(symbols, event)?.focus());
  section.addEventListener("keydown", (event) => {
    const index = symbols.indexOf(event.target);
    const places = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: symbols.length - 1 };
    if (index < 0 || !(event.key in places)) return;
    event.preventDefault();
    symbols[places[event.key]]?.focus();
  });

  let shown;
  const explain = (symbol) => {
    const name = symbol?.dataset.symbol;
    if (name === shown) return; // screen readers would read it again
    shown = name;
    const [term, meaning] = (meanings.get(name) ?? []).map((element) => [...element.cloneNode(true).childNodes]);
    line.classList.toggle("small", !term);
    line.replaceChildren(...(term ? [...term, ": ", ...meaning] : [hint]));
  };
  return { section, explain };
}

/** The symbol at a touch or click, or the nearest one within REACH: symbols are smaller than fingers. */
function nearest(symbols, { clientX, clientY }) {
  const distance = (symbol) => {
    const { left, right, top, bottom } = symbol.getBoundingClientRect();
    return Math.hypot(Math.max(left - clientX, 0, clientX - right), Math.max(top - clientY, 0, clientY - bottom));
  };
  const distances = symbols.map(distance);
  const least = Math.min(...distances);
  return least <= REACH ? symbols[distances.indexOf(least)] : null;
}
