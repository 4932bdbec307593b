/** An answer as its tokens, tinted by their probabilities. Each token shows its alternatives, and one can be chosen. */

import { h } from "./dom.js";

/** The least probability of each tint; what is less likely has the last one. */
const TINTS = [0.9, 0.6, 0.3, 0.1];
const MARGIN = 8;
let nViews = 0;

/**
 * Creates the view of an answer's tokens. One token at a time is in the order of the Tab key; the arrow keys move.
 * `onChoose` gets the number of a token and the alternative that is to take its place.
 */
export function probabilityView({ content, tokens }, onChoose) {
  const card = h("div", { class: "token-card", popover: "auto", role: "dialog", "aria-label": "Alternatives" });
  const tooltip = h("div", { class: "token-card", hidden: true, role: "tooltip", id: `tip-${(nViews += 1)}` });
  const buttons = tokens.map((token, index) => tokenButton(token, index, tooltip.id));
  const text = h(
    "div",
    { class: "tokens", role: "group", "aria-label": "Answer by tokens; move with the arrow keys", dir: "auto" },
    textBefore(content, tokens),
    ...buttons,
  );

  const show = ({ target }) => {
    const token = tokens[target.dataset.index];
    if (!token || card.matches(":popover-open")) return;
    tooltip.replaceChildren(...tooltipNodes(token));
    tooltip.hidden = false;
    place(tooltip, target);
  };
  const hide = () => (tooltip.hidden = true);
  text.addEventListener("focusin", show);
  text.addEventListener("pointerover", show);
  text.addEventListener("focusout", hide);
  text.addEventListener("pointerout", hide);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    moveFocus(event, buttons);
  });
  text.addEventListener("click", ({ target }) => {
    const index = Number(target.dataset.index);
    if (!tokens[index]) return;
    hide();
    card.replaceChildren(
      ...cardNodes(tokens, index, (alternative) => {
        card.hidePopover();
        onChoose(index, alternative);
      }),
    );
    card.showPopover();
    place(card, target);
    card.querySelector("button:not(:disabled)")?.focus();
  });
  return h("div", {}, text, card, tooltip);
}

/** The beginning of an answer that takes an alternative at a token: its text and its tokens. */
export function branchAt({ content, tokens }, index, alternative) {
  // The alternatives of this place belong to the token that was chosen, too.
  const chosen = { ...alternative, top_logprobs: tokens[index].top_logprobs };
  const kept = [...tokens.slice(0, index), chosen];
  return { content: textBefore(content, tokens) + textOf(kept), tokens: kept };
}

/** The beginning of an answer whose probabilities are not known, because it was continued. */
function textBefore(content, tokens) {
  const text = textOf(tokens) ?? "";
  return content.endsWith(text) ? content.slice(0, content.length - text.length) : "";
}

/** The text of tokens, or null if it ends within a character. */
function textOf(tokens) {
  const bytes = Uint8Array.from(tokens.flatMap((token) => token.bytes ?? []));
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

function tokenButton(token, index, tooltipId) {
  const probability = Math.exp(token.logprob);
  const tint = TINTS.findIndex((least) => probability >= least);
  return h(
    "span",
    {
      role: "button",
      class: `token tint-${tint < 0 ? TINTS.length : tint}`,
      tabindex: index === 0 ? "0" : "-1",
      "data-index": String(index),
      "aria-describedby": tooltipId,
    },
    token.token,
  );
}

function tooltipNodes(token) {
  const rank = token.top_logprobs.findIndex(({ token: text }) => text === token.token) + 1;
  const rankText = rank > 0 ? `number ${rank} of the likeliest` : "not among the likeliest";
  return [h("code", {}, visible(token.token)), ` ${percent(token.logprob)}, ${rankText}`];
}

function cardNodes(tokens, index, onChoose) {
  const rows = tokens[index].top_logprobs.map((alternative) => {
    const isChosen = alternative.token === tokens[index].token;
    const isWhole = alternative.token !== "" && textOf([...tokens.slice(0, index), alternative]) !== null;
    const bar = h("span", { class: "bar" });
    bar.style.width = `${100 * Math.exp(alternative.logprob)}%`;
    return h(
      "button",
      {
        type: "button",
        disabled: isChosen || !isWhole,
        title: isWhole ? null : "This token cannot be chosen",
        onclick: () => onChoose(alternative),
      },
      bar,
      h("code", {}, visible(alternative.token) || "end of the answer"),
      h("span", {}, percent(alternative.logprob)),
    );
  });
  return [h("p", {}, "Continue from here with:"), ...rows];
}

/** Moves the focus among tokens with the keys of a list, and presses the one in focus. */
function moveFocus(event, buttons) {
  const index = buttons.indexOf(event.target);
  const moves = {
    ArrowRight: index + 1,
    ArrowLeft: index - 1,
    ArrowDown: index + 10,
    ArrowUp: index - 10,
    Home: 0,
    End: buttons.length - 1,
  };
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    event.target.click();
  } else if (event.key in moves) {
    event.preventDefault();
    const next = buttons[Math.min(Math.max(moves[event.key], 0), buttons.length - 1)];
    buttons[index].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

/** Places a card below the first line of an element, or above it where there is no room, within the window. */
function place(card, anchor) {
  const { left, top, bottom } = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = card;
  const below = bottom + MARGIN;
  card.style.top = `${Math.max(below + height > innerHeight ? top - height - MARGIN : below, MARGIN)}px`;
  card.style.left = `${Math.max(Math.min(left, innerWidth - width - MARGIN), MARGIN)}px`;
}

/** A token with its white space visible. */
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)}%`;
