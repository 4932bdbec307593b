/** The view of decisions: questions about an input, answered by the probabilities of their labels. */

import { explain, postJson } from "./api.js";
import { h, icon, iconButton } from "./dom.js";
import { chosenModel } from "./models.js";

/** A share of other texts from which on an answer is not to be trusted. */
const LARGE_OUTSIDE_MASS = 0.5;

/** One row for each kind of question: what it is called, what its labels are called, and how they are sent. */
const KINDS = {
  predicate: { title: "Is it true?" },
  choice: {
    title: "Which one?",
    labels: "Choices",
    send: (labels) => ({ choices: labels.map((value) => ({ value })) }),
  },
  score: {
    title: "How much?",
    labels: "Levels, from the lowest",
    send: (labels) => ({ levels: labels.map((label) => ({ label })) }),
  },
};

const EXAMPLE_INPUT = "I was charged twice for my order and nobody answers my mails. Please send the money back.";
const EXAMPLES = [
  { kind: "predicate", instructions: "It is a complaint." },
  { kind: "choice", instructions: "Which team should answer?", labels: ["billing", "shipping", "sales"] },
  { kind: "score", instructions: "How urgent is it?", labels: ["low", "medium", "high"] },
];

/** Fills the view. */
export function startDecisions(root) {
  const input = h("textarea", { rows: "4" });
  input.value = EXAMPLE_INPUT;
  const questions = h("div", { class: "questions" });
  const add = (question) => {
    questions.append(questionFields(question));
    number(questions);
  };
  EXAMPLES.forEach(add);
  const button = h("button", { class: "primary" }, "Decide");
  const addButton = h(
    "button",
    {
      type: "button",
      onclick: () => {
        add({ kind: "predicate", instructions: "" });
        questions.lastElementChild.querySelector("select").focus();
      },
    },
    icon("plus"),
    "Add a question",
  );
  const result = h("div", { class: "result", "aria-live": "polite" });
  const form = h(
    "form",
    { class: "page-form" },
    h("label", { class: "field" }, "Input", input),
    questions,
    h("div", { class: "actions" }, addButton, button),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    result.replaceChildren(
      ...(await decided(
        input.value,
        [...questions.children].map((fields) => fields.read()),
      )),
    );
    button.disabled = false;
  });
  root.replaceChildren(
    h("h2", { id: "decisions-title" }, "Decisions"),
    h(
      "p",
      { class: "lead" },
      "Questions about a text, answered by the probabilities of their labels; no text is generated.",
    ),
    form,
    result,
  );
}

/** Creates the fields of a question; their `read` returns it as the server wants it. */
function questionFields({ kind, instructions, labels = [] }) {
  const picker = h("select", {}, ...Object.entries(KINDS).map(([value, { title }]) => h("option", { value }, title)));
  picker.value = kind;
  const text = h("input", { value: instructions, required: true });
  const list = h("textarea", { rows: "3" });
  list.value = labels.join("\n");
  const title = h("span", {});
  const listLabel = h("label", { class: "field" }, title, list);
  const showLabels = () => {
    const { labels: name } = KINDS[picker.value];
    listLabel.hidden = !name;
    list.required = Boolean(name);
    title.textContent = `${name}, one on each line`;
  };
  picker.addEventListener("change", showLabels);
  showLabels();
  const fields = h(
    "fieldset",
    { class: "question" },
    h("legend", {}),
    h("label", { class: "field" }, "Kind", picker),
    h("label", { class: "field" }, "Question or statement", text),
    listLabel,
    iconButton("close", "Remove this question", () => removeQuestion(fields)),
  );
  fields.read = () => {
    const lines = list.value
      .split("\n")
      .map((line) => line.trim())
      .filter(Boolean);
    return { type: picker.value, instructions: text.value, ...KINDS[picker.value].send?.(lines) };
  };
  return fields;
}

function removeQuestion(fields) {
  const parent = fields.parentElement;
  const next = fields.nextElementSibling ?? fields.previousElementSibling;
  if (!next) return;
  fields.remove();
  number(parent);
  next.querySelector("select").focus();
}

function number(questions) {
  [...questions.children].forEach(
    (fields, index) => (fields.querySelector("legend").textContent = `Question ${index + 1}`),
  );
}

async function decided(input, questions) {
  try {
    const response = await postJson("v1/decisions", { model: chosenModel()?.id, input, questions });
    const answers = response.answers.map((answer, index) => answerElement(answer, questions[index]));
    return [
      ...answers,
      h(
        "p",
        { class: "note" },
        `${response.usage.input_tokens} tokens. The probabilities are the model's own and not calibrated.`,
      ),
    ];
  } catch (error) {
    return [h("p", { class: "error-text" }, explain(error))];
  }
}

function answerElement(answer, { instructions }) {
  const outside = answer.outside_mass;
  return h(
    "section",
    { class: "decision", "aria-label": instructions },
    h("h3", {}, instructions),
    h("p", { class: "decision-answer" }, answerText(answer)),
    h("ul", { class: "bars" }, ...probabilitiesOf(answer).map(barElement)),
    outside > LARGE_OUTSIDE_MASS
      ? h(
          "p",
          { class: "note" },
          `The model would rather have written something else (${percent(outside)}): distrust this answer.`,
        )
      : null,
  );
}

function answerText(answer) {
  switch (answer.type) {
    case "predicate":
      return answer.probability >= 0.5 ? "Yes" : "No";
    case "choice":
      return `${answer.choice}, confidence ${percent(answer.confidence)}`;
    default:
      return `${answer.score.toFixed(2)} on a scale from 0 to ${answer.probabilities.length - 1}`;
  }
}

/** The labels of an answer with their probabilities. */
function probabilitiesOf({ type, probability, probabilities }) {
  if (type === "predicate")
    return [
      ["Yes", probability],
      ["No", 1 - probability],
    ];
  return probabilities.map(({ label, value, probability: share }) => [label ?? String(value), share]);
}

function barElement([label, share]) {
  const bar = h("span", { class: "bar" });
  bar.style.width = `${100 * share}%`;
  return h(
    "li",
    {},
    h("span", { class: "bar-label" }, label),
    h("span", { class: "track" }, bar),
    h("span", { class: "bar-value" }, percent(share)),
  );
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;
