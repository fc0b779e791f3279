// Cards about models, and results of several models in their cards.

import { isUnauthorized, loadManifest } from "./api.js";
import { modelLabel } from "./controls.js";
import { dataName } from "./datasets.js";
import { make, withErrors } from "./page.js";

const PARALLEL = 3; // models that work for one user at a time
const BAD_REQUEST = [400, 413, 415, 422]; // statuses that every model would return for the same request

/** A card that describes a model: title, objective, quality figures, limitations, paper. */
export function modelCard(model) {
  const list = make("dl");
  withErrors(async () => list.append(...figures((await loadManifest(model.name)).metrics ?? {})));
  return make("section", { className: "card" },
    modelTitle(model),
    make("p", { className: "formula", textContent: model.formula }),
    list,
    model.caveat ? make("p", { className: "caveat", textContent: `Limitations: ${model.caveat}` }) : null,
    make("p", { className: "small", textContent: trainingData(model) }),
    make("p", { className: "small", textContent: model.paper }));
}

/** The heading of a card. Narrow cards cut it off, and show it whole in a tooltip. */
export const modelTitle = (model) => make("h2", { textContent: modelLabel(model), title: modelLabel(model) });

/** What the model was trained on, and what its images are like. */
function trainingData({ dataset, height, width, channels, classes }) {
  const labels = classes.length ? `, ${classes.length} ${classes.length === 1 ? "class" : "classes"}` : "";
  return `Trained on ${dataName(dataset.name ?? "")}: ${height} × ${width}, ${channels === 1 ? "grey" : "colour"}${labels}.`;
}

function figures(metrics) {
  const rows = [
    ["MNIST-CNN-FD", metrics.mnist_cnn_fd, 3], [`${dataName(metrics.judge?.data ?? "")}-CNN-FD`, metrics.cnn_fd, 3],
    ["sliced Wasserstein", metrics.sliced_wasserstein, 3], ["precision", metrics.precision, 2], ["recall", metrics.recall, 2],
    ["coverage", metrics.coverage, 2], ["label accuracy", metrics.accuracy, 3],
  ].filter(([, value]) => value !== undefined);
  return rows.map(([name, value, places]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value.toFixed(places) })));
}

/**
 * Call `fill(model, card)` for each pair of a model and its card: models of few steps first, and PARALLEL at a time.
 *
 * A card shows the error of its model. An error that all models would return ends the call: the first model runs alone
 * and finds it.
 */
export async function fillCards(cards, fill) {
  const queue = cards.toSorted(([a], [b]) => cost(a) - cost(b));
  const fillNext = async () => {
    const [model, card] = queue.shift();
    try {
      await fill(model, card);
    } catch (error) {
      if (error.name === "AbortError" || isUnauthorized(error) || BAD_REQUEST.includes(error.status)) throw error;
      card.append(make("p", { className: "fault", textContent: error.message }));
    }
  };
  const fillAll = async () => {
    while (queue.length) await fillNext();
  };
  if (queue.length) await fillNext();
  await Promise.all(Array.from({ length: PARALLEL }, fillAll));
}

/** The steps of a sample. */
export const cost = (model) => model.takes.steps?.default ?? 0;
