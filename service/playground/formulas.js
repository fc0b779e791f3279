// Panel "How it works": the formulas and the algorithm of a model's family, and what each symbol means.

import { request } from "./api.js";
import { make, withErrors } from "./page.js";
import { oneOf, readSetting, setAddress, setSettings } from "./settings.js";

const SETTING = "formulas";
const OPEN = "open";
const HINT = "Touch a symbol to see what it means. The arrow keys move between symbols.";
const REACH = 24; // pixels from a touch to the symbol that it means

const pages = new Map();

/** Whether the panel is open, as a pair for the page address. */
export const formulasSetting = () => [SETTING, readSetting(SETTING, oneOf([OPEN]))];

/** A collapsed panel about the family of `model`. It stays hidden if there is no file formulas/FAMILY.html. */
export function formulasPanel(model) {
  const open = formulasSetting()[1] === OPEN;
  const panel = make("details", { className: "card formulas", hidden: true, open }, make("summary", { textContent: "How it works" }));
  panel.addEventListener("toggle", () => {
    if (!panel.isConnected || panel.hidden) return;
    setSettings(SETTING, panel.open ? [OPEN] : []);
    const others = [...new URLSearchParams(location.search)].filter(([name]) => name !== SETTING);
    setAddress([...others, formulasSetting()]);
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

/** Take the list of meanings from the page, and show the meaning of a symbol below its formula when it is chosen. */
function explainSymbols(page) {
  const list = page.querySelector("dl");
  const meanings = new Map([...list.querySelectorAll("dt")].map((term) => [term.dataset.symbol, term]));
  list.remove();
  const symbols = [...page.querySelectorAll("[data-symbol]")];
  const mark = (name) => symbols.forEach((symbol) => symbol.classList.toggle("chosen", symbol.dataset.symbol === name));
  for (const formula of page.querySelectorAll("math[display=block]")) {
    const frame = make("div", { className: "scroll" });
    formula.replaceWith(frame);
    frame.append(formula);
  }
  page.querySelectorAll("section").forEach((section, index) => explainSection(section, meanings, mark, index ? "" : HINT));
}

/** Let the symbols of a section be chosen by mouse, touch and keyboard. The tabulator stops at one, arrow keys reach the others. */
function explainSection(section, meanings, mark, hint) {
  const symbols = [...section.querySelectorAll("[data-symbol]")];
  const line = make("p", { className: "meaning small", "aria-live": "polite", textContent: hint });
  section.append(line);
  let shown = null;
  const show = (symbol) => {
    const name = symbol?.dataset.symbol;
    if (name === shown) return;
    shown = name;
    mark(name);
    const term = meanings.get(name);
    line.classList.toggle("small", !term);
    line.replaceChildren(...(term ? [...term.cloneNode(true).childNodes, ": ", ...term.nextElementSibling.cloneNode(true).childNodes] : [hint]));
  };
  const focused = () => symbols.find((symbol) => symbol === document.activeElement);
  const stopAt = (chosen) => symbols.forEach((symbol) => (symbol.tabIndex = symbol === chosen ? 0 : -1));
  stopAt(symbols[0]);

  section.addEventListener("focusin", ({ target }) => {
    if (!symbols.includes(target)) return;
    stopAt(target);
    show(target);
  });
  section.addEventListener("focusout", () => show(undefined));
  section.addEventListener("pointerover", ({ target, pointerType }) => {
    if (pointerType === "mouse") show(target.closest("[data-symbol]") ?? focused());
  });
  section.addEventListener("pointerleave", () => show(focused()));
  section.addEventListener("click", (event) => nearest(symbols, event)?.focus());
  section.addEventListener("keydown", (event) => {
    const index = symbols.indexOf(document.activeElement);
    const steps = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: symbols.length - 1 };
    if (event.key === "Escape") show(undefined);
    else if (index >= 0 && event.key in steps) {
      event.preventDefault();
      symbols[steps[event.key]]?.focus();
    }
  });
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
