// Where the user gives an image: a square to draw a digit on, or a zone that shows a chosen image. Both have an `element`;
// `clear()`; `show(file)`; and `source()`, the promise of the file or drawing, null if there is none.

import { make } from "./page.js";

const SIZE = 280; // pixels
const PEN = { lineWidth: 24, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" };

/** A square to draw on, white on black; it also shows a chosen image: all of it, or with `isCropped` what fills the square. */
export function drawingPad(label, { isCropped = false } = {}) {
  const canvas = make("canvas", { className: "drawing-pad", width: SIZE, height: SIZE, role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  Object.assign(context, PEN);
  let file = null, drawn = false;
  const clear = () => {
    file = null;
    drawn = false;
    context.fillRect(0, 0, SIZE, SIZE);
  };
  const show = async (chosen) => {
    clear();
    file = chosen;
    const picture = await createImageBitmap(chosen).catch(() => null); // the service says what is wrong with the file
    if (!picture || file !== chosen) return;
    const scale = SIZE / Math[isCropped ? "min" : "max"](picture.width, picture.height);
    context.imageSmoothingEnabled = picture.width > SIZE; // the pixels of an image of the model's size are seen
    const [width, height] = [picture.width * scale, picture.height * scale];
    context.drawImage(picture, (SIZE - width) / 2, (SIZE - height) / 2, width, height);
  };
  const source = async () => file ?? (drawn ? new Promise((resolve) => canvas.toBlob(resolve)) : null);

  const lineTo = (event) => {
    const box = canvas.getBoundingClientRect();
    context.lineTo(((event.clientX - box.x) * SIZE) / box.width, ((event.clientY - box.y) * SIZE) / box.height);
    context.stroke();
  };
  canvas.onpointerdown = (event) => {
    if (file) clear();
    drawn = true;
    canvas.setPointerCapture(event.pointerId);
    context.beginPath();
    lineTo(event);
    lineTo(event); // a dot, if the pen does not move
  };
  canvas.onpointermove = (event) => canvas.hasPointerCapture(event.pointerId) && lineTo(event);
  clear();
  return { element: canvas, clear, show, source };
}

/** A zone for models of pictures. It is the label of the file field called `field`, so a click on it chooses a file. */
export function pictureZone(text, field) {
  const zone = make("label", { className: "picture-zone", for: field });
  let file = null;
  const clear = () => {
    file = null;
    zone.replaceChildren(text);
  };
  const show = async (chosen) => {
    file = chosen;
    const image = make("img", { src: URL.createObjectURL(chosen), alt: `your image, ${chosen.name}` });
    image.onerror = () => image.replaceWith(chosen.name); // the browser may lack the format; the service says what is wrong
    zone.replaceChildren(image);
  };
  clear();
  return { element: zone, clear, show, source: async () => file };
}

/** Call `use(file)` with each file that the user chooses in `field`, or drops on one of `targets`. */
export function receiveFiles(field, targets, use) {
  field.onchange = () => field.files[0] && use(field.files[0]);
  for (const target of targets) {
    target.ondragover = (event) => event.preventDefault();
    target.ondrop = (event) => {
      event.preventDefault();
      if (!event.dataTransfer.files.length) return;
      field.files = event.dataTransfer.files;
      use(field.files[0]);
    };
  }
}
