// "Is this copied?": the training images nearest to a sample, for models whose training images the service has an index of.

import { pngUrl, requestJson } from "./api.js";
import { slider } from "./controls.js";
import { announce, make, showShape, withErrors } from "./page.js";
import { readSetting, setSetting, wholeNumber } from "./settings.js";

const SHOWN = 5;
const MAX_IMAGES = 64; // of a draw in this page

/**
 * A panel with the training images nearest to one sample of a draw: its `element`; `chosen()`, the number of the sample
 * from 1, or "" while the panel is closed; `clear()`, for when the draw begins; `show(count)`, for when it has ended; and
 * `choose(index)`.
 *
 * `sourceOf(index)` is the data URL of a sample. `changed()` is called when `chosen()` changes. The panel requests the
 * images only while it is open.
 */
export function nearestPanel(model, sourceOf, changed) {
  const setting = readSetting("nearest", wholeNumber(1, MAX_IMAGES), "");
  const number = slider("nearest", "Image", { minimum: 1, maximum: MAX_IMAGES }, setting || 1);
  const [image, output] = ["input", "output"].map((tag) => number.querySelector(tag));
  const sentence = make("p");
  const pictures = make("div", { className: "neighbours" });
  const note = make("p", { className: "small" });
  const box = make("div", { hidden: true }, sentence, pictures, number, note);
  const element = make("details", { className: "card", open: Boolean(setting) }, make("summary", { textContent: "Nearest training images" }), box);
  showShape(element, model);

  let drawn = false; // whether the samples are final
  let running = new AbortController();
  const search = async (signal) => {
    const index = image.value - 1;
    const source = sourceOf(index);
    const body = { model: model.name, n: SHOWN, image: source, ...(model.uploads === "digit" && { polarity: "light-on-dark" }) };
    const found = await requestJson("nearest", { method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    sentence.textContent = found.sentence;
    pictures.replaceChildren(
      figure(source, `image ${index + 1} of the draw`, "the sample"),
      ...found.neighbours.map((one) => figure(pngUrl(one.png), `training image ${one.index}`, describe(one))));
    note.textContent = ["Distances are Euclidean, of pixels from 0 to 255.", found.dataset.attribution].filter(Boolean).join(" Training images: ");
    box.hidden = false;
    announce(found.sentence);
  };
  const load = async () => {
    running.abort();
    if (!drawn || !element.open) return;
    const { signal } = (running = new AbortController());
    await withErrors(() => search(signal).catch((error) => {
      if (element.isConnected) throw error;
    }));
  };
  const chosen = () => (element.open ? image.value : "");
  const remember = () => {
    if (chosen() === readSetting("nearest", () => null, "")) return;
    setSetting("nearest", chosen());
    changed();
  };
  const change = () => {
    remember();
    load();
  };
  image.onchange = element.ontoggle = change;

  const clear = () => {
    running.abort();
    drawn = false;
    box.hidden = true;
  };
  const show = (count) => {
    drawn = true;
    image.max = count;
    output.textContent = image.value;
    number.hidden = count === 1;
    remember();
    return load();
  };
  const choose = (index) => {
    image.value = index + 1;
    output.textContent = image.value;
    change();
  };
  return { element, chosen, clear, show, choose };
}

/** An image above its description. */
const figure = (src, alt, text) => make("figure", {}, make("img", { className: "large", src, alt }), make("figcaption", { className: "small", textContent: text }));

/** What is said about a training image. */
const describe = ({ index, class: name, distance }) => [`no. ${index}`, name, `distance ${Math.round(distance)}`].filter((part) => part !== null).join(", ");
