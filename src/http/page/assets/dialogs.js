/** Modal dialogs: a question to confirm, and the one for the API key. */

import { h } from "./dom.js";

/** Asks the user to confirm something; resolves to whether they did. */
export async function confirmed(question, action) {
  const value = await ask(h("form", { method: "dialog" }, h("p", {}, question), actions(action)), question);
  return value === "ok";
}

/** Asks for the API key. Resolves to the key and whether to remember it, or to null. */
export async function askForKey(isWrong) {
  const key = h("input", {
    type: "password",
    autocomplete: "off",
    required: true,
    pattern: "[!-~]+",
    "aria-describedby": "key-note",
  });
  const remember = h("input", { type: "checkbox" });
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", {}, "API key"),
    h(
      "p",
      { id: "key-note", class: isWrong ? "error-text" : null },
      isWrong
        ? "The server does not accept this key. Enter another one."
        : "This server needs an API key. Its operator has one.",
    ),
    h("label", { class: "field" }, "API key", key),
    h("label", { class: "check" }, remember, "Remember it in this browser"),
    actions("Use this key"),
  );
  const value = await ask(form, "API key");
  return value === "ok" ? { key: key.value.trim(), isRemembered: remember.checked } : null;
}

function actions(action) {
  return h(
    "div",
    { class: "actions" },
    h("button", { value: "cancel", formnovalidate: true }, "Cancel"),
    h("button", { value: "ok", class: "primary" }, action),
  );
}

/** Shows a dialog with a form and resolves to the value of the button that closes it. */
function ask(form, label) {
  const dialog = h("dialog", { "aria-label": label }, form);
  // Enter in a field presses the first button of a form, which is `Cancel`.
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target.localName !== "input") return;
    event.preventDefault();
    form.requestSubmit(form.querySelector("button.primary"));
  });
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
  });
}
