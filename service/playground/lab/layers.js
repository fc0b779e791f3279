// The switches of the layers, which are the legend of the drawings as well.

import { make } from "../page.js";
import { findModel, needsData } from "./setup.js";

const TITLES = {
  data: "data", samples: "samples", field: "field", optimal: "D* = p/(p+q)", arrows: "where samples are moved",
  kernels: "kernels", components: "components", segments: "reconstructions",
};
/** Titles of layers that mean something else for these models. */
const SPECIAL = {
  gaussian: { field: "density" }, kde: { field: "density" }, gmm: { field: "density" },
  gan: { field: "D(x)" }, pacgan2: { field: "D(x)" }, r1_r2: { field: "critic" }, wgan_gp: { field: "critic" },
  ddpm: { arrows: "score" }, flow: { arrows: "velocity", segments: "noise to samples" },
  meanflow: { arrows: "average velocity", segments: "noise to samples" }, pca: { segments: "axes, reconstructions" },
  xy_game: { arrows: "gradient", segments: "path", samples: "(x, y)" },
};

/** Checkboxes for the layers that the setup's models show; `onChange(layers)` receives the set of those switched on. */
export function layerSwitches(setup, onChange) {
  const offered = new Set([...(needsData(setup) ? ["data"] : []), "samples", ...setup.models.flatMap(({ name }) => findModel(name).shows)]);
  const switches = Object.keys(TITLES).filter((layer) => offered.has(layer)).map((layer) => {
    const titles = new Set(setup.models.filter(({ name }) => ["data", "samples", ...findModel(name).shows].includes(layer))
      .map(({ name }) => SPECIAL[name]?.[layer] ?? TITLES[layer]));
    const input = make("input", { type: "checkbox", name: "layer", value: layer, checked: setup.layers.has(layer) });
    input.onchange = () => {
      const layers = new Set(setup.layers);
      if (input.checked) layers.add(layer);
      else layers.delete(layer);
      setup = { ...setup, layers };
      onChange(layers);
    };
    return make("label", { className: `switch layer-${layer}` }, input, make("i"), [...titles].join(" / "));
  });
  return make("fieldset", { className: "layers" }, make("legend", { className: "visually-hidden", textContent: "Layers" }), ...switches);
}
