/** The settings of requests: a form whose values are kept in the browser. */

import { announce } from "./announcer.js";
import { h } from "./dom.js";
import { FORMATS, PARAMETER_GROUPS, requestOptions, TOOL_CHOICES } from "./parameters.js";
import { readPreference, writePreference } from "./preferences.js";

const KEPT = "settings";

const SCHEMA_EXAMPLE = `{"type": "object",
 "properties": {"name": {"type": "string"}},
 "required": ["name"]}`;
const TOOLS_EXAMPLE = `[{"name": "get_weather",
  "parameters": {"type": "object",
   "properties": {"city": {"type": "string"}}}}]`;

/** Fields that are no parameters of their own. */
const FORMAT = { name: "format", label: "Format of answers" };
const SCHEMA = { name: "schema", label: "JSON schema", note: "Enforced while tokens are drawn." };
const TOOLS = { name: "tools", label: "Functions, as a JSON array", note: "You enter the results of calls yourself." };
const TOOL_CHOICE = { name: "toolChoice", label: "Tool choice" };

/** The kinds of fields that stand beside their label. */
const ROW_KINDS = ["number", "choice"];

export class Settings {
  #fields = new Map();

  /**
   * `onShowProbabilities` is called when answers are to be shown with or without probabilities, `onInvalid` when a
   * request cannot be sent until a setting is corrected.
   */
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
    const fields = (parameters) => parameters.map((parameter) => this.#field(parameter, inputFor(parameter)));
    const groups = Object.entries(PARAMETER_GROUPS).map(([title, parameters]) => folded(title, ...fields(parameters)));
    groups[0].open = true;
    this.root.replaceChildren(
      h("h2", {}, "Settings"),
      this.#field({ name: "system", label: "System prompt" }, h("textarea", { rows: "3", placeholder: "None" })),
      this.#showProbabilities(),
      ...groups,
      folded("Structured output", this.#field(FORMAT, select(FORMATS)), this.#field(SCHEMA, codeField(SCHEMA_EXAMPLE))),
      folded("Tools", this.#field(TOOLS, codeField(TOOLS_EXAMPLE)), this.#field(TOOL_CHOICE, select(TOOL_CHOICES))),
      h("button", { type: "button", onclick: () => this.#reset() }, "Reset to defaults"),
    );
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

  /** Creates a field with its label, its default, its note and its error, and keeps what is entered. */
  #field({ name, label, note, fallback, kind }, input) {
    const error = h("span", { class: "error-text", id: `error-${name}` });
    input.id = `setting-${name}`;
    input.setAttribute("aria-describedby", note ? `note-${name} error-${name}` : `error-${name}`);
    if (this.values[name]) input.value = this.values[name];
    input.addEventListener("input", () => {
      this.#keep(name, input.value);
      showError(this.#fields.get(name), requestOptions(this.values).errors[name]);
    });
    this.#fields.set(name, { input, error });
    const title = h("label", { for: input.id }, label);
    if (fallback) title.append(h("span", { class: "default" }, ` default ${fallback}`));
    const noteElement = note && h("span", { class: "note", id: `note-${name}` }, note);
    return h("div", { class: `field ${ROW_KINDS.includes(kind) ? "row" : ""}` }, title, input, noteElement, error);
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

function inputFor({ kind, values, isSigned }) {
  switch (kind) {
    case "number":
      // Number keyboards of phones may have no sign.
      return h("input", { inputmode: isSigned ? "text" : "decimal", autocomplete: "off" });
    case "lines":
      return h("textarea", { rows: "2", class: "code", spellcheck: "false" });
    case "choice":
      return select({ "": "default", ...Object.fromEntries(Object.keys(values).map((title) => [title, title])) });
    default:
      return h("input", { maxlength: "256", autocomplete: "off" });
  }
}

function codeField(example) {
  return h("textarea", { rows: "7", class: "code", spellcheck: "false", placeholder: example });
}

function select(options) {
  return h("select", {}, ...Object.entries(options).map(([value, text]) => h("option", { value }, text)));
}

function folded(title, ...fields) {
  return h("details", {}, h("summary", {}, title), ...fields);
}
