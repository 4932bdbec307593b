/** The models of the server, and the picker of the chat model. */

import { getJson } from "./api.js";
import { byId, h } from "./dom.js";
import { readPreference, writePreference } from "./preferences.js";

const CHOSEN = "model";
let models = [];

/** Fills the picker and keeps what is chosen. */
export async function startModelPicker() {
  byId("model").addEventListener("change", ({ target }) => writePreference(CHOSEN, target.value));
  await refreshModels();
}

/** Asks the server for its models and which of them are loaded. A `silent` request does not ask for a key. */
export async function refreshModels({ silent = false } = {}) {
  models = (await getJson("v1/models", { silent })).data;
  const picker = byId("model");
  const chosen = picker.value || readPreference(CHOSEN);
  const options = modelsOf("chat").map((model) => h("option", { value: model.id }, optionText(model)));
  picker.replaceChildren(...(options.length > 0 ? options : [h("option", { value: "" }, "no chat model")]));
  if (modelsOf("chat").some(({ id }) => id === chosen)) picker.value = chosen;
}

/** The models of a kind: `chat`, `embedding` or `reranking`. */
export const modelsOf = (kind) => models.filter((model) => model.kind === kind);

/** The chat model that is chosen. */
export const chosenModel = () => modelsOf("chat").find(({ id }) => id === byId("model").value);

function optionText({ id, loaded, context_length: length }) {
  const context = length ? `${Math.round(length / 1024)}K context, ` : "";
  return `${id} (${context}${loaded ? "loaded" : "loads on first use"})`;
}
