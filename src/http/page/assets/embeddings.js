/** The view of embeddings: texts, and the cosines of their vectors as a heat map. */

import { explain, postJson } from "./api.js";
import { h } from "./dom.js";
import { modelsOf } from "./models.js";

/** A larger table could not be read. */
const MAX_TEXTS = 40;
/** The share of the accent behind a cosine of 1, in percent; more would leave the text too little contrast. */
const MAX_TINT = 45;
const EXAMPLE = [
  "A man is eating food.",
  "Someone is having a meal.",
  "The girl is carrying a baby.",
  "The stock market fell today.",
];

/** Fills the view. */
export function startEmbeddings(root) {
  const field = h("textarea", { rows: "8", id: "embedding-texts" });
  field.value = EXAMPLE.join("\n");
  const picker = h("select", {});
  const button = h("button", { class: "primary" }, "Compare");
  const result = h("div", { class: "result", "aria-live": "polite" });
  const form = h(
    "form",
    { class: "page-form" },
    h("label", { class: "field" }, `Texts, one on each line, up to ${MAX_TEXTS}`, field),
    h("div", { class: "actions" }, h("label", { class: "inline-field" }, "Model", picker), button),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    result.replaceChildren(await compared(picker.value, textsOf(field.value)));
    button.disabled = false;
  });
  root.replaceChildren(
    h("h2", { id: "embeddings-title" }, "Embeddings"),
    h("p", { class: "lead" }, "How similar texts are: the cosine of the vectors of each two."),
    form,
    result,
  );
  return { refresh: () => showModels(picker, button) };
}

/** The cosine of two vectors. */
function cosine(a, b) {
  const dot = (x, y) => x.reduce((sum, value, index) => sum + value * y[index], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

const textsOf = (text) =>
  text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);

function showModels(picker, button) {
  const models = modelsOf("embedding");
  picker.replaceChildren(...models.map(({ id }) => h("option", { value: id }, id)));
  button.disabled = models.length === 0;
  if (models.length === 0) picker.append(h("option", {}, "no embedding model"));
}

/** Asks for the vectors; returns the heat map or the error. */
async function compared(model, texts) {
  if (texts.length < 2) return h("p", { class: "error-text" }, "Enter two texts or more.");
  if (texts.length > MAX_TEXTS)
    return h("p", { class: "error-text" }, `Enter at most ${MAX_TEXTS} texts; these are ${texts.length}.`);
  try {
    const response = await postJson("v1/embeddings", { model, input: texts });
    return heatMap(
      texts,
      response.data.map(({ embedding }) => embedding),
      response.usage.total_tokens,
    );
  } catch (error) {
    return h("p", { class: "error-text" }, explain(error));
  }
}

function heatMap(texts, vectors, nTokens) {
  const head = texts.map((text, index) => h("th", { scope: "col", title: text }, String(index + 1)));
  const rows = vectors.map((vector, row) =>
    h(
      "tr",
      {},
      h("th", { scope: "row", title: texts[row] }, h("span", {}, `${row + 1}. ${texts[row]}`)),
      ...vectors.map((other, column) =>
        heatCell(row === column ? 1 : cosine(vector, other), texts[row], texts[column]),
      ),
    ),
  );
  const caption = `Cosines of ${texts.length} vectors of ${vectors[0].length} numbers, ${nTokens} tokens`;
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Cosines" },
    h(
      "table",
      { class: "heat-map" },
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, h("td"), ...head)),
      h("tbody", {}, ...rows),
    ),
  );
}

function heatCell(value, rowText, columnText) {
  const cell = h("td", { title: `${rowText}\n${columnText}` }, value.toFixed(2));
  cell.style.setProperty("--share", `${Math.round(MAX_TINT * Math.max(0, value))}%`);
  return cell;
}
