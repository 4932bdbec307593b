// Chromium with the page of the clients, for the tests. The environment has the program, CHROMIUM, the page's origin,
// PAGE, and the server's address and key, API and KEY.

import puppeteer from "puppeteer-core";

export const { API, KEY, PAGE } = process.env;

/** A name that leads to the server, as a site can make one of its own do. */
export const REBOUND = "rebound.example.com";

/** Starts Chromium. The flags loosen no rule for pages. */
export const launch = (...flags) =>
  puppeteer.launch({
    executablePath: process.env.CHROMIUM,
    args: [
      `--host-resolver-rules=MAP ${REBOUND} 127.0.0.1`,
      // Chromium's sandbox does not work for root.
      ...(process.getuid() === 0 ? ["--no-sandbox"] : []),
      ...flags,
    ],
  });

/** Opens the page with the clients in a browser or one of its contexts, and waits until its script has run. */
export async function openClients(context) {
  const page = await context.newPage();
  await page.goto(`${PAGE}/?${new URLSearchParams({ api: API, key: KEY })}`);
  await page.waitForFunction(() => globalThis.openai);
  return page;
}

/** A request to the server that no page sends. */
export const send = (path, options = {}) =>
  fetch(`${API}${path}`, { ...options, headers: { authorization: `Bearer ${KEY}`, ...options.headers } });

/** The metrics of the server whose names match, by name and labels. */
export async function metrics(name) {
  const text = await (await send("/metrics")).text();
  const lines = text.split("\n").filter((line) => name.test(line) && !line.startsWith("#"));
  return Object.fromEntries(lines.map((line) => line.split(" ")).map(([key, value]) => [key, Number(value)]));
}
