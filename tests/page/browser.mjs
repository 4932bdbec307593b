// A browser with the chat page, for the tests. The environment has the page's address, PAGE, the program, CHROMIUM or
// FIREFOX, and the API key of the server, KEY, if it has one.

import assert from "node:assert/strict";
import puppeteer from "puppeteer-core";

export const { PAGE, KEY } = process.env;

/** The message of Chromium for every response that is an error, whatever the page does about it. */
const FAILED_RESPONSE = /^Failed to load resource: the server responded with a status of/;

/** Starts Chromium. Its sandbox does not work for root. */
export const launch = () =>
  puppeteer.launch({
    executablePath: process.env.CHROMIUM,
    args: process.getuid() === 0 ? ["--no-sandbox"] : [],
  });

/**
 * Opens the page in a context of its own, where nothing is kept yet. `respond` fakes the chat route: it gets the body
 * of a request and returns a response, or null for the server's own. The page has `problems`: errors in the console and
 * requests to other origins.
 */
export async function openPage(browser, { path = "/", width = 1280, height = 800, dark = false, respond } = {}) {
  const page = await (await browser.createBrowserContext()).newPage();
  page.problems = [];
  page.bodies = [];
  page.on("console", (message) => {
    if (message.type() === "error" && !FAILED_RESPONSE.test(message.text())) page.problems.push(message.text());
  });
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("dialog", (dialog) => page.problems.push(`dialog: ${dialog.message()}`));
  page.on("request", (request) => checkOrigin(page, request));
  if (respond) await fakeChat(page, respond);
  await page.setViewport({ width, height });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }]);
  await load(page, path);
  return page;
}

/** Loads an address and waits until the page has asked for the models, or for a key. */
export async function load(page, path) {
  page.response = await page.goto(PAGE + path);
  await page.waitForSelector("#model option, dialog[open]");
}

/** The events of a stream. */
export const events = (...chunks) =>
  chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join("") + "data: [DONE]\n\n";

/** A response of the chat route: deltas, a reason to finish, and more fields of the first delta's choice. */
export function answer(deltas, { finish = "stop", headers = {}, logprobs = [] } = {}) {
  const chunks = deltas.map((delta, index) => ({
    choices: [
      { index: 0, delta, logprobs: logprobs[index] ? { content: [logprobs[index]] } : null, finish_reason: null },
    ],
  }));
  const end = { choices: [{ index: 0, delta: {}, finish_reason: finish }] };
  const details = {
    prompt_tokens_details: { cached_tokens: 7 },
    completion_tokens_details: { reasoning_tokens: 0, accepted_prediction_tokens: 2 },
  };
  const usage = { choices: [], usage: { prompt_tokens: 11, completion_tokens: 5, total_tokens: 16, ...details } };
  return { status: 200, contentType: "text/event-stream", headers, body: events(...chunks, end, usage) };
}

/** A response that is an error. */
export const failure = (status, message, headers = {}) => ({
  status,
  contentType: "application/json",
  headers,
  body: JSON.stringify({ error: { message, type: "invalid_request_error", param: null, code: null } }),
});

/** Sends a message and waits until its answer has ended. */
export async function send(page, text) {
  await page.locator("#message").fill(text);
  await page.focus("#message");
  await page.keyboard.press("Enter");
  await answered(page);
}

/** Waits until no answer is streamed. */
export async function answered(page) {
  await page.waitForSelector('.composer button[aria-label="Send"]', { timeout: 60_000 });
  await page.waitForFunction(() => !document.querySelector('[aria-busy="true"]'));
}

/** Clicks what a selector finds, once it is there. */
export const click = (page, selector) => page.locator(selector).click();

/** Turns a field of the settings into a value, as a user does. */
export async function set(page, name, value) {
  await page.evaluate(
    (id) => document.getElementById(id).closest("details")?.setAttribute("open", ""),
    `setting-${name}`,
  );
  await page.locator(`#setting-${name}`).fill(value);
}

/** The texts of all elements that a selector finds. */
export const texts = (page, selector) =>
  page.$$eval(selector, (elements) => elements.map(({ innerText }) => innerText.trim()));

/** The text of the last answer. */
export const lastAnswer = async (page) =>
  (await texts(page, ".message.assistant .markdown, .message.assistant .tokens")).at(-1);

/** Asserts that the page met no problem. */
export const assertSound = (page) => assert.deepEqual(page.problems, []);

async function fakeChat(page, respond) {
  await page.setRequestInterception(true);
  page.on("request", (request) => {
    if (!request.url().endsWith("/v1/chat/completions")) return request.continue();
    const body = JSON.parse(request.postData());
    page.bodies.push(body);
    const response = respond(body);
    return response ? request.respond(response) : request.continue();
  });
}

function checkOrigin(page, request) {
  const { protocol, origin } = new URL(request.url());
  if (protocol !== "data:" && protocol !== "blob:" && origin !== new URL(PAGE).origin) {
    page.problems.push(`request to ${request.url()}`);
  }
}
