/**
 * The module worker that runs one experiment of the live lab.
 *
 * Messages from the page:
 *   {type: "start", id, settings}     a new experiment at update 0; `settings` as for `checkSettings` of catalog.js
 *   {type: "run", updatesPerFrame}    train and post a frame after each `updatesPerFrame` updates, at most 30 a second,
 *                                     until paused or finished
 *   {type: "pause"}
 *   {type: "step", updates}           train for so many updates, then post a frame; pauses
 *   {type: "seek", update}            go back or forward to an update, then post a frame with `history`; pauses
 *   {type: "view", settings}          change parameters that have `view: true`; posts a frame
 *
 * Messages to the page:
 *   {type: "frame", id, update, finished, samples: Float32Array(2n), data?: Float32Array(2m), curves: {name: value},
 *    history?, field?, optimal?, arrows?, components?, kernels?, segments?}
 *   {type: "error", id, message}      the settings are wrong, or the experiment failed; nothing runs any more
 *
 *   data         the training points, in the frame of update 0 after "start"
 *   curves       losses and measures after this update; the names are the same in all frames but that of update 0,
 *                which has no losses
 *   history      {updates: Float32Array, [name]: Float32Array} of all updates that frames measured, in their order; NaN
 *                where there was no value
 *   field        {name, size, values: Float32Array(size * size), low, high, diverging} over the square [-4, 4]^2, row 0
 *                at the top (y = 4), values at the centres of the cells; name: "D(x)", "C(x)" or "density"
 *   optimal      the same for D* = p / (p + q), from histograms of the data and of samples that were smoothed alike; NaN
 *                where neither has points
 *   arrows       Float32Array(4k): (x, y, dx, dy), longest 0.6: the direction in which G moves samples, the score or the
 *                velocity on a lattice, or the players' gradient
 *   components   [{weight, mean: [x, y], covariance: [xx, xy, yy]}]
 *   kernels      {bandwidth, centres: Float32Array(2k)}
 *   segments     Float32Array(4k): (x1, y1, x2, y2): the axes of PCA first, then points and their reconstructions; the
 *                path of the xy-game
 * All coordinates are in the plane of the page, -4 to 4.
 */
