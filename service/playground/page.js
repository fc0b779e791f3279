// Page elements, messages to the user, and the task that runs.

import { getKey, isUnauthorized, requestBlobUrl, setKey } from "./api.js";

const ATTRIBUTES = ["role", "for", "list"];

/** An element with properties and children. Properties whose name has a dash, `role`, `for` and `list` are set as attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || ATTRIBUTES.includes(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** `text` with a capital first letter. */
export const capitalize = (text) => text[0].toUpperCase() + text.slice(1);

/** Let the images in `element` have the shape of the model's. */
export const showShape = (element, { width, height }) => element.style.setProperty("--shape", `${width} / ${height}`);

const byId = (id) => document.getElementById(id);

let running = new AbortController();

/** Replace the current view, and cancel its task. */
export function showView(...children) {
  cancelTask();
  byId("view").replaceChildren(...children);
}

function showMessage(id, text) {
  byId(id).hidden = !text;
  byId(id).textContent = text;
}

/** Show an error to all users, screen readers included; "" hides it. */
export const showError = (text) => showMessage("error", text);

/** Show a notice above the view; "" hides it. */
export const showNotice = (text) => showMessage("notice", text);

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
  showError("");
  try {
    await task();
  } catch (error) {
    if (isUnauthorized(error)) requestKey(error.message);
    else if (error.name !== "AbortError") showError(error.message);
  }
}

/** Cancel the requests of the current task. */
export const cancelTask = () => running.abort();

/** Run `task(signal)` in place of the current task, and show its error, if any. The signal cancels its requests. */
export function runTask(task) {
  cancelTask();
  const controller = (running = new AbortController());
  return withErrors(async () => {
    try {
      await task(controller.signal);
    } finally {
      controller.abort(); // after an error, requests of the same task may still run
    }
  });
}

/** The name of a file about these things, such as a model and a label, without signs that shells and file systems read. */
export const fileName = (parts, suffix) =>
  `${parts.filter(Boolean).join("-").replace(/[^\p{L}\p{M}\p{N}._-]+/gu, "_")}.${suffix}`;

/** Let `link` download `address`. With a key, which a link cannot send, the page fetches the file on click. */
export function setDownload(link, address) {
  link.href = address;
  link.onclick = getKey() ? (event) => {
    event.preventDefault();
    withErrors(async () => make("a", { href: await requestBlobUrl(address), download: link.download }).click());
  } : null;
}

/** Copy a text, and say so on the button for a moment. */
export async function copyText(text, button) {
  button.dataset.name ??= button.textContent;
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copySelection(text, button);
  announce("Copied");
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = button.dataset.name), 1500);
}

/** Copy a text as browsers do without a clipboard: pages of plain HTTP have none, such as those of a class. */
function copySelection(text, button) {
  const field = make("textarea", { value: text, className: "visually-hidden" });
  button.after(field); // and not elsewhere: behind a dialog nothing can be selected
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  button.focus();
  if (!isCopied) throw new Error("The browser does not let the page copy. Select the text, and copy it.");
}

/** A collapsed code sample with a button that copies it. */
export function codeSample(title, text) {
  const button = make("button", { type: "button", textContent: `Copy ${title}` });
  button.onclick = () => withErrors(() => copyText(text, button));
  return make("details", {}, make("summary", { textContent: title }), make("pre", { textContent: text }), button);
}
