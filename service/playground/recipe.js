// The recipe in a PNG of the service: the request that draws it again.

const SIGNATURE = "\x89PNG\r\n\x1a\n";
/** The keyword of the iTXt chunk, and an uncompressed text without a language or a translated keyword. */
const HEAD = "drawbridge\0\0\0\0\0";

/** The `digest` of the weights that drew a file, and the parameters of /generate that draw it again. */
export async function readRecipe(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const text = findText(bytes, file.name);
  try {
    // A seed may be larger than the whole numbers that JavaScript has: it stays as it is written.
    const recipe = JSON.parse(text, (key, value, context) => (key === "seed" ? context?.source ?? value : value));
    if (typeof recipe.model === "string" && typeof recipe.digest === "string") return recipe;
  } catch {
    // damaged as well
  }
  throw new Error(`${file.name}: the recipe is damaged.`);
}

function findText(bytes, name) {
  const latin = (from, to) => String.fromCharCode(...bytes.subarray(from, to));
  if (latin(0, SIGNATURE.length) !== SIGNATURE) throw new Error(`${name} is not a PNG. Only PNGs hold a recipe that draws them again.`);
  const view = new DataView(bytes.buffer);
  for (let position = SIGNATURE.length; position + 8 <= bytes.length; ) {
    const [start, end] = [position + 8, position + 8 + view.getUint32(position)];
    if (latin(position + 4, start) === "iTXt" && latin(start, start + HEAD.length) === HEAD) {
      return new TextDecoder().decode(bytes.subarray(start + HEAD.length, end));
    }
    position = end + 4; // the checksum
  }
  throw new Error(`${name} has no recipe. The PNGs of /generate have one, unless another program has saved them since.`);
}

/** The settings of the view "Generate" that a recipe names, as pairs. */
export function recipeSettings({ digest, model, first, ...parameters }) {
  const pairs = Object.entries(parameters).flatMap(([name, value]) => [value].flat().map((text) => [name, text]));
  return [["view", "generate"], ["model", nameOf(model)], ...pairs, ["first", first || null]];
}

/** The name of a model without its version. */
export const nameOf = (model) => model.split("@")[0];
