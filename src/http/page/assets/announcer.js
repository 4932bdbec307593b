/** The live region of the page. Screen readers hear an answer sentence by sentence, each once it is complete. */

import { byId, h } from "./dom.js";

const SENTENCE_END = /[.!?:](?=\s)|\n/g;
/** Older sentences leave the region; screen readers have them queued. */
const MAX_SENTENCES = 20;

let announced = 0;

/** Says a text. */
export function announce(text) {
  if (!text.trim()) return;
  const region = byId("announcer");
  region.append(h("p", {}, text.trim()));
  while (region.childElementCount > MAX_SENTENCES) region.firstElementChild.remove();
}

/** Begins with an answer. */
export function beginAnswer(text) {
  announced = text.length;
}

/** Says the sentences of an answer that are complete and were not said; all of it if it has ended. */
export function announceAnswer(text, hasEnded) {
  const end = hasEnded ? text.length : lastSentenceEnd(text);
  if (end <= announced) return;
  announce(text.slice(announced, end));
  announced = end;
}

function lastSentenceEnd(text) {
  const ends = [...text.slice(announced).matchAll(SENTENCE_END)];
  return ends.length > 0 ? announced + ends.at(-1).index + 1 : announced;
}
