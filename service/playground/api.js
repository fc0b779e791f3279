// Requests to the service.

import { queryOf } from "./settings.js";

/** A request failed; the message says what to do. `status` is that of the response, 0 without one. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const UNAUTHORIZED = 401;
const KEY_ITEM = "drawbridge-key";

/** Whether the service requires a key, or rejected the one that was sent. */
export const isUnauthorized = (error) => error.status === UNAUTHORIZED;

/** The API key, or "". It is kept in the tab's session storage and nowhere else. */
export function getKey() {
  try {
    return sessionStorage.getItem(KEY_ITEM) ?? "";
  } catch {
    return ""; // storage may be blocked; services without keys work all the same
  }
}

/** Send `key` with every request from now on. */
export const setKey = (key) => sessionStorage.setItem(KEY_ITEM, key);

/** `path` with `params`, pairs of names and values, as its query. Values that are undefined, null or "" are left out. */
export function buildUrl(path, params) {
  const query = queryOf(params);
  return query.size ? `${path}?${query}` : path;
}

/** Fetch `address` with the API key. Throws ApiError for a failed connection or an error status. */
export async function request(address, options = {}) {
  const headers = { ...options.headers, ...(getKey() && { Authorization: `Bearer ${getKey()}` }) };
  let response;
  try {
    response = await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service does not respond. Check that it is running, then try again.");
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new ApiError(problem.detail ?? `The service returned status ${response.status}.`, response.status);
  }
  return response;
}

/** The JSON body of a response. */
export const requestJson = async (address, options) => (await request(address, options)).json();

/** The body of a response, as an address that an image or a link can load. */
export const requestBlobUrl = async (address, options) => URL.createObjectURL(await (await request(address, options)).blob());

const manifests = new Map();

/** The manifest of a model. */
export function loadManifest(name) {
  if (!manifests.has(name)) {
    const manifest = requestJson(`models/${name}`).then((model) => model.manifest);
    manifest.catch(() => manifests.delete(name));
    manifests.set(name, manifest);
  }
  return manifests.get(name);
}

/** Yield the server-sent events of a response as {name, data}. Throws ApiError for an `error` event. */
export async function* streamEvents(address, options) {
  const response = await request(address, { ...options, headers: { Accept: "text/event-stream" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "", last = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new ApiError("The connection closed before the last image. Try again.");
      });
      if (done) break;
      const messages = (buffer + value).split("\n\n");
      buffer = messages.pop();
      for (const message of messages) {
        const [name, text] = message.split("\n").map((line) => line.slice(line.indexOf(":") + 2));
        const data = JSON.parse(text);
        if (name === "error") throw new ApiError(data.detail);
        yield { name, data };
        last = name;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // closing the stream cancels the request
  }
  if (last !== "end") throw new ApiError("The connection closed before the last image. Try again.");
}

/** A PNG in base64 as a data URL. */
export const pngUrl = (base64) => `data:image/png;base64,${base64}`;
