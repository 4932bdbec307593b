// The script of the page: the clients, as globals for the tests. The page's query has the address of the server, `api`,
// and the `key`.

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const query = new URLSearchParams(location.search);
const api = query.get("api");
// Retries are off: they would turn a server that fails every other request into a green test.
const options = { apiKey: query.get("key") || "none", maxRetries: 0, timeout: 60_000, dangerouslyAllowBrowser: true };
const openai = new OpenAI({ ...options, baseURL: `${api}/v1` });
const anthropic = new Anthropic({ ...options, baseURL: api });

/** The body of a short, repeatable chat request. */
const request = (more = {}) => ({
  model: "default",
  messages: [{ role: "user", content: "Write a long story about a river." }],
  temperature: 0,
  max_tokens: 16,
  ...more,
});

/** What the page learns of a call that is refused. */
async function refusal(call) {
  try {
    await call;
  } catch (error) {
    const { status, message, code, requestID, headers } = error;
    return { class: classOf(error), status, message, code, requestID, headers: Object.fromEntries(headers ?? []) };
  }
  throw new Error("the call was not refused");
}

/** The class of an error by its name in the client: the bundle may call it otherwise. */
function classOf(error) {
  for (const [client, classes] of Object.entries({ OpenAI, Anthropic })) {
    // Some classes are inherited, which Object.keys would leave out.
    for (const name in classes) if (error.constructor === classes[name]) return `${client}.${name}`;
  }
  return error.name;
}

Object.assign(globalThis, { Anthropic, OpenAI, anthropic, api, openai, refusal, request });
