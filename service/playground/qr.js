// The page's address as a QR code, for a class to follow.

import { copyText, make, withErrors } from "./page.js";
import { viewParams } from "./settings.js";

const QUIET_ZONE = 4; // light modules around the code; scanners need them
const LOOPBACK = /^(localhost|.+\.localhost|127(\.\d+){3}|\[::1\])$/;

/** The address of the view, without presentation mode, so that it opens with the controls. */
const sharedAddress = () => `${location.origin}${location.pathname}${viewParams().size ? `?${viewParams()}` : ""}`;

/** Draw the QR code of `text` on a canvas, with one pixel per module. Returns false if no QR code holds so long a text. */
async function drawCode(canvas, text) {
  const { encode } = await import("./vendor/uqr.js");
  let code;
  try {
    code = encode(text, { ecc: "M", border: QUIET_ZONE });
  } catch (error) {
    if (error instanceof RangeError) return false;
    throw error;
  }
  canvas.width = canvas.height = code.size;
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, code.size, code.size);
  context.fillStyle = "#000";
  code.data.forEach((row, y) => row.forEach((isDark, x) => isDark && context.fillRect(x, y, 1, 1)));
  return true;
}

/**
 * A dialog with the QR code of the address, which follows the address: `open({ isCorner })` shows it in a corner of the page
 * or over the page, `close()` closes it. `onToggle()` is called after both.
 */
export function shareDialog(onToggle) {
  const canvas = make("canvas", { className: "qr", role: "img", "aria-label": "QR code of the address" });
  const tooLong = make("p", { className: "fault", hidden: true, textContent: "The address is too long for a QR code." });
  const warning = make("p", { className: "fault", hidden: !LOOPBACK.test(location.hostname) }, "This address works on this computer only. Other devices need one that ",
    make("code", { textContent: "make class" }), " or ", make("code", { textContent: "drawbridge serve --class" }), " prints: start the service so, and open the page there.");
  const address = make("p", { className: "address" });
  const copy = make("button", { type: "button", textContent: "Copy address", onclick: () => withErrors(() => copyText(address.textContent, copy)) });
  const close = make("button", { type: "button", textContent: "Close", onclick: () => dialog.close() });
  const dialog = make("dialog", { id: "share", "aria-label": "The address of this page" }, warning, canvas, tooLong, address, make("div", { className: "row" }, copy, close));
  dialog.onclose = onToggle;
  dialog.onclick = ({ target }) => target === dialog && dialog.matches(":modal") && dialog.close(); // the backdrop
  document.body.append(dialog);

  const refresh = async () => {
    const text = sharedAddress();
    if (text === address.textContent) return;
    address.textContent = text;
    const isDrawn = await drawCode(canvas, text);
    canvas.hidden = !isDrawn;
    tooLong.hidden = isDrawn;
  };
  addEventListener("addresschange", () => dialog.open && withErrors(refresh));
  const open = async ({ isCorner }) => {
    if (dialog.open) dialog.close();
    await refresh();
    const focused = document.activeElement;
    if (!isCorner) dialog.showModal();
    else {
      dialog.show();
      focused.focus();
    }
    onToggle();
  };
  return { open, close: () => dialog.close(), isOpen: () => dialog.open };
}
