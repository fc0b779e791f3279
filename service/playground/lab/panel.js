// The panel of one experiment: its title, the plane, the scale of its field, and its error.

import { make } from "../page.js";
import { colours } from "./colours.js";
import { drawPlane } from "./plane.js";
import { format } from "./plots.js";

const COUNT = new Intl.NumberFormat("en");

export class Panel {
  canvas = make("canvas", { className: "plane", role: "img" });
  #update = make("span", { className: "update" });
  #low = make("span");
  #high = make("span");
  #bar = make("i");
  #scale = make("div", { className: "scale" }, this.#low, this.#bar, this.#high);
  #fault = make("p", { className: "fault", role: "alert", hidden: true });
  element;

  constructor(index) {
    this.title = make("h2", { className: `run-${index}` });
    this.element = make("section", { className: "card panel" },
      make("div", { className: "head" }, this.title, this.#update), this.canvas, this.#scale, this.#fault);
  }

  /** Show an error below the plane; "" hides it. */
  showFault(text) {
    this.#fault.hidden = !text;
    this.#fault.textContent = text;
  }

  /** Show a frame, or null before the first, and the data points, flat. `shown` has the names of the layers. */
  draw({ frame, data, title, shown, cross, isDrawable }) {
    this.canvas.tabIndex = isDrawable ? 0 : -1;
    this.title.textContent = title;
    this.#update.textContent = frame ? `update ${COUNT.format(frame.update)}${frame.finished ? ", finished" : ""}` : "";
    const samples = frame ? `${frame.samples.length / 2} samples` : "no samples";
    const curves = Object.entries(frame?.curves ?? {}).map(([curve, value]) => `, ${curve} ${format(value)}`).join("");
    this.canvas.setAttribute("aria-label", `${title} at update ${frame?.update ?? 0}: ${samples}${curves}`);
    this.#drawScale(shown.has("field") ? frame?.field : shown.has("optimal") && frame?.optimal && { ...frame.optimal, name: "D*(x)", diverging: true });
    drawPlane(this.canvas, { frame, data, shown, cross });
  }

  #drawScale(field) {
    this.#scale.hidden = !field;
    if (!field) return;
    const { paper, low, high, dense } = colours();
    const stops = field.diverging ? [low, paper, high] : [paper, dense];
    this.#bar.style.background = `linear-gradient(to right, ${stops.map((colour) => `rgb(${colour.join()})`).join()})`;
    this.#low.textContent = `${field.name} ${format(field.low)}`;
    this.#high.textContent = format(field.high);
  }
}
