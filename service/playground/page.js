// Elements, what is said to people, and what stands in the address.

import { keep, key, source, Unauthorized } from "./api.js";

/** An element of `kind` with `properties` (names with a dash are attributes) and children. */
export function make(kind, properties = {}, ...children) {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);

/** Put `children` into the page's main part. */
export function show(...children) {
  byId("view").replaceChildren(...children);
}

/** Tell of an error where everybody sees and hears it; null takes it away. */
export function tell(error) {
  byId("error").hidden = !error;
  byId("error").textContent = error ? error.message : "";
}

/** Say something to those who listen to the page. */
export function say(text) {
  byId("said").textContent = text;
}

/** Ask for a key in place of the view, which is drawn again with it; `why` is what the service said. */
function askForKey(why) {
  const input = make("input", { type: "password", id: "key", required: true, autocomplete: "off", "aria-describedby": "why",
    pattern: "[ -~]+", title: "letters, digits and signs without accents, as a header can carry" });
  const form = make("form", {},
    make("p", { className: "small", id: "why", textContent: why }),
    make("div", {}, make("label", { for: "key", textContent: "Key" }), input),
    make("button", { className: "first", textContent: "Open" }));
  form.onsubmit = (event) => {
    event.preventDefault();
    guarded(() => {
      keep(input.value);
      location.reload();
    });
  };
  show(form);
  input.focus();
}

/** Run `work`; what it throws is told, unless somebody cancelled it. Where a key is wanted, it is asked for. */
export async function guarded(work) {
  tell(null);
  try {
    await work();
  } catch (error) {
    if (error instanceof Unauthorized) askForKey(error.message);
    else if (error.name !== "AbortError") tell(error);
  }
}

/** What the address says: a URLSearchParams. */
export const words = () => new URLSearchParams(location.search);

/** Let the address say `pairs`, so that it can be shared; what is empty is left out. */
export function remember(pairs) {
  const said = new URLSearchParams(pairs.filter(([, value]) => value !== undefined && value !== null && value !== ""));
  history.replaceState(null, "", `?${said}`);
}

/** A new seed, whole in JavaScript's numbers. */
export const newSeed = () => Math.floor(Math.random() * 2 ** 32);

/** Let `link` download what is at `address`; where only a key gets it, the page fetches it at a click. */
export function lead(link, address) {
  link.href = address;
  link.onclick = key() ? (event) => {
    event.preventDefault();
    guarded(async () => make("a", { href: await source(address), download: link.download }).click());
  } : null;
}

/** A line of text to copy, with a button that does. */
export function copyable(title, text) {
  const button = make("button", { type: "button", textContent: `Copy ${title}` });
  button.onclick = async () => {
    await navigator.clipboard.writeText(text);
    say(`${title} copied`);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = `Copy ${title}`), 1500);
  };
  return make("details", {}, make("summary", { textContent: `As ${title}` }), make("pre", { textContent: text }), button);
}
