// The playground: one view at a time, named by the page address.

import { requestJson } from "./api.js";
import showCompare from "./compare.js";
import showComplete from "./complete.js";
import showFilm from "./film.js";
import showGenerate from "./generate.js";
import showGrid from "./grid.js";
import showInterpolate from "./interpolate.js";
import showLatent from "./latent.js";
import { make, showNotice, showView, withErrors } from "./page.js";
import { addPresentation, readPresentation } from "./present.js";
import { nameOf, readRecipe, recipeSettings } from "./recipe.js";
import showReconstruct from "./reconstruct.js";
import { addressProblems, loadAddress, oneOf, queryOf, readSetting, setSetting } from "./settings.js";

const VIEWS = { generate: showGenerate, interpolate: showInterpolate, latent: showLatent, reconstruct: showReconstruct, complete: showComplete, compare: showCompare, grid: showGrid, film: showFilm };
/** Names of views in addresses that were shared before version 0.2. */
const OLD_NAMES = { draw: "generate", walk: "interpolate", plane: "latent", pen: "reconstruct" };

/** Show the view that the settings name. */
function openView(catalog) {
  const named = readSetting("view", oneOf([...Object.keys(VIEWS), ...Object.keys(OLD_NAMES)], "no such view"), "generate");
  const view = OLD_NAMES[named] ?? named;
  for (const link of document.querySelectorAll("nav a")) {
    if (new URL(link.href).searchParams.get("view") === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  withErrors(() => VIEWS[view](catalog));
}

/** Show what the page address names, and say which of its settings are wrong, after a `notice`. */
function openAddress(catalog, notice = "") {
  loadAddress();
  readPresentation();
  openView(catalog);
  showNotice([notice, addressProblems()].filter(Boolean).join(" "));
}

/** Draw a PNG of the service again, by the recipe in it. */
async function openRecipe(catalog, file) {
  const recipe = await readRecipe(file);
  const name = nameOf(recipe.model);
  const model = catalog.models.find((served) => served.name === name);
  if (!model) throw new Error(`${file.name} was drawn by ${name}, which the service does not have.`);
  history.pushState(null, "", `?${queryOf(recipeSettings(recipe))}`);
  openAddress(catalog, model.digest === recipe.digest ? "" : `${file.name} was drawn by another version of ${name}, so these images may differ from it.`);
}

addPresentation();
await withErrors(async () => {
  const catalog = await requestJson("models");
  if (!catalog.models.length) return showView(make("p", { textContent: "The service has no models." }));
  document.querySelector("header nav").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState(null, "", link.href);
    showNotice("");
    setSetting("view", new URL(link.href).searchParams.get("view"));
    openView(catalog);
    document.getElementById("view").focus();
  });
  addEventListener("popstate", () => openAddress(catalog));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    if (event.defaultPrevented) return; // a view that takes images has it
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) withErrors(() => openRecipe(catalog, file));
  });
  openAddress(catalog);
});
