// A grid of samples, which appear as they are generated.

import { pngUrl, streamEvents } from "./api.js";
import { announce, cancelTask, make, showShape } from "./page.js";

/**
 * A grid for samples of `model`, with the progress: its `element`; the button `cancel`; `say(text)`; `source(index)`, the
 * data URL of an image; and `fill(signal, count, address, options, describe)`, which requests events of `count` images
 * and shows each image from its first preview on. `describe(data)` is the alternative text of the image that the event
 * has. A click on an image calls `choose(index)`.
 */
export function sampleGrid(model, title, choose) {
  const grid = make("div", { className: "grid", role: "group", "aria-label": title });
  const progress = make("progress", { value: 0, max: 1, "aria-label": "Progress" });
  const status = make("p", { className: "small", textContent: "No images generated yet." });
  const cancel = make("button", { type: "button", textContent: "Cancel", disabled: true });
  showShape(grid, model);
  const say = (text) => (status.textContent = text);
  cancel.onclick = () => {
    cancelTask();
    say("Cancelled. The service has stopped generating these images.");
    cancel.disabled = true;
  };

  const receive = async (signal, count, address, options, describe) => {
    const cells = Array.from({ length: count }, (_, i) => make("img", { className: "pending", alt: `image ${i + 1}, in progress` }));
    if (choose) cells.forEach((cell, i) => (cell.onclick = () => choose(i)));
    grid.replaceChildren(...cells);
    grid.className = count === 1 ? "grid single" : "grid";
    progress.value = 0;
    say("Waiting for the service…");
    const startedAt = performance.now();
    for await (const { name, data } of streamEvents(address, { method: "POST", signal, ...options })) {
      if (name === "progress") {
        progress.value = data.gone / data.links;
        const queued = !data.gone && data.ahead ? `${data.ahead} images ahead in the queue; ` : "";
        say(`${queued}about ${data.seconds.toFixed(1)} s left`);
      } else if (name === "preview") {
        cells[data.index].src = pngUrl(data.png);
      } else if (name === "image") {
        cells[data.index].src = pngUrl(data.png);
        cells[data.index].alt = describe(data);
        cells[data.index].classList.remove("pending");
      }
    }
    progress.value = 1;
    const seconds = ((performance.now() - startedAt) / 1000).toFixed(2);
    announce(say(`${count} ${count === 1 ? "image" : "images"} in ${seconds} s`));
  };
  const fill = async (signal, ...request) => {
    cancel.disabled = false;
    try {
      await receive(signal, ...request);
    } catch (error) {
      if (!signal.aborted) say("The request failed.");
      throw error;
    } finally {
      if (!signal.aborted) cancel.disabled = true;
    }
  };
  const source = (index) => grid.children[index].src;
  return { element: make("section", { className: "card" }, grid, progress, status), cancel, say, source, fill };
}
