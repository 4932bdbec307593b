/** Forms in the conversation: to edit a message, and for the results of calls. */

import { h } from "./dom.js";

const MAX_ROWS = 12;

/** Creates the form to edit a message; `onSubmit` gets its text. Enter submits, Escape cancels. */
export function editForm({ content }, { onSubmit, onCancel }) {
  const rows = Math.min(MAX_ROWS, content.split("\n").length + 1);
  const field = h("textarea", { "aria-label": "Edit the message", rows: String(rows), dir: "auto" });
  field.value = content;
  const cancel = h("button", { type: "button", onclick: onCancel }, "Cancel");
  const submit = h("button", { class: "primary" }, "Send as a new version");
  const form = h("form", { class: "inline-form message user" }, field, h("div", { class: "actions" }, cancel, submit));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) onSubmit(field.value.trim());
  });
  form.addEventListener("keydown", (event) => {
    const isSubmit = event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target === field;
    if (!isSubmit && event.key !== "Escape") return;
    event.preventDefault();
    if (isSubmit) form.requestSubmit();
    else onCancel();
  });
  return form;
}

/** Creates the form for the results of an answer's calls; `onSubmit` gets a message for each. */
export function resultForm({ toolCalls }, onSubmit) {
  const fields = toolCalls.map((call) => ({ call, field: h("textarea", { rows: "2", required: true }) }));
  const labels = fields.map(({ call, field }) => h("label", { class: "field" }, `Result of ${call.name}`, field));
  const submit = h("div", { class: "actions" }, h("button", { class: "primary" }, "Send the results"));
  const form = h("form", { class: "inline-form" }, ...labels, submit);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    onSubmit(
      fields.map(({ call, field }) => ({ role: "tool", callId: call.id, name: call.name, content: field.value })),
    );
  });
  return form;
}
