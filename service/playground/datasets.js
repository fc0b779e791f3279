// The data sets that the served models were trained on.

/** The models in groups {id, title, models}, one per data set, in the order of their first models. */
export function groupByData(models) {
  const groups = new Map();
  for (const model of models) {
    const { dataset: { name = "", digest = "" }, channels, height, width } = model;
    const key = JSON.stringify([digest || name, channels, height, width]);
    if (!groups.has(key)) {
      const taken = [...groups.values()].map(({ id }) => id);
      const id = names(dataName(name), `${height}x${width}`, digest.slice(0, 6)).find((candidate) => !taken.includes(candidate));
      groups.set(key, { id, title: `${id}: ${height} × ${width}, ${channels === 1 ? "grey" : "colour"}`, models: [] });
    }
    groups.get(key).models.push(model);
  }
  return [...groups.values()];
}

/** The group with the model called `name`, else the first one. */
export const groupOf = (groups, name) => groups.find(({ models }) => models.some((model) => model.name === name)) ?? groups[0];

/** What the page calls a data set: its name, or the last part of its path. */
export const dataName = (name) => name.split("/").filter(Boolean).at(-1)?.replace(/\.(npz|parquet)$/, "") || "unnamed data";

/** Names for a data set, the first that no other one has is used. */
const names = (name, size, digest) => [name, `${name} ${size}`, `${name} ${size} ${digest}`];
