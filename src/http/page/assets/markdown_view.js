/** A text in Markdown that grows while it is streamed: only its last block is made anew. */

import { components } from "./code_block.js";
import { build, h } from "./dom.js";
import { blocksOf, describe } from "./markdown.js";

/** Creates an element with a whole text. */
export function markdown(text) {
  return h("div", { class: "markdown", dir: "auto" }, ...blocksOf(text).flatMap(nodesOf));
}

export class GrowingMarkdown {
  /** The length of the text whose blocks are closed. */
  #closedLength = 0;
  #openNodes = [];

  constructor() {
    this.element = h("div", { class: "markdown", dir: "auto" });
  }

  /** Shows a text that begins with the one that was shown before. */
  update(text) {
    const blocks = blocksOf(text.slice(this.#closedLength));
    const open = blocks.pop();
    const closedNodes = blocks.flatMap(nodesOf);
    this.#closedLength += blocks.reduce((length, { raw }) => length + raw.length, 0);
    for (const node of this.#openNodes) node.remove();
    this.#openNodes = open ? nodesOf(open) : [];
    this.element.append(...closedNodes, ...this.#openNodes);
  }
}

const nodesOf = (block) => describe(block).map((node) => build(node, components));
