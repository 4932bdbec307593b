// The modules of the page that need no browser. ASSETS is the folder of the page's files.

import assert from "node:assert/strict";
import { test } from "node:test";

const { ASSETS } = process.env;
const load = (name) => import(`${ASSETS}/${name}`);
const { AnswerBuilder, finishText, newAnswer, statistics } = await load("answer.js");
const {
  addMessage,
  branchOf,
  exportText,
  importText,
  matches,
  messagesUpTo,
  newConversation,
  removeMessage,
  requestMessages,
  shownMessages,
  switchBranch,
} = await load("conversation.js");
const { describeCode, parsed } = await load("highlight.js");
const { blocksOf, describeText } = await load("markdown.js");
const { requestOptions } = await load("parameters.js");
const { EventParser } = await load("sse.js");
const { fencedFile } = await load("composer.js");

const contents = (nodes) => nodes.map(({ content }) => content);

/** A conversation with a question, and an answer that was generated twice. */
function twoAnswers() {
  const conversation = newConversation();
  const question = addMessage(conversation, null, { role: "user", content: "Question" });
  const first = addMessage(conversation, question.id, { role: "assistant", content: "First" });
  const second = addMessage(conversation, question.id, { role: "assistant", content: "Second" });
  return { conversation, question, first, second };
}

test("a message tree: siblings, branches and the way to a message", () => {
  const { conversation, question, first, second } = twoAnswers();
  assert.equal(conversation.title, "Question");
  assert.deepEqual(contents(shownMessages(conversation)), ["Question", "Second"]);
  assert.deepEqual(branchOf(conversation, second), { index: 1, count: 2 });
  switchBranch(conversation, second, -1);
  const more = addMessage(conversation, first.id, { role: "user", content: "More" });
  assert.deepEqual(contents(shownMessages(conversation)), ["Question", "First", "More"]);
  switchBranch(conversation, first, -1);
  assert.deepEqual(branchOf(conversation, first), { index: 0, count: 2 });
  assert.deepEqual(contents(messagesUpTo(conversation, more.id)), ["Question", "First", "More"]);
  const edited = addMessage(conversation, question.parent, { role: "user", content: "Edited" });
  assert.deepEqual(contents(shownMessages(conversation)), ["Edited"]);
  removeMessage(conversation, edited);
  assert.deepEqual(contents(shownMessages(conversation)), ["Question", "First", "More"]);
});

test("a request has the system prompt, no empty answers, and a result for every call", () => {
  const conversation = newConversation();
  const question = addMessage(conversation, null, { role: "user", content: "Weather?" });
  const failed = addMessage(conversation, question.id, { role: "assistant", content: "", error: "Failed." });
  const again = addMessage(conversation, failed.id, { role: "user", content: "Again" });
  const toolCalls = [
    { id: "a", name: "f", arguments: "{}" },
    { id: "b", name: "g", arguments: "{}" },
  ];
  const calling = addMessage(conversation, again.id, { role: "assistant", content: "", toolCalls });
  const result = addMessage(conversation, calling.id, { role: "tool", callId: "b", content: "20" });
  const messages = requestMessages(messagesUpTo(conversation, result.id), "Be brief.");
  assert.deepEqual(
    messages.map(({ role }) => role),
    ["system", "user", "user", "assistant", "tool", "tool"],
  );
  assert.deepEqual(
    messages.slice(-2).map(({ tool_call_id: id }) => id),
    ["a", "b"],
  );
});

test("conversations survive a file, with new ids", () => {
  const { conversation, first } = twoAnswers();
  switchBranch(conversation, first, 0);
  const [copy] = importText(exportText([conversation]));
  assert.notEqual(copy.id, conversation.id);
  assert.equal(copy.title, conversation.title);
  assert.equal(copy.updatedAt, conversation.updatedAt);
  assert.deepEqual(contents(shownMessages(copy)), ["Question", "First"]);
  assert.equal(Object.keys(copy.nodes).length, 4);
  assert.ok(matches(copy, "second QUESTION"));
  assert.ok(!matches(copy, "third"));
});

test("files that are broken are refused", () => {
  const file = (nodes) =>
    JSON.stringify({ format: "predict-otron-9000 conversations", version: 1, conversations: [{ nodes }] });
  const loop = { root: { children: ["a"] }, a: { role: "user", content: "x", children: ["a"] } };
  for (const text of ["{", "[]", '{"conversations": []}', file({}), file({ root: { children: ["a"] } }), file(loop)]) {
    assert.throws(() => importText(text), /^Error: (This file|A conversation|A message)/);
  }
});

test("fields of a file that are of a wrong type are left out", () => {
  const answer = {
    role: "assistant",
    content: 7,
    toolCalls: [null],
    tokens: [{ token: 1 }],
    usage: "x",
    finish: { a: 1 },
    tokensPerSecond: "1",
    __proto__: { b: 2 },
    children: [],
  };
  const nodes = {
    root: { children: ["a"], selected: 9 },
    a: { role: "user", content: ["x"], children: ["b"] },
    b: answer,
  };
  const file = { format: "predict-otron-9000 conversations", version: 1, conversations: [{ title: 5, nodes }] };
  const [question, copy] = shownMessages(importText(JSON.stringify(file))[0]);
  assert.equal(question.content, "");
  const { id, parent, children, selected, ...fields } = copy;
  assert.deepEqual(fields, {
    role: "assistant",
    content: "",
    finish: "",
    toolCalls: [{ id: "", name: "", arguments: "" }],
  });
});

test("server-sent events in pieces of any size", () => {
  const stream = ': ping\n\ndata: {"a": 1}\r\n\r\ndata:x\ndata: y\n\nevent: z\ndata: ü\n\n';
  for (const size of [1, 2, 3, 7, 100]) {
    const parser = new EventParser();
    const found = [];
    for (let at = 0; at < stream.length; at += size) found.push(...parser.push(stream.slice(at, at + size)));
    assert.deepEqual(found, ['{"a": 1}', "x\ny", "ü"], `pieces of ${size}`);
  }
});

test("an answer: text, reasoning, calls, tokens and times", () => {
  const answer = newAnswer("m");
  const builder = new AnswerBuilder(answer, 1000);
  const add = (delta, now, token, finish = null) =>
    builder.add(
      { choices: [{ delta, finish_reason: finish, logprobs: token ? { content: [{ token }] } : null }] },
      now,
    );
  add({ role: "assistant", content: "" }, 1100);
  add({ reasoning_content: "Hm." }, 1200, "Hm.");
  add({}, 1250, "ü1");
  add({ content: "ü" }, 1300, "ü2");
  add(
    {
      tool_calls: [
        { index: 0, id: "a", function: { name: "f", arguments: "{" } },
        { index: 0, function: { arguments: "}" } },
      ],
    },
    1700,
    "{}",
  );
  add({}, 1700, null, "tool_calls");
  builder.add({ choices: [], usage: { prompt_tokens: 1, completion_tokens: 6 } }, 1700);
  builder.end();
  assert.equal(answer.content, "ü");
  assert.equal(answer.reasoning, "Hm.");
  assert.deepEqual(answer.toolCalls, [{ id: "a", name: "f", arguments: "{}" }]);
  assert.deepEqual(
    answer.tokens.map(({ token }) => token),
    ["ü1", "ü2"],
  );
  assert.equal(finishText(answer), "calls a function");
  assert.deepEqual(Object.fromEntries(statistics(answer)), {
    speed: "10 tokens/s",
    "first token": "0.20 s",
    prompt: "1 token",
    answer: "6 tokens",
  });
  assert.equal(finishText({ finish: "length" }), "stopped at the token limit");
});

test("Markdown becomes descriptions without HTML, unsafe links and images", () => {
  assert.deepEqual(describeText("**a** `b` [c](https://example.com/?x=1&amp;y) &lt;&#65;"), [
    [
      "p",
      {},
      ["strong", {}, "a"],
      " ",
      ["code", {}, "b"],
      " ",
      ["a", { href: "https://example.com/?x=1&y", rel: "noopener noreferrer nofollow", target: "_blank" }, "c"],
      " <A",
    ],
  ]);
  assert.deepEqual(describeText("<script>alert(1)</script>"), [
    ["p", { class: "source" }, "<script>alert(1)</script>"],
  ]);
  const unsafe = [
    "javascript:alert(1)",
    "JAVASCRIPT&colon;alert(1)",
    "data:text/html,x",
    "vbscript:x",
    "//example.com",
    "java&#10;script:x",
    "file:///etc/passwd",
  ];
  for (const address of unsafe) {
    for (const text of [
      `[x](${address})`,
      `[x](<${address}>)`,
      `![x](${address})`,
      `<${address}>`,
      `[x]\n\n[x]: ${address}`,
    ]) {
      assert.doesNotMatch(JSON.stringify(describeText(text)), /\["a"/, text);
    }
  }
  const [image] = describeText("![alt](https://example.com/a.png)");
  assert.equal(image[2][0], "a");
  assert.equal(image[2][2], "Image: alt");
  assert.deepEqual(describeText("```python x\nprint(1)"), [["code-block", { language: "python", code: "print(1)" }]]);
});

test("Markdown that is meant to stop the lexer is shown as it is", () => {
  const hostile = [
    ">".repeat(50_000),
    `${"a**b".repeat(12_000)}\n\n`.repeat(4),
    "- ".repeat(20_000),
    "*".repeat(100_000),
    "[".repeat(50_000),
    "a".repeat(1_000_000),
    "`".repeat(50_001),
    "<a ".repeat(30_000),
    "![".repeat(30_000),
    "_a ".repeat(30_000),
    "|a".repeat(30_000),
    "> - ".repeat(1000),
    "\\".repeat(99_999),
  ];
  for (const text of hostile) {
    const start = performance.now();
    describeText(text);
    const elapsed = performance.now() - start;
    assert.ok(elapsed < 5000, `${text.slice(0, 8)}… took ${elapsed} ms`);
  }
});

test("the texts of the blocks together are the text", () => {
  const text = "# A\n\n- a\n- b\n\n  c\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```\nx\n\ny\n```\n\nend";
  assert.equal(
    blocksOf(text)
      .map(({ raw }) => raw)
      .join(""),
    text,
  );
});

test("highlighted code is read strictly", () => {
  assert.deepEqual(describeCode("1 < 2", "nonesuch"), ["1 < 2"]);
  const plain = (nodes) => nodes.map((node) => (typeof node === "string" ? node : plain(node.slice(2)))).join("");
  const code = 'def f(a="<b>&\'"):\n    return a  # <script>';
  assert.equal(plain(describeCode(code, "python")), code);
  assert.match(JSON.stringify(describeCode(code, "python")), /hljs-keyword/);
  for (const html of [
    "<img>",
    '<span onclick="x">',
    "</span>",
    '<span class="a">',
    "&nbsp;",
    '<span class="a" id="b">x</span>',
  ]) {
    assert.equal(parsed(html), null, html);
  }
});

test("parameters are sent only where they are set, and wrong ones are named", () => {
  assert.deepEqual(requestOptions({}), { options: {}, errors: {} });
  const { options, errors } = requestOptions({
    temperature: "0",
    stop: "a\nb",
    seed: "7",
    logit_bias: '{"1": 2}',
    ignore_eos: "yes",
    stop_token_ids: "1\n2",
    cache_salt: "x",
  });
  assert.deepEqual(errors, {});
  const wire = JSON.parse(JSON.stringify(options));
  assert.deepEqual(wire, {
    temperature: 0,
    stop: ["a", "b"],
    seed: 7,
    logit_bias: { 1: 2 },
    ignore_eos: true,
    stop_token_ids: [1, 2],
    cache_salt: "x",
  });
  const wrong = {
    temperature: "3",
    top_k: "1.5",
    logit_bias: "{",
    min_p: "x",
    format: "json_schema",
    schema: "[]",
    tools: "{}",
  };
  assert.deepEqual(Object.keys(requestOptions(wrong).errors).sort(), [
    "logit_bias",
    "min_p",
    "schema",
    "temperature",
    "tools",
    "top_k",
  ]);
});

test("a format and tools are sent, but not with an answer that is continued", () => {
  const values = {
    format: "json_schema",
    schema: '{"type": "object"}',
    tools: '[{"name": "f"}]',
    toolChoice: "required",
  };
  const { options } = requestOptions(values);
  assert.deepEqual(options.response_format.json_schema.schema, { type: "object" });
  assert.deepEqual(options.tools, [{ type: "function", function: { name: "f" } }]);
  assert.equal(options.tool_choice, "required");
  assert.deepEqual(Object.keys(JSON.parse(JSON.stringify(requestOptions(values, true).options))), []);
});

test("an attached file is fenced by more backticks than it has", () => {
  assert.equal(fencedFile({ name: "a.md", text: "````\n" }), "a.md:\n\n`````md\n````\n`````");
});
