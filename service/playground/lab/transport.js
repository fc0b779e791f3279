// The controls of time: play, one update, reset, speed, the timeline; and their keys.

import { announce, make } from "../page.js";
import { SPEEDS } from "./setup.js";

const COUNT = new Intl.NumberFormat("en");
const MOVES = { ArrowLeft: -1, ArrowRight: 1 };

/** The controls of `player`, in `element`. `onReset()` starts the experiments anew, `onSpeed(speed)` is called for another speed. */
export class Transport {
  #player;
  #play = this.#button("Play", "primary", () => this.toggle());
  #back = this.#button("−1", "", () => this.move(-1), "One update back");
  #forward = this.#button("+1", "", () => this.move(1), "One update forward");
  #speed = make("select", { id: "speed", "aria-label": "Speed" },
    ...Object.entries(SPEEDS).map(([value, textContent]) => make("option", { value, textContent })));
  #timeline = make("input", { type: "range", id: "timeline", min: 0, max: 1, step: 1, value: 0 });
  #position = make("output", { for: "timeline" });
  #said = "";

  constructor(player, { onReset, onSpeed }) {
    this.#player = player;
    this.onReset = onReset;
    this.#speed.onchange = () => onSpeed(this.#speed.value);
    this.#timeline.oninput = () => player.seek(Number(this.#timeline.value));
    this.element = make("section", { className: "card transport", "aria-label": "Training" },
      make("div", { className: "row" }, this.#play, this.#back, this.#forward, this.#button("Reset", "", onReset), this.#speed),
      make("div", { className: "time" }, make("label", { for: "timeline", textContent: "Update" }), this.#timeline, this.#position));
    document.addEventListener("keydown", (event) => this.#onKey(event));
  }

  #button(textContent, className, onclick, label = textContent) {
    return make("button", { type: "button", textContent, className, onclick, "aria-label": label, title: label });
  }

  /** Play or pause; after the end, play again from the beginning. */
  toggle() {
    const player = this.#player;
    if (player.isBusy) return player.pause();
    if (player.finished) this.onReset();
    player.play();
  }

  /** Pause, and move by some updates. */
  move(updates) {
    const { target, update } = this.#player;
    this.#player.seek((target ?? update) + updates);
  }

  /** Space plays and pauses, the arrows move by one update; unless the focus is on a control that uses them itself. */
  #onKey(event) {
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || target.closest("select, input[type=number]")) return;
    if (key === " " && !target.closest("button, summary, input[type=checkbox]")) this.toggle();
    else if (key in MOVES && target.type !== "range") this.move(MOVES[key]);
    else return;
    event.preventDefault();
  }

  /** Show the state of the player. */
  draw(speed) {
    const { update, furthest, target, isBusy, finished, experiments } = this.#player;
    this.#play.textContent = isBusy ? "Pause" : "Play";
    this.#play.setAttribute("aria-label", `${this.#play.textContent} (space)`);
    this.#play.disabled = !experiments.length;
    this.#back.disabled = update === 0;
    this.#forward.disabled = !experiments.length || finished;
    this.#speed.value = speed;
    this.#timeline.max = Math.max(1, furthest);
    if (target === null || target > furthest) this.#timeline.value = update;
    const goal = target > furthest + 1 ? `, on the way to ${COUNT.format(target)}` : "";
    this.#position.textContent = `${COUNT.format(update)} of ${COUNT.format(furthest)}${goal}`;
    this.#say(isBusy ? "Training" : finished ? `Finished after ${update} updates` : `Paused at update ${update}`);
  }

  /** Announce a state once. */
  #say(text) {
    if (text !== this.#said) announce(text);
    this.#said = text;
  }
}
