/** The settings of requests: a form whose values are kept in the browser. */

import { announce } from "./announcer.js";
import { h } from "./dom.js";
import { FORMATS, PARAMETERS, requestOptions, TOOL_CHOICES } from "./parameters.js";
import { readPreference, writePreference } from "./preferences.js";

const KEPT = "settings";

const SCHEMA_EXAMPLE = `{"type": "object",
 "properties": {"name": {"type": "string"}},
 "required": ["name"]}`;
const TOOLS_EXAMPLE = `[{"name": "get_weather",
  "parameters": {"type": "object",
   "properties": {"city": {"type": "string"}}}}]`;

export class Settings {
  #fields = new Map();

  /** `onShowProbabilities` is called when answers are to be shown with or without probabilities; `onInvalid` when a request cannot be sent, so that the form is shown. */
  constructor(root, { onShowProbabilities, onInvalid }) {
    this.values = readPreference(KEPT) ?? {};
    Object.assign(this, { root, onShowProbabilities, onInvalid });
    this.#build();
  }

  /** The options of a request. */
  options(isContinued = false) {
    return requestOptions(this.values, isContinued).options;
  }

  /** Shows which fields are wrong; returns whether all are right. */
  check() {
    const { errors } = requestOptions(this.values);
    for (const [name, field] of this.#fields) showError(field, errors[name]);
    const [wrong] = Object.keys(errors);
    if (!wrong) return true;
    this.onInvalid();
    const { input } = this.#fields.get(wrong);
    input.closest("details:not([open])")?.setAttribute("open", "");
    input.focus();
    announce(`A setting is wrong: ${errors[wrong]}`);
    return false;
  }

  #build() {
    const group = (name) => PARAMETERS.filter((parameter) => parameter.group === name).map((parameter) => this.#parameter(parameter));
    this.root.replaceChildren(
      h("h2", {}, "Settings"),
      this.#field("system", "System prompt", h("textarea", { rows: "3", placeholder: "None" })),
      this.#showProbabilities(),
      h("details", { open: true }, h("summary", {}, "Sampling"), ...group(undefined)),
      h("details", {}, h("summary", {}, "More parameters"), ...group("more")),
      h("details", {}, h("summary", {}, "Structured output"), ...this.#format()),
      h("details", {}, h("summary", {}, "Tools"), ...this.#tools()),
      h("button", { type: "button", onclick: () => this.#reset() }, "Reset to defaults"),
    );
  }

  #parameter(parameter) {
    const { name, label, fallback, help } = parameter;
    return this.#field(name, label, inputFor(parameter), { help, fallback, isRow: parameter.kind === "number" || parameter.kind === "choice" });
  }

  #format() {
    return [
      this.#field("format", "Format of answers", select(FORMATS)),
      this.#field("schema", "JSON schema", h("textarea", { rows: "7", class: "code", spellcheck: "false", placeholder: SCHEMA_EXAMPLE }), {
        help: "Enforced while tokens are drawn.",
      }),
    ];
  }

  #tools() {
    return [
      this.#field("tools", "Functions, as a JSON array", h("textarea", { rows: "7", class: "code", spellcheck: "false", placeholder: TOOLS_EXAMPLE }), {
        help: "You enter the results of calls yourself.",
      }),
      this.#field("toolChoice", "Tool choice", select(TOOL_CHOICES)),
    ];
  }

  #showProbabilities() {
    const input = h("input", { type: "checkbox" });
    input.checked = Boolean(this.values.showProbabilities);
    input.addEventListener("change", () => {
      this.#keep("showProbabilities", input.checked);
      this.onShowProbabilities();
    });
    return h("label", { class: "check" }, input, "Show probabilities of tokens");
  }

  /** Creates a field with its label, its default and its error, and keeps what is entered. */
  #field(name, label, input, { help, fallback, isRow } = {}) {
    const error = h("span", { class: "error-text", id: `error-${name}` });
    const note = h("span", { class: "note", id: `note-${name}` }, help ?? "");
    input.id = `setting-${name}`;
    input.setAttribute("aria-describedby", `${help ? `note-${name} ` : ""}error-${name}`);
    input.value = this.values[name] ?? (input.localName === "select" ? input.value : "");
    input.addEventListener("input", () => {
      this.#keep(name, input.value);
      showError(this.#fields.get(name), requestOptions(this.values).errors[name]);
    });
    this.#fields.set(name, { input, error });
    const title = h("label", { for: input.id }, label, fallback ? h("span", { class: "default" }, ` default ${fallback}`) : null);
    return h("div", { class: isRow ? "field row" : "field" }, title, input, help ? note : null, error);
  }

  #keep(name, value) {
    this.values[name] = value;
    writePreference(KEPT, this.values);
  }

  #reset() {
    this.values = {};
    writePreference(KEPT, null);
    this.#build();
    this.onShowProbabilities();
    this.root.querySelector("textarea").focus();
    announce("All settings have their defaults.");
  }
}

function showError({ input, error }, message = "") {
  error.textContent = message;
  if (message) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
}

function inputFor({ kind, values, min }) {
  switch (kind) {
    case "number":
      // Number keyboards of phones may have no sign.
      return h("input", { inputmode: min >= 0 ? "decimal" : "text", autocomplete: "off" });
    case "lines":
      return h("textarea", { rows: "2", class: "code", spellcheck: "false" });
    case "choice":
      return select({ "": "default", ...Object.fromEntries(Object.keys(values).map((key) => [key, key])) });
    default:
      return h("input", { maxlength: "256" });
  }
}

function select(options) {
  return h("select", {}, ...Object.entries(options).map(([value, text]) => h("option", { value }, text)));
}
