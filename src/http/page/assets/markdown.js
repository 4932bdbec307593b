/**
 * Markdown as descriptions of nodes (see `build` in dom.js). marked's lexer reads the text; no HTML is made or parsed,
 * HTML in the text is shown as it is written, and no image is loaded.
 */

import { Lexer } from "./vendor/marked.esm.js";

/**
 * Longer texts, and texts with a longer paragraph, are shown as they are: the time of the lexer grows with the square of
 * a paragraph of `a**b`, to 0.4 s for this length.
 */
const MAX_LENGTH = 200_000;
const MAX_PARAGRAPH = 50_000;
/** Quotes and lists nested deeper are shown as they are. */
const MAX_DEPTH = 30;
const SAFE_LINK = /^(?:https?:\/\/|mailto:)/i;
const NAMED_ENTITIES = {
  amp: "&",
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  nbsp: "\u00a0",
  copy: "©",
  mdash: "—",
  ndash: "–",
  hellip: "…",
  rarr: "→",
  times: "×",
  deg: "°",
};

/** Splits a text into its blocks. The `raw` texts of all blocks together are the text. */
export function blocksOf(text) {
  if (isTooLarge(text) || nestingOf(text) > MAX_DEPTH) return [plainBlock(text)];
  try {
    return [...new Lexer({ gfm: true, breaks: true }).lex(text)];
  } catch {
    return [plainBlock(text)];
  }
}

/** The descriptions of a text's nodes. */
export const describeText = (text) => blocksOf(text).flatMap(describe);

const plainBlock = (text) => ({ type: "plain", raw: text, text });

function isTooLarge(text) {
  return text.length > MAX_LENGTH || text.split(/\n[ \t]*\n/).some(({ length }) => length > MAX_PARAGRAPH);
}

/** The deepest indentation and the most quote marks of a line, as levels. */
function nestingOf(text) {
  let deepest = 0;
  for (const [marks] of text.matchAll(/^[ \t>*+-]{20,}/gm)) {
    deepest = Math.max(deepest, marks.replace(/[ \t]{4}|[ \t]/g, (space) => (space.length > 1 ? ">" : "")).length);
  }
  return deepest;
}

/** The descriptions of a block's nodes. */
export function describe(token) {
  switch (token.type) {
    case "space":
    case "def":
      return [];
    case "heading":
      // The page and its views have the headings of levels 1 and 2.
      return [[`h${Math.min(token.depth + 2, 6)}`, {}, ...inlineNodes(token.tokens)]];
    case "paragraph":
      return [["p", {}, ...inlineNodes(token.tokens)]];
    case "text":
      return token.tokens ? inlineNodes(token.tokens) : [decoded(token.text)];
    case "code":
      return [["code-block", { language: languageOf(token.lang), code: token.text }]];
    case "blockquote":
      return [["blockquote", {}, ...token.tokens.flatMap(describe)]];
    case "list":
      return [list(token)];
    case "table":
      return [table(token)];
    case "hr":
      return [["hr", {}]];
    case "html":
      return [["p", { class: "source" }, token.raw.trimEnd()]];
    default:
      return [["p", { class: "source" }, token.raw]];
  }
}

function list(token) {
  const name = token.ordered ? "ol" : "ul";
  const start = token.ordered && token.start !== 1 && token.start !== "" ? String(token.start) : null;
  return [name, { start }, ...token.items.map(listItem)];
}

function listItem(item) {
  const tokens = item.tokens.filter(({ type }) => type !== "checkbox");
  const mark = item.task ? [item.checked ? "☑ " : "☐ "] : [];
  return ["li", {}, ...mark, ...tokens.flatMap(describe)];
}

function table({ header, rows }) {
  const row = (cells, name, attributes) => [
    "tr",
    {},
    ...cells.map(({ align, tokens }) => [
      name,
      { ...attributes, class: align ? `align-${align}` : null },
      ...inlineNodes(tokens),
    ]),
  ];
  const head = ["thead", {}, row(header, "th", { scope: "col" })];
  const body = ["tbody", {}, ...rows.map((cells) => row(cells, "td", {}))];
  // Wide tables scroll by themselves, with the keyboard, too.
  return ["div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, ["table", {}, head, body]];
}

const inlineNodes = (tokens = []) => tokens.flatMap(inlineNode);

function inlineNode(token) {
  switch (token.type) {
    case "text":
    case "escape":
      return token.tokens ? inlineNodes(token.tokens) : [decoded(token.text)];
    case "strong":
    case "em":
    case "del":
      return [[token.type, {}, ...inlineNodes(token.tokens)]];
    case "codespan":
      return [["code", {}, token.text]];
    case "br":
      return [["br", {}]];
    case "link":
      return link(token.href, inlineNodes(token.tokens));
    case "image":
      return link(token.href, [token.text ? `Image: ${decoded(token.text)}` : "Image"]);
    default:
      return [token.raw];
  }
}

/** A link, or its children alone where the address is none that is safe to open. */
function link(address, children) {
  const href = decoded(address ?? "").trim();
  if (!SAFE_LINK.test(href) || !URL.canParse(href)) return children;
  return [["a", { href, rel: "noopener noreferrer nofollow", target: "_blank" }, ...children]];
}

/** The text with its character references resolved, which the lexer leaves as they are. */
function decoded(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]+));/gi, (reference, decimal, hex, name) => {
    if (name) return NAMED_ENTITIES[name] ?? reference;
    const code = decimal ? Number(decimal) : parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : "\ufffd";
  });
}

/** The first word after the fence. */
const languageOf = (info) =>
  (info ?? "")
    .trim()
    .split(/[\s,{]/, 1)[0]
    .toLowerCase();
