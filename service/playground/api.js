// What the service can be asked, and how its answers are read.

/** A problem that the service, or the way to it, has told. */
export class Problem extends Error {}

/** The service wants a key, or another one. */
export class Unauthorized extends Problem {}

const KEY = "drawbridge-key";

/** The key that was given, or "". The tab keeps it, and nothing else does. */
export function key() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // where nothing may be kept, a service without keys works all the same
  }
}

/** Have every request from now on show this key. */
export const keep = (given) => sessionStorage.setItem(KEY, given);

/** `path` with a query of `words`, pairs of names and values; values that are undefined, null or "" are left out. */
export function url(path, words) {
  const said = words.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return said.length ? `${path}?${new URLSearchParams(said)}` : path;
}

/** The answer to a request. Throws a Problem that says what to do. */
export async function ask(address, options = {}) {
  const headers = { ...options.headers, ...(key() && { Authorization: `Bearer ${key()}` }) };
  let answer;
  try {
    answer = await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service does not answer. Is it running? Try again in a moment.");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    const Kind = answer.status === 401 ? Unauthorized : Problem;
    throw new Kind(told.detail ?? `The service answered ${answer.status}.`);
  }
  return answer;
}

/** JSON of an answer. */
export const read = async (address, options) => (await ask(address, options)).json();

/** Server-sent events of an answer, one by one: {name, data}. An `error` event is thrown as a Problem. */
export async function* events(address, options) {
  const answer = await ask(address, { ...options, headers: { Accept: "text/event-stream" } });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", last = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new Problem("The connection broke off before the end. Draw again.");
      });
      if (done) break;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const [name, data] = part.split("\n").map((line) => line.slice(line.indexOf(":") + 2));
        const said = { name, data: JSON.parse(data) };
        if (name === "error") throw new Problem(said.data.detail);
        yield said;
        last = name;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // who stops listening wants no more of it drawn
  }
  if (last !== "end") throw new Problem("The connection broke off before the end. Draw again.");
}

/** Where a picture or a link finds what is at `address`: there; with a key, which they cannot show, in the page itself. */
export const source = async (address) => (key() ? URL.createObjectURL(await (await ask(address)).blob()) : address);

/** Base64 of a PNG as an address of an image. */
export const picture = (png) => `data:image/png;base64,${png}`;
