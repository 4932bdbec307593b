/** The elements of a message: text, reasoning, calls, error, numbers, and the buttons below it. */

import { finishText, statistics } from "./answer.js";
import { copyButton } from "./code_block.js";
import { h, iconButton } from "./dom.js";
import { GrowingMarkdown, markdown } from "./markdown_view.js";
import { probabilityView } from "./probabilities.js";

const AUTHORS = { user: "You", assistant: "Answer", tool: "Result" };

/**
 * Creates the element of a message. `branch` has its number among its siblings; `actions` are the functions that its
 * buttons call; with `showProbabilities` its tokens are shown, if it has any.
 */
export function messageElement(node, { branch, actions, showProbabilities }) {
  const isAnswer = node.role === "assistant";
  const article = articleOf(node, branch, actions);
  if (isAnswer) article.append(...answerNodes(node, showProbabilities, actions));
  else
    article.append(
      node.role === "tool" ? h("pre", { class: "tool-result", tabindex: "0" }, node.content) : markdown(node.content),
    );
  if (isAnswer) article.append(...footerNodes(node, actions));
  article.append(buttons(node, actions));
  return article;
}

/**
 * An answer that is being streamed, perhaps by a model that has to be loaded first. It reads the message and updates
 * its element, at most once in each frame.
 */
export class StreamedMessage {
  #markdown = new GrowingMarkdown();
  #reasoning = h("div", { class: "reasoning-text" });
  #calls = h("div", {});
  #frame = null;

  constructor(node, branch, actions, isLoaded) {
    this.node = node;
    this.details = reasoningDetails(this.#reasoning, "Reasoning…");
    this.details.hidden = true;
    this.waiting = h(
      "p",
      { class: "waiting" },
      h("span", { class: "dots", "aria-hidden": "true" }),
      isLoaded ? "Waiting for the model" : "Loading the model",
    );
    this.element = articleOf(node, branch, actions);
    this.element.setAttribute("aria-busy", "true");
    this.element.append(this.details, this.#markdown.element, this.#calls, this.waiting);
    this.update();
  }

  /** Updates the element with the next frame, then calls `done`. */
  schedule(done) {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.update();
      done();
    });
  }

  /** Forgets the frame that is scheduled. */
  cancel() {
    cancelAnimationFrame(this.#frame);
    this.#frame = null;
  }

  update() {
    const { content, reasoning, toolCalls } = this.node;
    this.details.hidden = !reasoning;
    this.#reasoning.textContent = reasoning;
    if (content) this.#markdown.update(content);
    this.#calls.replaceChildren(...toolCalls.filter(Boolean).map(callElement));
    this.waiting.hidden = Boolean(content || reasoning || toolCalls.length > 0);
  }
}

/** Creates the element of an error, with a button that tries again. */
function errorElement(text, onRetry) {
  return h("div", { class: "error" }, h("p", {}, text), h("button", { type: "button", onclick: onRetry }, "Try again"));
}

/** Creates the element with the head of a message. */
function articleOf(node, branch, actions) {
  const author = authorOf(node);
  const head = h("header", {}, h("span", { class: "author" }, author), branchSwitch(node, branch, actions));
  return h("article", { class: `message ${node.role}`, "aria-label": author }, head);
}

const authorOf = (node) => (node.role === "assistant" && node.model) || AUTHORS[node.role];

function answerNodes(node, showProbabilities, actions) {
  const nodes = [];
  if (node.reasoning) nodes.push(reasoningDetails(h("div", { class: "reasoning-text" }, node.reasoning), "Reasoning"));
  if (showProbabilities && node.tokens) {
    nodes.push(probabilityView(node, (index, alternative) => actions.chooseToken(node, index, alternative)));
  } else {
    nodes.push(markdown(node.content));
  }
  nodes.push(...(node.toolCalls ?? []).filter(Boolean).map(callElement));
  return nodes;
}

function footerNodes(node, actions) {
  const nodes = [];
  if (node.error) nodes.push(errorElement(node.error, () => actions.retry(node)));
  if (node.ignored) nodes.push(h("p", { class: "note" }, `Parameters without effect: ${node.ignored}`));
  const finish = finishText(node);
  const numbers = statistics(node);
  if (finish || numbers.length > 0) {
    const pairs = numbers.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))));
    nodes.push(
      h("dl", { class: "statistics" }, ...pairs, finish ? h("div", {}, h("dt", {}, "end"), h("dd", {}, finish)) : null),
    );
  }
  return nodes;
}

function reasoningDetails(text, title) {
  return h("details", { class: "reasoning" }, h("summary", {}, title), text);
}

function callElement({ name, arguments: text }) {
  return h(
    "figure",
    { class: "code-block call" },
    h("figcaption", {}, h("span", {}, "Calls ", h("code", {}, name))),
    h("pre", { tabindex: "0" }, h("code", {}, prettyJson(text))),
  );
}

/** JSON with line breaks; a text that is none, such as arguments that are cut off, stays as it is. */
function prettyJson(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** The switch between the siblings of a message. The keys find its buttons again after the log was made anew. */
function branchSwitch(node, { index, count }, actions) {
  if (count < 2) return null;
  const previous = iconButton("previous", "Previous version", () => actions.switchBranch(node, -1), {
    disabled: index === 0,
    "data-key": `previous-${node.parent}`,
  });
  const next = iconButton("next", "Next version", () => actions.switchBranch(node, 1), {
    disabled: index === count - 1,
    "data-key": `next-${node.parent}`,
  });
  const position = h(
    "span",
    { "aria-label": `Version ${index + 1} of ${count}`, role: "img" },
    `${index + 1}/${count}`,
  );
  return h("span", { class: "branch" }, previous, position, next);
}

function buttons(node, actions) {
  const row = h("div", { class: "message-actions" });
  row.append(copyButton("Copy the text", () => node.content, { "data-key": `copy-${node.parent}` }));
  if (node.role === "user")
    row.append(iconButton("edit", "Edit", () => actions.edit(node), { "data-key": `edit-${node.parent}` }));
  if (node.role === "assistant") {
    row.append(
      iconButton("regenerate", "Regenerate", () => actions.regenerate(node), {
        "data-key": `regenerate-${node.parent}`,
      }),
    );
    if (node.content && ["length", "stopped", null].includes(node.finish)) {
      row.append(
        iconButton("forward", "Continue", () => actions.continueAnswer(node), {
          "data-key": `continue-${node.parent}`,
        }),
      );
    }
  }
  return row;
}
