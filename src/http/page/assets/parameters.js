/** The parameters of a chat request that the settings offer. An empty field is not sent: the server's default holds. */

const REASONING_EFFORTS = { none: "none", minimal: "minimal", low: "low", medium: "medium", high: "high" };

/**
 * The parameters by the title of their group. Each has its name on the wire, its label, its default in words, its range
 * and a note; `read` turns the text of its field into its value, or throws an error that says what is wrong.
 */
export const PARAMETER_GROUPS = {
  Sampling: [
    number("temperature", "Temperature", "1", [0, 2], "0 always picks the likeliest token."),
    number("top_p", "Top P", "1", [0, 1], "Draw from the likeliest tokens that have this probability together."),
    integer("top_k", "Top K", "0, all", [-1], "Draw from this many of the likeliest tokens."),
    number("min_p", "Min P", "0", [0, 1], "Draw from tokens at least this likely, relative to the likeliest."),
    integer(
      "max_tokens",
      "Maximum tokens",
      "the server's",
      [-1],
      "Length of an answer; -1: until the context is full.",
    ),
    integer("seed", "Seed", "random", [], "Equal seeds draw equal tokens."),
    lines("stop", "Stop strings", "none", "One on each line; the answer ends before any of them."),
  ],
  "More parameters": [
    number("repeat_penalty", "Repeat penalty", "1", [0.01, 10], "Divides the logits of tokens that have occurred."),
    integer("repeat_last_n", "Repeat window", "64", [-1], "Tokens that the repeat penalty looks back on; -1 is all."),
    number("presence_penalty", "Presence penalty", "0", [-2, 2], "Lowers the logits of tokens that have occurred."),
    number("frequency_penalty", "Frequency penalty", "0", [-2, 2], "Lowers them by how often they have occurred."),
    integer("min_tokens", "Minimum tokens", "0", [0], "Nothing but a limit ends the answer before."),
    choice("ignore_eos", "Ignore the end token", "no", { yes: true }, "Keep generating after the model's end token."),
    lines("stop_token_ids", "Stop token ids", "none", "One on each line, in addition to the model's own.", tokenId),
    json("logit_bias", "Logit bias", "none", 'Token ids with -100 to 100, such as {"42": -100}.'),
    choice("reasoning_effort", "Reasoning effort", "the model's", REASONING_EFFORTS, "For models that reason."),
    integer("thinking_budget", "Reasoning budget", "no limit", [-1], "Tokens of reasoning, after which it is closed."),
    integer(
      "truncate_prompt_tokens",
      "Prompt limit",
      "none",
      [-1],
      "Keep only the prompt's last tokens; -1: as many as fit.",
    ),
    json("chat_template_kwargs", "Template variables", "none", "An object for the model's chat template."),
    text("cache_salt", "Cache salt", "none", "Only requests with the same salt share cached prompts."),
  ],
};

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
  for (const { name, read } of Object.values(PARAMETER_GROUPS).flat()) {
    const text = values[name];
    if (text?.trim()) attempt(name, () => ({ [name]: read(text) }));
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
  return {
    response_format: { type: "json_schema", json_schema: { name: "answer", schema: readJson(schema, "object") } },
  };
}

/** The `tools` of a request. A function may be written without the object around it. */
function toolOptions({ tools = "", toolChoice = "auto" }) {
  if (!tools.trim()) return {};
  const functions = readJson(tools, "array");
  if (functions.length === 0) return {};
  const wrapped = functions.map((tool) => (tool?.function ? tool : { type: "function", function: tool }));
  return { tools: wrapped, ...(toolChoice === "auto" ? {} : { tool_choice: toolChoice }) };
}

function number(name, label, fallback, range, note) {
  const read = (text) => inRange(Number(text), text, range);
  return { name, label, fallback, note, kind: "number", isSigned: !(range[0] >= 0), read };
}

function integer(name, label, fallback, range, note) {
  const read = (text) => inRange(wholeNumber(text), text, range);
  return { ...number(name, label, fallback, range, note), read };
}

/** A parameter with several values, one on each line, which `readLine` reads. */
function lines(name, label, fallback, note, readLine = (line) => line) {
  const read = (text) => text.split("\n").filter(Boolean).map(readLine);
  return { name, label, fallback, note, kind: "lines", read };
}

function json(name, label, fallback, note) {
  return { name, label, fallback, note, kind: "lines", read: (text) => readJson(text, "object") };
}

function text(name, label, fallback, note) {
  return { name, label, fallback, note, kind: "text", read: (text) => text };
}

/** A parameter with a few values, by what they are called. */
function choice(name, label, fallback, values, note) {
  return { name, label, fallback, note, kind: "choice", values, read: (title) => values[title] };
}

function tokenId(text) {
  return inRange(wholeNumber(text), text, [0]);
}

function wholeNumber(text) {
  if (Number.isSafeInteger(Number(text))) return Number(text);
  throw new Error(`${text} is not a whole number.`);
}

function inRange(number, text, [min = -Infinity, max = Infinity]) {
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
