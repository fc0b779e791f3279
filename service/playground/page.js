// Page elements, messages to the user, and the page address.

import { getKey, loadable, setKey, Unauthorized } from "./api.js";

/** An element with properties and children. Properties whose name has a dash, `role` and `for` are set as attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);

/** Replace the current view. */
export function showView(...children) {
  byId("view").replaceChildren(...children);
}

/** Show an error to all users, screen readers included; null hides it. */
export function showError(error) {
  byId("error").hidden = !error;
  byId("error").textContent = error ? error.message : "";
}

/** Announce `text` to screen readers. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Show a form for the API key in place of the view, and reload the page with it. `reason` is the service's message. */
function requestKey(reason) {
  const input = make("input", { type: "password", id: "key", required: true, autocomplete: "off", "aria-describedby": "key-reason",
    pattern: "[ -~]+", title: "ASCII letters, digits and signs only: the key is sent in a header" });
  const form = make("form", {},
    make("p", { className: "small", id: "key-reason", textContent: reason }),
    make("div", {}, make("label", { for: "key", textContent: "API key" }), input),
    make("button", { className: "primary", textContent: "Open" }));
  form.onsubmit = (event) => {
    event.preventDefault();
    withErrors(() => {
      setKey(input.value);
      location.reload();
    });
  };
  showView(form);
  input.focus();
}

/** Run `task` and show its error, if any. A cancelled request is no error; a missing or rejected key opens the key form. */
export async function withErrors(task) {
  showError(null);
  try {
    await task();
  } catch (error) {
    if (error instanceof Unauthorized) requestKey(error.message);
    else if (error.name !== "AbortError") showError(error);
  }
}

/** The query of the page address, as URLSearchParams. */
export const addressParams = () => new URLSearchParams(location.search);

/** Write `params`, pairs of names and values, into the page address, so that it can be shared. Empty values are left out. */
export function setAddress(params) {
  const given = new URLSearchParams(params.filter(([, value]) => value !== undefined && value !== null && value !== ""));
  history.replaceState(null, "", `?${given}`);
}

/** A random seed that JavaScript represents exactly. */
export const randomSeed = () => Math.floor(Math.random() * 2 ** 32);

/** Let `link` download `address`. With a key, which a link cannot send, the page fetches the file on click. */
export function setDownload(link, address) {
  link.href = address;
  link.onclick = getKey() ? (event) => {
    event.preventDefault();
    withErrors(async () => make("a", { href: await loadable(address), download: link.download }).click());
  } : null;
}

/** A collapsed code sample with a button that copies it. */
export function codeSample(title, text) {
  const button = make("button", { type: "button", textContent: `Copy ${title}` });
  button.onclick = async () => {
    await navigator.clipboard.writeText(text);
    announce(`${title} copied`);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = `Copy ${title}`), 1500);
  };
  return make("details", {}, make("summary", { textContent: title }), make("pre", { textContent: text }), button);
}
