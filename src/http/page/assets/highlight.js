/** Syntax highlighting as descriptions of nodes (see `build` in dom.js). */

import hljs from "./vendor/highlight.min.js";

/** Longer code is not highlighted: it would block the page. */
const MAX_LENGTH = 50_000;
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'" };
/** The parts of what highlight.js writes: spans with a class, and escaped text. */
const PART = /<span class="([\w -]+)">|(<\/span>)|(&(?:amp|lt|gt|quot|#x27);)|([^<&]+)/y;

/** The descriptions of code, highlighted if its language is known. */
export function describeCode(code, language) {
  if (!hljs.getLanguage(language) || code.length > MAX_LENGTH) return [code];
  return parsed(hljs.highlight(code, { language, ignoreIllegals: true }).value) ?? [code];
}

/** Reads the output of highlight.js; null if it has anything unexpected. */
export function parsed(html) {
  const root = ["root", {}];
  const open = [root];
  PART.lastIndex = 0;
  while (PART.lastIndex < html.length) {
    const part = PART.exec(html);
    if (!part) return null;
    const [, className, isEnd, entity, text] = part;
    if (className) open.push(["span", { class: className }]);
    else if (!isEnd) open.at(-1).push(text ?? ENTITIES[entity]);
    else if (open.length === 1) return null;
    else open.at(-2).push(open.pop());
  }
  return open.length === 1 ? root.slice(2) : null;
}
