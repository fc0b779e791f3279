// The playground: one view at a time, named by the page address.

import { requestJson } from "./api.js";
import showCompare from "./compare.js";
import showGenerate from "./generate.js";
import showInterpolate from "./interpolate.js";
import showLatent from "./latent.js";
import { addressParams, withErrors } from "./page.js";
import showReconstruct from "./reconstruct.js";

const VIEWS = { generate: showGenerate, interpolate: showInterpolate, latent: showLatent, reconstruct: showReconstruct, compare: showCompare };
/** Names of views in addresses that were shared before version 0.2. */
const OLD_NAMES = { draw: "generate", walk: "interpolate", plane: "latent", pen: "reconstruct" };

/** Show the view that the page address names. */
function openView(catalog) {
  const param = addressParams().get("view");
  const wanted = OLD_NAMES[param] ?? param;
  const name = Object.hasOwn(VIEWS, wanted) ? wanted : "generate";
  for (const link of document.querySelectorAll("nav a")) {
    if (new URL(link.href).searchParams.get("view") === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  withErrors(() => VIEWS[name](catalog));
}

await withErrors(async () => {
  const catalog = await requestJson("models");
  document.querySelector("header nav").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const model = addressParams().get("model");
    history.pushState(null, "", link.href + (model ? `&model=${model}` : ""));
    openView(catalog);
    document.getElementById("view").focus();
  });
  addEventListener("popstate", () => openView(catalog));
  openView(catalog);
});
