// A square to draw a digit on, white on black; it also shows a chosen image.

import { make } from "./page.js";

const SIZE = 280; // pixels
const PEN = { lineWidth: 24, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" };

/** The pad's `canvas`; `clear()`; `show(file)`; and `source()`, the promise of the file or drawing on it, null if it is empty. */
export function drawingPad(label) {
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
    const scale = SIZE / Math.max(picture.width, picture.height);
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
  return { canvas, clear, show, source };
}
