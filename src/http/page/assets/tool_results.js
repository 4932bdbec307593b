/** The form for the results of the calls of an answer. */

import { h } from "./dom.js";

/** Creates the form; `onSubmit` gets a message for each result. */
export function resultForm({ toolCalls }, onSubmit) {
  const fields = toolCalls.map((call) => ({ call, field: h("textarea", { rows: "2", required: true }) }));
  const form = h(
    "form",
    { class: "inline-form", "aria-label": "Results of the calls" },
    ...fields.map(({ call, field }) => h("label", { class: "field" }, `Result of ${call.name}`, field)),
    h("div", { class: "actions" }, h("button", { class: "primary" }, "Send the results")),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    onSubmit(fields.map(({ call, field }) => ({ role: "tool", callId: call.id, name: call.name, content: field.value })));
  });
  return form;
}
