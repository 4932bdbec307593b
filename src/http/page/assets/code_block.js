/** A block of code: its language, a button to copy it, and the code with its syntax highlighted. */

import { announce } from "./announcer.js";
import { build, h, icon } from "./dom.js";
import { describeCode } from "./highlight.js";

/** How long a button says that its text was copied. */
const COPIED_MS = 1500;

/** The components that Markdown's descriptions refer to. */
export const components = { "code-block": codeBlock };

/** Creates a button that copies a text, which `textOf` returns. */
export function copyButton(label, textOf, attributes = {}) {
  const button = h(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, ...attributes },
    icon("copy"),
  );
  button.addEventListener("click", async () => {
    await copy(textOf());
    button.replaceChildren(icon("check"));
    announce("Copied.");
    setTimeout(() => button.replaceChildren(icon("copy")), COPIED_MS);
  });
  return button;
}

function codeBlock({ language, code }) {
  const nodes = describeCode(code, language).map((node) => build(node));
  return h(
    "figure",
    { class: "code-block" },
    h(
      "figcaption",
      {},
      h("span", {}, language || "text"),
      copyButton("Copy the code", () => code),
    ),
    h("pre", { tabindex: "0" }, h("code", {}, ...nodes)),
  );
}

/** Copies a text. Pages without TLS that come from another machine have no `clipboard`, and users may forbid it. */
async function copy(text) {
  try {
    return await navigator.clipboard.writeText(text);
  } catch {
    copySelected(text);
  }
}

function copySelected(text) {
  const field = h("textarea", { class: "visually-hidden" });
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
