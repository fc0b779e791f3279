// The playground: views by their names, one at a time.

import { read } from "./api.js";
import compare from "./compare.js";
import draw from "./draw.js";
import { guarded, words } from "./page.js";
import pen from "./pen.js";
import plane from "./plane.js";
import walk from "./walk.js";

const VIEWS = { draw, walk, plane, pen, compare };

/** Show the view that the address names. */
function open(catalog) {
  const name = words().get("view") in VIEWS ? words().get("view") : "draw";
  for (const link of document.querySelectorAll("nav a")) {
    const here = new URL(link.href).searchParams.get("view") === name;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  guarded(() => VIEWS[name](catalog));
}

await guarded(async () => {
  const catalog = await read("models");
  document.querySelector("header nav").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const model = words().get("model");
    history.pushState(null, "", link.href + (model ? `&model=${model}` : ""));
    open(catalog);
    document.getElementById("view").focus();
  });
  addEventListener("popstate", () => open(catalog));
  open(catalog);
});
