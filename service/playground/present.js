// Presentation mode: the results without the controls, as large as the window allows; and the buttons for it and for the QR code.

import { announce, make, withErrors } from "./page.js";
import { shareDialog } from "./qr.js";
import { finishAddress, oneOf, readSetting, setAddress, setSetting, viewParams } from "./settings.js";

const SETTING = "present";
const ON = "1";
const SMALLEST = 80; // pixels of an image; if even these do not fit, the page scrolls
const CAPTION = ["model", "data", "label", "to", "steps", "sampler", "prior", "guidance", "seed"]; // settings, in this order
const NAMELESS = ["model", "data"]; // settings whose value says what it is
const ROOMY = matchMedia("(min-width: 48.01rem)"); // wide enough for the code in a corner
const TYPED = "select, textarea, input:not([type=range], [type=radio], [type=checkbox], [type=file])"; // controls that take letters

const ICONS = { // paths of 16 x 16 pixels
  qr: "M1 1h6v6H1zM9 1h6v6H9zM1 9h6v6H1zM3.5 3.5h1v1h-1zM11.5 3.5h1v1h-1zM3.5 11.5h1v1h-1zM9.5 9.5h1.5v1.5M14 9v3M10 15v-2.5h2M14.5 14.5v.5",
  present: "M1 6V1h5M10 1h5v5M15 10v5h-5M6 15H1v-5",
  leave: "M6 1v5H1M15 6h-5V1M10 15v-5h5M1 10h5v5",
};

const root = document.documentElement;
const isPresenting = () => root.classList.contains("presenting");
const caption = make("p", { className: "caption" });
const share = shareDialog(() => isPresenting() && fit());
const shareButton = make("button", { type: "button", onclick: toggleShare });
const presentButton = make("button", { type: "button", onclick: toggle });
const follow = new ResizeObserver(() => requestAnimationFrame(() => isPresenting() && fit()));

/** Add the buttons and keys to the page: P presents or ends that, Escape ends it, Q shows the QR code. */
export function addPresentation() {
  document.querySelector("header").append(caption, make("div", { className: "page-tools", role: "group", "aria-label": "Page" }, shareButton, presentButton));
  label(shareButton, "qr", "The address of this page as a QR code", "Q");
  show(false);
  addEventListener("keydown", onKey);
  addEventListener("resize", () => isPresenting() && fit());
  addEventListener("addresschange", showCaption);
  addEventListener("fullscreenchange", () => !document.fullscreenElement && isPresenting() && toggle());
}

/** Follow the page's setting, after the address is loaded. */
export function readPresentation() {
  const on = readSetting(SETTING, oneOf([ON])) === ON;
  setSetting(SETTING, on ? ON : ""); // a wrong value is not kept
  show(on);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog:modal")) return;
  const key = event.key.toLowerCase();
  if (key === "escape" && isPresenting()) toggle();
  if (event.target.closest(TYPED)) return;
  if (key === "p") toggle();
  else if (key === "q") toggleShare();
}

function toggleShare() {
  finishAddress();
  if (share.isOpen()) share.close();
  else withErrors(() => share.open({ isCorner: isPresenting() && ROOMY.matches }));
}

/** Present, or end that. A browser that refuses the full screen presents in its window. */
function toggle() {
  const on = !isPresenting();
  setSetting(SETTING, on ? ON : "");
  finishAddress();
  setAddress([...viewParams()]);
  show(on);
  announce(on ? "Presentation mode; Escape ends it" : "The controls are back");
  if (on) root.requestFullscreen?.().catch(() => {});
  else if (document.fullscreenElement) document.exitFullscreen();
}

function show(on) {
  if (on) label(presentButton, "leave", "Show the controls again", "Escape");
  else label(presentButton, "present", "Show the results large and without controls", "P");
  if (on === isPresenting()) return;
  root.classList.toggle("presenting", on);
  share.close();
  showCaption();
  const view = document.getElementById("view");
  if (on) follow.observe(view); // which fits the images at once, too
  else follow.unobserve(view);
}

/** Give a button an icon, a name for screen readers, and a tooltip with its key. */
function label(button, icon, name, key) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.innerHTML = `<path d="${ICONS[icon]}"/>`;
  button.replaceChildren(svg);
  button.setAttribute("aria-label", name);
  button.title = `${name} (${key})`;
}

/** Say what is shown, in the settings that reproduce it. */
function showCaption() {
  const params = viewParams();
  caption.textContent = CAPTION.filter((name) => params.has(name)).map((name) =>
    `${NAMELESS.includes(name) ? "" : `${name} `}${params.getAll(name).join(" → ")}`).join(" · ");
}

/** Set the largest size of an image with which the window shows the whole page, without the formulas, which may be below it. */
function fit() {
  const fits = (size) => {
    root.style.setProperty("--size", `${size}px`);
    const boxes = [root, ...document.querySelectorAll(".scroll")];
    return root.scrollHeight <= innerHeight && boxes.every(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth);
  };
  const { scrollTop } = root;
  root.classList.add("fitting");
  root.style.overflow = "hidden"; // a scroll bar from one size would narrow the page of the next
  let [low, high] = [SMALLEST, Math.max(innerWidth, innerHeight)];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (fits(middle)) low = middle;
    else high = middle - 1;
  }
  fits(low);
  root.style.overflow = "";
  root.classList.remove("fitting");
  root.scrollTop = scrollTop; // it was bounded by the page without the formulas
}
