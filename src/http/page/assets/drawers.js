/** The panels at the sides: beside the content where there is room, else above it, one at a time. */

import { byId, iconButton } from "./dom.js";
import { readPreference, writePreference } from "./preferences.js";

const drawers = [];

/**
 * Starts a panel with the button that shows and hides it. `wideQuery` is the media query of windows that have room for
 * it; there it stays as the user left it. Returns a function that opens it.
 */
export function startDrawer({ id, name, iconName, place, wideQuery }) {
  const panel = byId(id);
  const wide = matchMedia(wideQuery);
  const button = iconButton(iconName, name, () => set(panel.hidden, true), { "aria-controls": id });
  const set = (isOpen, isChosen = false) => {
    panel.hidden = !isOpen;
    button.setAttribute("aria-expanded", String(isOpen));
    if (isChosen && wide.matches) writePreference(`open-${id}`, isOpen);
    if (isOpen && !wide.matches) coverContent(id);
    showBackdrop();
  };
  const fit = () => set(wide.matches && readPreference(`open-${id}`) !== false);
  wide.addEventListener("change", fit);
  place.replaceWith(button);
  drawers.push({ id, panel, button, wide, close: () => set(false) });
  fit();
  return () => set(true);
}

/** Closes the panel that covers the content; returns whether there was one. */
export function closeDrawer() {
  const open = drawers.find(isCovering);
  if (!open) return false;
  open.close();
  open.button.focus();
  return true;
}

const isCovering = ({ panel, wide }) => !panel.hidden && !wide.matches;

function coverContent(id) {
  for (const drawer of drawers) if (drawer.id !== id && isCovering(drawer)) drawer.close();
  byId(id).querySelector("button, input, textarea")?.focus();
}

/** Keeps the content from clicks and focus while a panel covers it. */
function showBackdrop() {
  const isCovered = drawers.some(isCovering);
  byId("backdrop").hidden = !isCovered;
  byId("main").inert = isCovered;
}
