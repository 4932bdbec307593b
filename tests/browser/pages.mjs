// Serves the page with the clients on a free port of 127.0.0.1, which is printed, until its standard input ends.
// Usage: node pages.mjs FOLDER, where FOLDER has clients.js

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";

const HTML = `<!doctype html>
<title>Clients</title>
<link rel="icon" href="data:,">
<script type="module" src="/clients.js"></script>`;
const files = {
  "/": ["text/html", HTML],
  "/clients.js": ["text/javascript", readFileSync(join(process.argv[2], "clients.js"))],
};

const server = createServer((request, response) => {
  const [type, content] = files[new URL(request.url, "http://localhost").pathname] ?? [];
  response.writeHead(type ? 200 : 404, { "content-type": `${type ?? "text/plain"}; charset=utf-8` });
  response.end(content);
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.resume().on("end", () => process.exit());
