/** The parameters of a chat request that the settings offer. An empty field is not sent, so the server's default holds. */

/**
 * One row for each parameter: its name on the wire, its label, its default in words, and its range. `read` turns the text
 * of its field into its value or throws an error that says what is wrong. Rows of the group `more` are folded.
 */
export const PARAMETERS = [
  number("temperature", "Temperature", "1", { min: 0, max: 2, help: "0 always picks the likeliest token." }),
  number("top_p", "Top P", "1", { min: 0, max: 1, help: "Draw from the likeliest tokens that have this probability together." }),
  integer("top_k", "Top K", "0, all", { min: -1, help: "Draw from this many of the likeliest tokens." }),
  number("min_p", "Min P", "0", { min: 0, max: 1, help: "Draw from tokens at least this likely, relative to the likeliest." }),
  integer("max_tokens", "Maximum tokens", "the server's", { min: -1, help: "Length of an answer; -1: until the context is full." }),
  integer("seed", "Seed", "random", { help: "Equal seeds draw equal tokens." }),
  lines("stop", "Stop strings", "none", { help: "One on each line; the answer ends before any of them." }),
  number("repeat_penalty", "Repeat penalty", "1", { min: 0.01, max: 10, help: "Divides the logits of tokens that have occurred.", group: "more" }),
  integer("repeat_last_n", "Repeat window", "64", { min: -1, help: "Tokens that the repeat penalty looks back on; -1 is all.", group: "more" }),
  number("presence_penalty", "Presence penalty", "0", { min: -2, max: 2, help: "Lowers the logits of tokens that have occurred.", group: "more" }),
  number("frequency_penalty", "Frequency penalty", "0", { min: -2, max: 2, help: "Lowers them by how often they have occurred.", group: "more" }),
  integer("min_tokens", "Minimum tokens", "0", { min: 0, help: "Nothing but a limit ends the answer before.", group: "more" }),
  choice("ignore_eos", "Ignore the end token", "no", { values: { yes: true }, help: "Keep generating after the model's end token.", group: "more" }),
  lines("stop_token_ids", "Stop token ids", "none", { isNumeric: true, help: "One on each line, in addition to the model's own.", group: "more" }),
  json("logit_bias", "Logit bias", "none", { help: 'Token ids with -100 to 100, such as {"42": -100}.', group: "more" }),
  choice("reasoning_effort", "Reasoning effort", "the model's", { values: asValues("none", "minimal", "low", "medium", "high"), help: "For models that reason.", group: "more" }),
  integer("thinking_budget", "Reasoning budget", "no limit", { min: -1, help: "Tokens of reasoning, after which it is closed.", group: "more" }),
  integer("truncate_prompt_tokens", "Prompt limit", "none", { min: -1, help: "Keep only the last tokens of the prompt; -1 keeps what leaves room.", group: "more" }),
  json("chat_template_kwargs", "Template variables", "none", { help: "An object for the model's chat template.", group: "more" }),
  text("cache_salt", "Cache salt", "none", { help: "Only requests with the same salt share cached prompts.", group: "more" }),
];

/** Fields that form more than one parameter of a request. */
export const FORMATS = { text: "Free text", json_object: "Any JSON object", json_schema: "JSON of a schema" };
export const TOOL_CHOICES = { auto: "The model decides", required: "Must call one", none: "Calls nothing" };


/**
 * The options of a request, from the values of the settings by name, and the errors by the name of their field.
 * An answer that is continued has no format and no tools: they hold for a whole answer.
 */
export function requestOptions(values, isContinued = false) {
  const options = {};
  const errors = {};
  const attempt = (name, read) => {
    try {
      Object.assign(options, read());
    } catch (error) {
      errors[name] = error.message;
    }
  };
  for (const parameter of PARAMETERS) {
    const text = values[parameter.name];
    if (text?.trim()) attempt(parameter.name, () => ({ [parameter.name]: parameter.read(text) }));
  }
  if (values.showProbabilities) Object.assign(options, { logprobs: true, top_logprobs: 5 });
  if (!isContinued) {
    attempt("schema", () => formatOptions(values));
    attempt("tools", () => toolOptions(values));
  }
  return { options, errors };
}

/** The `response_format` of a request. */
function formatOptions({ format = "text", schema = "" }) {
  if (format === "text") return {};
  if (format === "json_object") return { response_format: { type: "json_object" } };
  if (!schema.trim()) throw new Error("Enter a JSON schema, or choose another format.");
  return { response_format: { type: "json_schema", json_schema: { name: "answer", schema: readJson(schema, "object") } } };
}

/** The `tools` of a request. A function may be written without the object around it. */
function toolOptions({ tools = "", toolChoice = "auto" }) {
  if (!tools.trim()) return {};
  const functions = readJson(tools, "array");
  if (functions.length === 0) return {};
  const wrapped = functions.map((tool) => (tool?.function ? tool : { type: "function", function: tool }));
  return { tools: wrapped, ...(toolChoice === "auto" ? {} : { tool_choice: toolChoice }) };
}

function number(name, label, fallback, details) {
  const read = (text) => inRange(Number(text), text, details);
  return { name, label, fallback, kind: "number", read, ...details };
}

function integer(name, label, fallback, details) {
  const read = (text) => {
    if (!Number.isSafeInteger(Number(text))) throw new Error(`${text} is not a whole number.`);
    return inRange(Number(text), text, details);
  };
  return { name, label, fallback, kind: "number", read, ...details };
}

function lines(name, label, fallback, details) {
  const read = (text) => {
    const entries = text.split("\n").filter((line) => line !== "");
    return details.isNumeric ? entries.map((line) => inRange(Number(line), line, { min: 0 })) : entries;
  };
  return { name, label, fallback, kind: "lines", read, ...details };
}

function json(name, label, fallback, details) {
  return { name, label, fallback, kind: "lines", read: (text) => readJson(text, "object"), ...details };
}

function text(name, label, fallback, details) {
  return { name, label, fallback, kind: "text", read: (value) => value, ...details };
}

/** A parameter with a few values, by what they are called. */
function choice(name, label, fallback, details) {
  return { name, label, fallback, kind: "choice", read: (key) => details.values[key], ...details };
}

function asValues(...names) {
  return Object.fromEntries(names.map((name) => [name, name]));
}

function inRange(number, text, { min = -Infinity, max = Infinity }) {
  if (Number.isNaN(number)) throw new Error(`${text} is not a number.`);
  if (number >= min && number <= max) return number;
  throw new Error(max === Infinity ? `The least is ${min}.` : `It must be from ${min} to ${max}.`);
}

/** Parses JSON that must be an object or an array. */
function readJson(text, kind) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not valid JSON: ${error.message}`);
  }
  const found = Array.isArray(value) ? "array" : value === null ? "null" : typeof value;
  if (found !== kind) throw new Error(`This must be a JSON ${kind}.`);
  return value;
}
