// What the page shows: data, one or two models, their parameters, layers and speed; and its form in the page address.
//
// A setup is {data, points, seed, speed, layers: Set, source: {name: value}, models: [{name, values: {name: value}}]}, where
// `source` has the data's parameters. In the address, names of the second model's parameters begin with "b.".

import { loadAddress, oneOf, readSetting, setAddress, wholeNumber } from "../settings.js";
import { DATA, MAX_SEED, MODELS } from "./engine/catalog.js";
import { LAYERS } from "./plane.js";
import { checkPoints, decodePoints, encodePoints } from "./points.js";

/** Updates per second that the user can choose. */
export const SPEEDS = { 2: "2 updates a second", 10: "10 updates a second", 60: "60 updates a second", max: "as fast as possible" };
const SPEED = "60"; // at first
export const PREFIXES = ["", "b."];
const HIDDEN = ["optimal"]; // layers that are switched off at first
const MAX_UPDATE = 1e6;

export const findData = (name) => DATA.find((data) => data.name === name);
export const findModel = (name) => MODELS.find((model) => model.name === name);
export const needsData = ({ models }) => models.some(({ name }) => findModel(name).needsData ?? true);

const names = (entries) => entries.map(({ name }) => name);
const defaults = (parameters, given = {}) => Object.fromEntries(parameters.map(({ name, default: value }) => [name, given[name] ?? value]));
const defaultLayers = () => new Set(LAYERS.filter((name) => !HIDDEN.includes(name)));

/** A setup from its parts: {data, source, models: [{name, ...values}], layers, seed, speed}, with defaults for what is missing. */
export function makeSetup({ data = "ring", points = [], seed = 0, speed = SPEED, layers, source, models }) {
  return {
    data, points, seed, speed, layers: layers ? new Set(layers) : defaultLayers(), source: defaults(findData(data).parameters, source),
    models: models.map(({ name, ...values }) => ({ name, values: defaults(findModel(name).parameters, values) })),
  };
}

/** The settings of the setup's experiments, one for each model. */
export const experimentSettings = ({ data, points, seed, source, models }) => models.map(({ name, values }) =>
  ({ data, model: name, seed, ...(data === "drawn" ? { points } : {}), ...source, ...values }));

/** The check of a parameter's text: what is wrong with it, or null. */
export function checkOf({ kind, values, min, max, step }) {
  if (kind === "choice") return oneOf(values.map(String));
  const isWhole = step === 1;
  return (text) => {
    const fits = /^-?\d*\.?\d+(e-?\d+)?$/i.test(text) && Number(text) >= min && Number(text) <= max && !(isWhole && Number(text) % 1);
    return fits ? null : `not a ${isWhole ? "whole " : ""}number from ${min} to ${max}`;
  };
}

/** The value of a parameter from its text. */
export const parse = ({ kind, values }, text) => (kind === "choice" ? values.find((value) => String(value) === text) : Number(text));

/** Read the setup from the page address, and the update to show. `fallback` is the setup of an address without settings. */
export function readAddress(fallback) {
  loadAddress();
  const update = Number(readSetting("at", wholeNumber(0, MAX_UPDATE), 0));
  if (!location.search) return { setup: fallback, update };
  const readParameters = (parameters, prefix) => Object.fromEntries(parameters.map((parameter) =>
    [parameter.name, parse(parameter, readSetting(prefix + parameter.name, checkOf(parameter), String(parameter.default)))]));
  const readName = (name) => readSetting(name, oneOf(names(MODELS)));
  const data = readSetting("data", oneOf(names(DATA)), fallback.data);
  const points = data === "drawn" ? decodePoints(readSetting("points", checkPoints, "")) : [];
  const chosen = [readName("model") ?? "gan", readName("b.model")].filter(Boolean);
  const layers = readSetting("layers", checkLayers);
  const setup = {
    data, points, seed: Number(readSetting("seed", wholeNumber(0, MAX_SEED), 0)),
    speed: readSetting("speed", oneOf(Object.keys(SPEEDS)), SPEED),
    layers: layers === undefined ? defaultLayers() : new Set(layers.split(",").filter((name) => name !== "none")),
    source: readParameters(findData(data).parameters, ""),
    models: chosen.map((name, index) => ({ name, values: readParameters(findModel(name).parameters, PREFIXES[index]) })),
  };
  return { setup, update };
}

const checkLayers = (text) => (text === "none" || text.split(",").every((name) => LAYERS.includes(name)) ? null
  : `not none, and not a list of ${LAYERS.join(", ")}`);

/** Write the setup and the update that is shown into the page address. Values that are the default are left out. */
export function writeAddress({ data, points, seed, speed, layers, source, models }, update) {
  const changed = (parameters, values, prefix) => parameters.filter(({ name, default: value }) => values[name] !== value)
    .map(({ name }) => [prefix + name, values[name]]);
  const usual = defaultLayers();
  const isUsual = layers.size === usual.size && [...layers].every((name) => usual.has(name));
  setAddress([
    ["data", data], ["points", encodePoints(points)], ...changed(findData(data).parameters, source, ""),
    ...models.flatMap(({ name, values }, index) =>
      [[`${PREFIXES[index]}model`, name], ...changed(findModel(name).parameters, values, PREFIXES[index])]),
    ["seed", seed || null], ["speed", speed === SPEED ? null : speed],
    ["layers", isUsual ? null : [...layers].join(",") || "none"], ["at", update || null],
  ]);
}

/** A value of a choice as words. */
export const words = (value) => String(value).replaceAll("_", " ");

/** The titles of the setup's models. Two of one kind also have the values in which they differ. */
export function experimentTitles({ models }) {
  const [one, other] = models;
  const { title, parameters } = findModel(one.name);
  if (one.name !== other?.name) return models.map(({ name }) => findModel(name).title);
  const differing = parameters.filter(({ name }) => one.values[name] !== other.values[name]);
  return models.map(({ values }) => [title, ...differing.map(({ name, title: what, kind }) =>
    (kind === "choice" ? words(values[name]) : `${what.toLowerCase()} ${values[name]}`))].join(", "));
}

/** True if both setups train the same experiments. */
export const sameExperiments = (one, other) => JSON.stringify(experimentSettings(one)) === JSON.stringify(experimentSettings(other));
