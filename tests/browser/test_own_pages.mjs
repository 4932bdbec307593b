// Pages at the server's own address, of a server without keys: its own, and one of a site whose name leads here.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { API, REBOUND, launch } from "./chromium.mjs";

let browser, page;
before(async () => {
  browser = await launch();
  page = await browser.newPage();
});
after(() => browser?.close());

/** The status that a page at an address gets for a request to its own host. */
async function statusOf(address) {
  await page.goto(address);
  return page.evaluate(async () => {
    const body = JSON.stringify({ model: "default", input: "cat" });
    const headers = { "content-type": "application/json" };
    return (await fetch("/v1/embeddings", { method: "POST", body, headers })).status;
  });
}

test("the server's own page uses the server", async () => {
  assert.equal(await statusOf(`${API}/docs`), 200);
  assert.equal(await statusOf(`${API.replace("127.0.0.1", "localhost")}/docs`), 200);
});

test("a page whose name leads to the server reaches nothing", async () => {
  assert.equal(await statusOf(`${API.replace("127.0.0.1", REBOUND)}/docs`), 403);
});
