/** Access to the server: requests with the API key, streams, and errors in plain English. */

import { readPreference, writePreference } from "./preferences.js";
import { EventParser } from "./sse.js";

const KEY = "api-key";

/** An error of the server, or one on the way to it, whose `status` is 0. */
export class ApiError extends Error {
  constructor(status, { message, code = null, param = null }, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** Asks the user for a key: gets whether the last one was wrong, resolves to whether there is a new one. */
let askForKey = async () => false;
/** The question that is open, which all requests without a valid key share. */
let question = null;

/** Sets the function that asks the user for an API key. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** Keeps the API key: until the tab is closed, or for good if it is to be remembered. */
export function setApiKey(key, isRemembered) {
  writePreference(KEY, isRemembered ? null : key, "sessionStorage");
  writePreference(KEY, isRemembered ? key : null, "localStorage");
}

/** The API key, or null. */
export const apiKey = () => readPreference(KEY, "sessionStorage") ?? readPreference(KEY, "localStorage");

/** Gets JSON. A `silent` request does not ask for a key. */
export const getJson = async (path, options) => (await send(path, options)).json();

/** Posts JSON and returns the JSON of the response. */
export const postJson = async (path, body) => (await send(path, { body })).json();

/** Starts a chat completion. Returns its chunks as they come, and the names of the parameters without effect. */
export async function streamChat(body, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await send("v1/chat/completions", { body: { ...body, ...options }, signal });
  const ignored = response.headers.get("x-ignored-params");
  return { ignored, chunks: chunksOf(response.body) };
}

/** The text that tells the user about an error. */
export function explain(error) {
  if (!(error instanceof ApiError)) return `The page failed: ${error.message}`;
  const again = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  const sentence = sentenceOf(error.message);
  switch (error.status) {
    case 0:
      return error.message;
    case 401:
      return `The server needs a valid API key. ${sentence}`;
    case 413:
      return "The message is too long for the server. Shorten it or attach less.";
    case 429:
      return `The server is busy. ${sentence}${again}`;
    case 503:
      return `The server cannot answer at the moment. ${sentence}${again}`;
    default:
      return error.status >= 500 ? `The server failed. ${sentence}` : sentence;
  }
}

/** Sends a request, and again once the user has entered a key if the server needs one. */
async function send(path, { body, signal, silent = false } = {}) {
  for (;;) {
    const key = apiKey();
    const response = await sendOnce(path, body, signal, key);
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401 || silent) throw error;
    // Another request may have led to a new key in the meantime.
    if (apiKey() === key && !(await newKey(key !== null))) throw error;
  }
}

/** Asks for a key, once for all requests that wait for one. */
function newKey(isWrong) {
  question ??= askForKey(isWrong).finally(() => (question = null));
  return question;
}

async function sendOnce(path, body, signal, key) {
  const headers = {};
  if (key !== null) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  try {
    return await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    throw lostConnection(error, "The server cannot be reached. Is it running?");
  }
}

/** The error that a response tells of. */
async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  return new ApiError(response.status, body.error ?? { message: `the server answered ${response.status}` }, retryAfter);
}

async function* chunksOf(stream) {
  const parser = new EventParser();
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw lostConnection(error, "The connection to the server was lost.");
    });
    if (done) throw new ApiError(0, { message: "The connection ended before the answer did." });
    for (const data of parser.push(value)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(500, chunk.error);
      yield chunk;
    }
  }
}

/** The error of a connection; one that the user has stopped stays an `AbortError`. */
function lostConnection(error, message) {
  return error.name === "AbortError" ? error : new ApiError(0, { message });
}

/** A message of the server as a sentence. */
function sentenceOf(message) {
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
