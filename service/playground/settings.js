// The settings of the experiment: those that the page address names, and those that the user has changed since.
// A setting is a list of texts under a name, such as `label`: ["3", "8"]. Settings survive a change of model or view.

let settings = new Map();
/** Settings of the address that no control has read yet, as keys. */
let unread = new Set();
/** What is wrong with settings of the address. */
let problems = [];

/** Settings that are not of a view, and hold in all of them. */
const PAGE_SETTINGS = ["present"];

/** Names of settings in addresses that were shared when the classes were digits. */
const OLD_NAMES = { digit: "label" };

const ADDRESS_DELAY = 500; // milliseconds: browsers limit how often a page may write its address

const keyOf = (name, index) => `${name} ${index}`;

/** Take the settings from the page address, and forget those from before. */
export function loadAddress() {
  settings = new Map();
  for (const [name, text] of new URLSearchParams(location.search)) {
    const current = OLD_NAMES[name] ?? name;
    settings.set(current, [...(settings.get(current) ?? []), text]);
  }
  unread = new Set([...settings].flatMap(([name, texts]) => texts.map((_, index) => keyOf(name, index))));
  problems = [];
}

/** The number of texts that the setting has. */
export const countSettings = (name) => settings.get(name)?.length ?? 0;

/** The setting, or `fallback` if there is none or `check` finds it wrong. */
export function readSetting(name, check, fallback, index = 0) {
  const text = settings.get(name)?.[index];
  const isFromAddress = unread.delete(keyOf(name, index));
  if (!text) return fallback;
  const problem = check(text);
  if (problem && isFromAddress) problems.push(`${name}=${text} (${problem})`);
  return problem ? fallback : text;
}

/** Remember a setting. */
export function setSetting(name, text, index = 0) {
  if (!settings.has(name)) settings.set(name, []);
  settings.get(name)[index] = text;
}

/** Remember all texts of a setting. */
export const setSettings = (name, texts) => settings.set(name, texts);

/** One line about the settings of the address that are wrong or have no effect; "" if there are none. */
export function addressProblems() {
  const unused = [...settings].flatMap(([name, texts]) =>
    texts.filter((_, index) => unread.has(keyOf(name, index))).map((text) => `${name}=${text} (not a setting of this view and model)`));
  const all = [...problems, ...unused];
  return all.length ? `Ignored in the page address: ${all.join("; ")}.` : "";
}

/** `params`, pairs of names and values, as a query. Values that are undefined, null or "" are left out. */
export const queryOf = (params) =>
  new URLSearchParams(params.filter(([, value]) => value !== undefined && value !== null && value !== ""));

/** Write `params` of the view into the page address, so that it can be shared. Settings of the page stay in it. */
export function setAddress(params) {
  const kept = PAGE_SETTINGS.map((name) => [name, settings.get(name)?.[0]]);
  history.replaceState(null, "", `?${queryOf([...params, ...kept])}`);
  dispatchEvent(new Event("addresschange"));
}

let pendingWrite = null, timer = null;

/** Call `write`, which writes the page address, soon; of several calls before then, the last counts. */
export function scheduleAddress(write) {
  pendingWrite = write;
  timer ??= setTimeout(finishAddress, ADDRESS_DELAY);
}

/** Write a scheduled address now, so that a reader of the address sees what the page shows. */
export function finishAddress() {
  clearTimeout(timer);
  timer = null;
  pendingWrite?.();
  pendingWrite = null;
}

/** The query of the page address without the settings of the page. */
export const viewParams = () =>
  new URLSearchParams([...new URLSearchParams(location.search)].filter(([name]) => !PAGE_SETTINGS.includes(name)));

// Checks return what is wrong with a text, or null.

export const oneOf = (choices, problem = `not one of ${choices.join(", ")}`) => (text) => (choices.includes(text) ? null : problem);

export const wholeNumber = (minimum, maximum) => (text) =>
  /^\d+$/.test(text) && BigInt(text) >= minimum && BigInt(text) <= maximum ? null : `not a whole number from ${minimum} to ${maximum}`;

export const multipleOf = (step, minimum, maximum) => (text) => {
  const steps = text / step;
  const fits = /^\d+(\.\d+)?$/.test(text) && Math.abs(steps - Math.round(steps)) < 1e-9 && text >= minimum && text <= maximum;
  return fits ? null : `not a multiple of ${step} from ${minimum} to ${maximum}`;
};
