"""Hostile requests to the routes of responses, conversations, messages, decisions, files, batches and models and to
Ollama's, one row each, and to what other servers call constraints and probabilities of the prompt."""

import json
import time
from dataclasses import replace

from client import CHAT, chat_body, get, head, request
from requests import (
    ANY,
    COMPLETE,
    EITHER,
    GRAMMAR_FIELDS,
    LONG_TEXTS,
    MB,
    REFUSED,
    SERVED,
    Row,
    chat,
    each,
    leave,
    nested,
    nested_schema,
    post,
    raw,
    repeated,
)

RESPOND, CONVERSE, DECIDE, SYSTEM_ONE = "/v1/responses", "/v1/conversations", "/v1/decisions", "/v1/systemone"
MESSAGE, COUNT = "/v1/messages", "/v1/messages/count_tokens"
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
ANTHROPIC_TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}


def respond(content="hi", **fields):
    return post(RESPOND, lambda: {"input": content, "max_output_tokens": 16, **fields})


def message(content="hi", **fields):
    return post(MESSAGE, lambda: {"messages": [{"role": "user", "content": content}], "max_tokens": 1, **fields})


def decide(questions, content="hi", **fields):
    return post(DECIDE, lambda: {"input": content, "questions": questions, **fields})


def choice(labels):
    return {"type": "choice", "instructions": "Which?", "choices": [{"value": label} for label in labels]}


def predicate(text="It is true."):
    return {"type": "predicate", "instructions": text}


def tagged(tags):
    """A format of tags around calls, as other servers have it."""
    return {"structural_tag": {"type": "structural_tag", "format": tags}}


def chain(n):
    """A chain of responses, each after the one before."""

    def attack(target):
        answers, last = [], None
        for i in range(n):
            body = {"input": f"{i}: " + "word " * 30, "max_output_tokens": 1, "previous_response_id": last}
            answer = target.exchange(request(RESPOND, body))
            answers.append(answer)
            if answer.status != 200:
                break
            last = answer.json()["id"]
        return answers

    return attack


def conversation(step):
    """Creates a conversation and does something with its path."""

    def attack(target):
        created = target.exchange(request(CONVERSE, {"metadata": {}}))
        return [created] if created.status != 200 else step(target, f"{CONVERSE}/{created.json()['id']}")

    return attack


def fill(target, path):
    """Adds as much to a conversation as it takes."""
    answers = []
    while not target.stop.is_set() and len(answers) < 40 and (not answers or answers[-1].status == 200):
        items = [{"type": "message", "role": "user", "content": "a" * 90_000}] * 20
        answers.append(target.exchange(request(f"{path}/items", {"items": items})))
    return answers


def background(n):
    """Starts responses that nobody waits for, and cancels every other one."""

    def attack(target):
        answers = []
        for i in range(n):
            body = {"input": f"{i}", "max_output_tokens": 400, "background": True}
            answers.append(target.exchange(request(RESPOND, body)))
            if answers[-1].status == 200 and i % 2:
                answers.append(target.exchange(request(f"{RESPOND}/{answers[-1].json()['id']}/cancel", {})))
        return answers

    return attack


def of_another(target):
    """What one key stores, another one asks for."""
    stored = target.exchange(request(RESPOND, {"input": "a secret", "max_output_tokens": 1}))
    if stored.status != 200:
        return [stored]
    path = f"{RESPOND}/{stored.json()['id']}"
    stranger = {"key": "sk-neighbor"}
    follow = {"input": "go on", "max_output_tokens": 1, "previous_response_id": stored.json()["id"]}
    return [
        target.exchange(get(path, **stranger)),
        target.exchange(get(f"{path}/input_items", **stranger)),
        target.exchange(request(f"{path}/cancel", {}, **stranger)),
        target.exchange(head("DELETE", path, [], **stranger)),
        target.exchange(request(RESPOND, follow, **stranger)),
    ]


RESPONSES = [
    Row(f"responses: {name}", respond(**fields), expect=expect)
    for name, fields, expect in [
        ("100,000 items", {"content": [{"role": "user", "content": "a"}] * 60_000}, EITHER),
        ("items that are none", {"content": [None, 1, [], "a"]}, REFUSED),
        ("items of unknown types", {"content": [{"type": "x" * 1000}] * 100}, REFUSED),
        ("a reference to nothing", {"content": [{"type": "item_reference", "id": "msg_1"}]}, {400, 404}),
        ("60,000 references", {"content": [{"type": "item_reference", "id": "msg_1"}] * 40_000}, {400, 404}),
        (
            "an output without its call",
            {"content": [{"type": "function_call_output", "call_id": "x", "output": ""}]},
            EITHER,
        ),
        (
            "20,000 calls",
            {"content": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "{"}] * 15_000},
            EITHER,
        ),
        (
            "a forged thought",
            {"content": [{"type": "reasoning", "summary": [], "encrypted_content": "A" * MB}]},
            EITHER,
        ),
        (
            "parts by the thousand",
            {"content": [{"role": "user", "content": [{"type": "input_text", "text": "a"}] * 50_000}]},
            EITHER,
        ),
        (
            "an image",
            {"content": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
            REFUSED,
        ),
        (
            "a file",
            {"content": [{"role": "user", "content": [{"type": "input_file", "file_id": "../../etc/passwd"}]}]},
            REFUSED,
        ),
        ("special tokens", {"content": LONG_TEXTS["special tokens"]}, EITHER),
        ("no output tokens", {"max_output_tokens": 0}, REFUSED),
        ("2^64 output tokens", {"max_output_tokens": 1 << 64}, REFUSED),
        ("a chain after nothing", {"previous_response_id": "resp_" + "0" * 1000}, {400, 404}),
        ("a chain after a path", {"previous_response_id": "../../../etc/passwd"}, {400, 404}),
        ("a conversation of nothing", {"conversation": "conv_1"}, {400, 404}),
        ("both", {"conversation": "conv_1", "previous_response_id": "resp_1"}, {400, 404}),
        ("a thousand values of metadata", {"metadata": {f"k{i}": "v" for i in range(1000)}}, REFUSED),
        ("a long value of metadata", {"metadata": {"k": "v" * 100_000}}, REFUSED),
        ("metadata that is none", {"metadata": {"k": {"a": []}}}, REFUSED),
        ("10,000 tools", {"tools": [FUNCTION] * 10_000}, EITHER),
        (
            "nested namespaces",
            {
                "tools": [
                    {
                        "type": "namespace",
                        "name": "n",
                        "tools": [{"type": "namespace", "name": "m", "tools": [FUNCTION]}],
                    }
                ]
            },
            EITHER,
        ),
        ("hosted tools", {"tools": [{"type": "web_search"}, {"type": "x" * 100_000}]}, EITHER),
        (
            "a custom tool's grammar",
            {
                "tools": [
                    {
                        "type": "custom",
                        "name": "c",
                        "format": {"type": "grammar", "syntax": "lark", "definition": "start: a\na: a a |"},
                    }
                ]
            },
            EITHER,
        ),
        (
            "a format that is hard to compile",
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "x",
                        "schema": GRAMMAR_FIELDS["a product of multipleOf"]["guided_json"],
                    }
                }
            },
            {200, 400, 429, 503},
        ),
        (
            "a deep format",
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": nested_schema(30)}}},
            EITHER,
        ),
        ("what to include", {"include": ["x"] * 100_000}, EITHER),
        ("a truncation that is none", {"truncation": "x" * 100_000}, REFUSED),
        ("instructions of 1.9 MB", {"instructions": LONG_TEXTS["words"]}, EITHER),
        ("a prompt", {"prompt": {"id": "pmpt_1", "variables": {"a": "b"}}}, REFUSED),
    ]
]
RESPONSES += [
    Row("responses: no object", post(RESPOND, b"[]"), expect=REFUSED),
    Row("responses: nested arrays", post(RESPOND, b'{"input":' + nested(100_000) + b"}"), expect=REFUSED),
    Row("responses: a chain of 60", chain(60), expect=SERVED, patience=20),
    Row("responses: chains of 8 clients", chain(8), 8, ANY, patience=10),
    Row("responses: of another key", of_another, expect={400, 404}),
    Row("responses: in the background, by 4", background(8), 4, ANY),
    Row(
        "responses: streams that are left",
        leave(lambda: request(RESPOND, {"input": "count", "stream": True, "max_output_tokens": 400}), 20, after=0.02),
        4,
        set(),
    ),
    Row(
        "responses: large ones beside a neighbor's chat",
        repeated(post(RESPOND, lambda: {"input": LONG_TEXTS["mixed scripts"], "truncation": "auto"})),
        8,
        ANY,
        meanwhile=1.5,
        patience=5,
    ),
    Row(
        "responses: stored ones of 1.9 MB",
        repeated(
            post(
                RESPOND,
                lambda: {
                    "input": "hi",
                    "instructions": "a",
                    "max_output_tokens": 1,
                    "tools": [{**FUNCTION, "description": "d " * 900_000}],
                },
            )
        ),
        4,
        ANY,
        meanwhile=1.0,
        patience=5,
    ),
    Row(
        "responses: paths",
        each(
            [
                raw(get(f"{RESPOND}/{name}"))
                for name in (
                    "%00",
                    "%2e%2e%2f%2e%2e",
                    "resp_%ff",
                    "x" * 8000,
                    "a%0d%0aset-cookie:x",
                    "{id}",
                    "%F0%9F%92%A9",
                )
            ]
        ),
        expect={400, 404, 414, 431},
    ),
    Row(
        "responses: events after a number that is none",
        each(
            [
                raw(get(f"{RESPOND}/resp_1?stream=true&starting_after={n}"))
                for n in ("-1", "1e9", str(1 << 65), "%00", "")
            ]
        ),
        expect={400, 404},
    ),
    Row(
        "responses: tokens of a long input",
        post(f"{RESPOND}/input_tokens", lambda: {"input": LONG_TEXTS["words"]}),
        4,
        ANY,
    ),
]

CONVERSATIONS = [
    Row("conversations: one that is filled", conversation(fill), 2, {200, 400, 413, 429, 507}, patience=20),
    Row(
        "conversations: 21 items",
        conversation(
            lambda target, path: [
                target.exchange(request(f"{path}/items", {"items": [{"role": "user", "content": "a"}] * 21}))
            ]
        ),
        expect=REFUSED,
    ),
    Row(
        "conversations: items that are none",
        conversation(
            lambda target, path: [
                target.exchange(request(f"{path}/items", {"items": items}))
                for items in ([None], [1], [{}], [{"type": "x"}], {"a": 1}, "x", None, [[]])
            ]
        ),
        expect=REFUSED,
    ),
    Row(
        "conversations: pages of a size that is none",
        conversation(
            lambda target, path: [
                target.exchange(get(f"{path}/items?{query}"))
                for query in (
                    "limit=0",
                    "limit=-1",
                    "limit=999999999999999999999",
                    "after=%00",
                    "order=x",
                    "limit=1&limit=2",
                )
            ]
        ),
        expect={200, 400, 404},
    ),
    Row(
        "conversations: 2,000 of them",
        lambda target: [target.exchange(request(CONVERSE, {})) for _ in range(500)],
        4,
        SERVED,
        patience=20,
    ),
    Row(
        "conversations: deleted while they are used",
        conversation(
            lambda target, path: [
                answer
                for i in range(20)
                for answer in (
                    target.exchange(
                        request(RESPOND, {"input": "a", "conversation": path.split("/")[-1], "max_output_tokens": 1})
                    ),
                    target.exchange(head("DELETE", path, [])),
                )
            ]
        ),
        4,
        {200, 400, 404, 429},
    ),
]

MESSAGES = [
    Row(f"anthropic: {name}", message(**fields), expect=expect)
    for name, fields, expect in [
        ("parts by the thousand", {"content": [{"type": "text", "text": "a"}] * 50_000}, EITHER),
        ("parts that are none", {"content": [None, 1, [], "a"]}, REFUSED),
        ("an image", {"content": [{"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}]}, REFUSED),
        (
            "a result without its call",
            {"content": [{"type": "tool_result", "tool_use_id": "x", "content": "y"}]},
            EITHER,
        ),
        (
            "results within results",
            {
                "content": [
                    {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "tool_result", "content": []}]}
                ]
            },
            REFUSED,
        ),
        (
            "a thought with a forged signature",
            {"content": [{"type": "thinking", "thinking": "a", "signature": "A" * MB}]},
            EITHER,
        ),
        ("special tokens", {"content": LONG_TEXTS["special tokens"]}, EITHER),
        ("no tokens", {"max_tokens": 0}, EITHER),
        ("no limit", {"max_tokens": None}, REFUSED),
        ("2^64 tokens", {"max_tokens": 1 << 64}, REFUSED),
        ("a system prompt of 1.9 MB", {"system": LONG_TEXTS["words"]}, EITHER),
        (
            "a system prompt of parts",
            {"system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}] * 20_000},
            ANY,
        ),
        ("10,000 tools", {"tools": [ANTHROPIC_TOOL] * 10_000}, EITHER),
        ("a tool without a schema", {"tools": [{"name": "f"}]}, EITHER),
        ("a tool whose schema is a list", {"tools": [{"name": "f", "input_schema": []}]}, REFUSED),
        (
            "a deep schema",
            {"tools": [{"name": "f", "input_schema": nested_schema(28)}], "tool_choice": {"type": "any"}},
            {200, 400, 429, 503},
        ),
        (
            "a choice that does not exist",
            {"tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "tool", "name": "g"}},
            REFUSED,
        ),
        ("a budget of 2^63", {"thinking": {"type": "enabled", "budget_tokens": 1 << 63}}, EITHER),
        ("a negative budget", {"thinking": {"type": "enabled", "budget_tokens": -1}}, REFUSED),
        ("100,000 stop sequences", {"stop_sequences": ["a"] * 100_000}, REFUSED),
        ("a temperature that is none", {"temperature": "hot"}, REFUSED),
        (
            "a format that is hard to compile",
            {
                "output_config": {
                    "format": {
                        "type": "json_schema",
                        "schema": GRAMMAR_FIELDS["100 different multipleOf"]["guided_json"],
                    }
                }
            },
            {200, 400, 429, 503},
        ),
        ("metadata of 1 MB", {"metadata": {"user_id": "u" * MB}}, EITHER),
    ]
]
MESSAGES += [
    Row("anthropic: nested arrays", post(MESSAGE, b'{"messages":' + nested(100_000) + b"}"), expect=REFUSED),
    Row(
        "anthropic: a beta's name of 10 kB",
        post(
            MESSAGE,
            {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
            headers=[("anthropic-beta", "a," * 5000)],
        ),
        expect={200, 400, 431},
    ),
    Row(
        "anthropic: tokens of a long input",
        post(COUNT, lambda: {"messages": [{"role": "user", "content": LONG_TEXTS["mixed scripts"]}]}),
        8,
        ANY,
        meanwhile=0.5,
    ),
    Row(
        "anthropic: streams that are left",
        leave(
            lambda: request(
                MESSAGE, {"messages": [{"role": "user", "content": "count"}], "max_tokens": 400, "stream": True}
            ),
            20,
            after=0.02,
        ),
        4,
        set(),
    ),
]

DECISIONS = [
    Row(f"decisions: {name}", attack, n, expect, patience=8)
    for name, attack, n, expect in [
        ("401 questions", decide([predicate()] * 401), 1, REFUSED),
        ("none", decide([]), 1, REFUSED),
        ("400 questions, by 4", decide([predicate(f"It is {i}.") for i in range(400)]), 4, ANY),
        ("a long input, 400 questions", decide([predicate(f"It is {i}.") for i in range(400)], "word " * 1500), 2, ANY),
        ("questions that are long", decide([predicate("word " * 900)] * 400), 2, ANY),
        ("an input of 1.9 MB", decide([predicate()], LONG_TEXTS["mixed scripts"]), 4, ANY),
        ("100,000 labels", decide([choice(map(str, range(50_000)))]), 1, REFUSED),
        ("255 labels for each of 400", decide([choice([f"label {i}" for i in range(255)])] * 100), 2, ANY),
        ("a label of 1 MB", decide([choice(["a" * MB, "b"])]), 1, EITHER),
        ("one label", decide([choice(["a"])]), 1, EITHER),
        ("equal labels", decide([choice(["a", "a"])]), 1, REFUSED),
        ("an empty label", decide([choice(["", "a"])]), 1, EITHER),
        ("labels of special tokens", decide([choice(["<|im_end|>", "<|im_start|>"])]), 1, EITHER),
        ("unknown types", decide([{"type": "x" * 100_000, "instructions": ""}]), 1, REFUSED),
        ("questions that are none", decide([None, 1, "a", []]), 1, REFUSED),
        ("an input that is none", decide([predicate()], {"a": 1}), 1, REFUSED),
        (
            "those that leave",
            leave(lambda: request(DECIDE, {"input": "a", "questions": [predicate()] * 400}), 3, after=0.1),
            4,
            set(),
        ),
        ("of the other form that are none", post(SYSTEM_ONE, {"questions": [{"type": "noul"}]}), 1, REFUSED),
    ]
]
DECISIONS += [
    Row(
        "decisions: 400 questions again and again beside a neighbor's chat",
        repeated(decide([predicate(f"It is {i}.") for i in range(400)])),
        4,
        ANY,
        meanwhile=1.5,
        patience=5,
    ),
]

# Constraints of other servers, in both their forms.
ENDLESS_GBNF = "root ::= a a\na ::= a b | b a |\nb ::= a | " + '"x"'
CONSTRAINTS = [
    Row(f"constraints: {name}", chat(**{"max_tokens": 4, **fields}), expect={200, 400, 429, 503})
    for name, fields in {
        "GBNF with left recursion": {"grammar": 'root ::= root "a" | "a"'},
        "GBNF of nothing but empty rules": {"grammar": ENDLESS_GBNF},
        "GBNF in circles": {"grammar": "root ::= a\na ::= b\nb ::= a"},
        "GBNF with a repetition of 10^9": {"grammar": 'root ::= "a"{1000000000}'},
        "GBNF with nested repetitions": {"grammar": "root ::= a{1,999}\na ::= b{1,999}\nb ::= [a-z]{1,999}"},
        "GBNF with 20,000 groups": {"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
        "GBNF with 4,000 rules": {
            "grammar": "root ::= r0\n"
            + "\n".join(f'r{i} ::= "{i}" r{i + 1} | r{i + 1}' for i in range(4000))
            + '\nr4000 ::= "x"'
        },
        "GBNF without an end": {"grammar": 'root ::= "'},
        "GBNF with an unfinished class": {"grammar": "root ::= [" * 1000},
        "GBNF with tokens": {"grammar": "root ::= <[4294967296]> !<[1]> <|im_end|>"},
        "GBNF of 1 MB": {"grammar": "root ::= " + '"a" | ' * 150_000 + '"b"'},
        "a class of the whole Unicode": {"grammar": r"root ::= [^\x00]{1,100000}"},
        "a structural tag of nothing": tagged({}),
        "a structural tag of tags in tags": tagged(
            {"type": "sequence", "elements": [{"type": "triggered_tags", "triggers": [""], "tags": []}]}
        ),
        "structural tags by the thousand": tagged(
            {
                "type": "triggered_tags",
                "triggers": ["<"],
                "tags": [{"begin": f"<f{i}>", "content": {"type": "any_text"}, "end": f"</f{i}>"} for i in range(4000)],
            }
        ),
        "a structural tag of a hard schema": tagged(
            {
                "type": "tag",
                "begin": "<a>",
                "content": {
                    "type": "json_schema",
                    "json_schema": GRAMMAR_FIELDS["a product of multipleOf"]["guided_json"],
                },
                "end": "</a>",
            }
        ),
        "structured outputs that are all at once": {
            "structured_outputs": {"json": {}, "regex": "a", "choice": ["a"], "grammar": "root ::= a"}
        },
        "structured outputs that are none": {"structured_outputs": {"x": 1}},
        "structured outputs of a regular expression": {
            "structured_outputs": {"regex": "(a|b)*a(a|b){40}" + "[ab]?" * 2000}
        },
        "property names by the thousand": {
            "guided_json": {"type": "object", "propertyNames": {"enum": [f"k{i}" for i in range(4000)]}}
        },
        "a disjoint oneOf of 400": {
            "guided_json": {
                "oneOf": [
                    {"type": "object", "properties": {"t": {"const": i}, "x": {"type": "integer"}}, "required": ["t"]}
                    for i in range(400)
                ]
            }
        },
    }.items()
]

# Probabilities of the prompt.
PROBABILITIES = [
    Row(f"probabilities: {name}", attack, n, expect)
    for name, attack, n, expect in [
        (
            "of a long prompt",
            post(COMPLETE, lambda: {"prompt": "word " * 2000, "echo": True, "logprobs": 5, "max_tokens": 0}),
            4,
            ANY,
        ),
        (
            "of every prompt",
            post(COMPLETE, lambda: {"prompt": ["word " * 100] * 64, "echo": True, "logprobs": 5, "max_tokens": 1}),
            4,
            ANY,
        ),
        (
            "2^40 of each",
            post(COMPLETE, {"prompt": "a b", "echo": True, "logprobs": 1 << 40, "max_tokens": 0}),
            1,
            REFUSED,
        ),
        (
            "of ids out of range",
            post(COMPLETE, {"prompt": [4294967295], "echo": True, "logprobs": 1, "max_tokens": 0}),
            1,
            REFUSED,
        ),
        (
            "of an empty prompt",
            post(COMPLETE, {"prompt": "", "echo": True, "logprobs": 1, "max_tokens": 0}),
            1,
            REFUSED,
        ),
        ("in a chat, all of them", chat("word " * 2000, max_tokens=1, prompt_logprobs=20), 4, ANY),
        ("in a chat, -1", chat("a", max_tokens=1, prompt_logprobs=-1), 1, EITHER),
        ("in a chat, 10^9", chat("a", max_tokens=1, prompt_logprobs=10**9), 1, REFUSED),
        ("in a stream", chat("a", max_tokens=1, prompt_logprobs=1, stream=True), 1, EITHER),
        ("for 16 choices", chat("word " * 500, max_tokens=1, prompt_logprobs=20, n=16), 4, ANY),
    ]
]
PROBABILITIES += [
    Row(
        "probabilities: templates applied to 40,000 messages",
        post("/apply-template", lambda: {"messages": [{"role": "user", "content": "a"}] * 40_000}),
        4,
        ANY,
    ),
]

# Files and batches.
FILES, BATCHES, MESSAGE_BATCHES = "/v1/files", "/v1/batches", "/v1/messages/batches"
BOUNDARY = [("content-type", "multipart/form-data; boundary=cut")]


def part(name, content, more=""):
    return f'--cut\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


def form(file, purpose=b"batch", end=b"--cut--\r\n"):
    return part("purpose", purpose) + part("file", file, '; filename="x"') + end


def upload(data, headers=BOUNDARY):
    return lambda target: [target.exchange(request(FILES, data() if callable(data) else data, headers))]


def batch_of(lines, n_waits=0):
    """Uploads a file and makes a batch of it; then waits for its end, at most so many tenths of a second."""

    def attack(target):
        stored = target.exchange(request(FILES, form(lines() if callable(lines) else lines), BOUNDARY))
        if stored.status != 200:
            return [stored]
        fields = {"input_file_id": stored.json()["id"], "endpoint": CHAT, "completion_window": "1h"}
        answers = [target.exchange(request(BATCHES, fields))]
        for _ in range(n_waits):
            answers.append(target.exchange(get(f"{BATCHES}/{answers[0].json()['id']}")))
            if answers[-1].json().get("status") in ("completed", "failed"):
                break
            time.sleep(0.1)
        target.exchange(head("DELETE", f"{FILES}/{stored.json()['id']}", []))
        return answers

    return attack


def batch_line(i, **fields):
    body = json.dumps(chat_body(**fields))
    return f'{{"custom_id":"{i}","method":"POST","url":"{CHAT}","body":{body}}}\n'.encode()


def kept_shortly(target):
    """Uploads 8 MB, and deletes them."""
    stored = target.exchange(request(FILES, form(b"x" * 8_000_000), BOUNDARY))
    if stored.status == 200:
        target.exchange(head("DELETE", f"{FILES}/{stored.json()['id']}", []))
    return [stored]


def filled(target):
    """Uploads as much as the server takes, and deletes it."""
    answers = []
    while not answers or answers[-1].status == 200:
        answers.append(target.exchange(request(FILES, form(b"x" * 8_000_000), BOUNDARY)))
    for answer in answers[:-1]:
        answers.append(target.exchange(head("DELETE", f"{FILES}/{answer.json()['id']}", [])))
    return answers


BATCH_ROWS = [
    Row("files: as much as the server takes", filled, 2, {200, 400, 404, 429}, patience=20),
    Row("files: 8 MB by 16", kept_shortly, 16, {200, 400, 429}, patience=20),
    Row("files: a form without an end", upload(form(b"x", end=b"")), expect=REFUSED),
    Row("files: no form", upload(b"{}", [("content-type", "application/json")]), expect={415}),
    Row("files: no boundary", upload(b"x", [("content-type", "multipart/form-data")]), expect=REFUSED),
    Row("files: nothing", upload(b"--cut--\r\n"), expect=REFUSED),
    Row("files: 20,000 fields", upload(lambda: part("x", b"y") * 20_000 + b"--cut--\r\n"), expect=REFUSED),
    Row("files: 200 files", upload(lambda: part("file", b"y", '; filename="x"') * 200 + form(b"")), expect=REFUSED),
    Row("files: a purpose of 1 MB", upload(lambda: form(b"x", b"p" * MB)), expect=REFUSED),
    Row(
        "files: a name of 60 kB",
        upload(lambda: part("purpose", b"x") + part("file", b"x", f'; filename="{"n" * 60_000}"') + b"--cut--\r\n"),
        expect={200, 400},
    ),
    Row(
        "files: paths",
        each([raw(get(f"{FILES}/{name}/content")) for name in ("%2e%2e%2f%2e%2e", "%00", "file-", "{id}", "x" * 8000)]),
        expect={400, 404, 414, 431},
    ),
    Row("batches: lines that are none", batch_of(b"[]\n{}\nnull\n\xff\xfe\n" * 1000, 30), expect={200}),
    Row("batches: a line of 3 MB", batch_of(lambda: b'{"custom_id":"' + b"a" * 3_000_000 + b'"}', 30), expect={200}),
    Row("batches: line breaks alone", batch_of(b"\n" * 4_000_000, 30), expect={200}),
    Row("batches: nested lines", batch_of(nested(200_000), 30), expect={200}),
    Row(
        "batches: 60,000 lines",
        batch_of(lambda: b"".join(map(batch_line, range(60_000))), 60),
        expect={200},
        patience=20,
    ),
    Row(
        "batches: of itself",
        batch_of(b"".join(batch_line(i, content="a" * 100_000) for i in range(20)), 30),
        expect={200},
    ),
    Row(
        "batches: lines that are hard to compile",
        batch_of(b"".join(batch_line(i, **GRAMMAR_FIELDS["a product of multipleOf"]) for i in range(8)), 60),
        expect={200},
    ),
    Row(
        "batches: 400 long ones beside a neighbor's chat",
        batch_of(b"".join(batch_line(i, max_tokens=400, ignore_eos=True) for i in range(400)), 30),
        2,
        {200},
        meanwhile=1.5,
    ),
    Row(
        "batches: of nothing",
        post(BATCHES, {"input_file_id": "x", "endpoint": CHAT, "completion_window": "24h"}),
        expect={404},
    ),
    Row(
        "batches: of messages, 20,000",
        post(MESSAGE_BATCHES, lambda: {"requests": [{"custom_id": str(i), "params": {}} for i in range(20_000)]}),
        expect={200, 400},
    ),
    Row("batches: of messages that are none", post(MESSAGE_BATCHES, {"requests": [None, 1, []]}), expect=REFUSED),
]

# Names of models that lead out of a folder, to another program's options, or nowhere.
NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "/proc/self/mem",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "hf:../..",
    "hf:a/b/../../../c",
    "hf:a/b@../c:d.gguf",
    "hf:" + "a/" * 4000,
    "pypi:--index-url=x==1/y.gguf",
    "pypi:x==1/../../y.gguf",
    "\0",
    "\x1b[2J",
    "",
    "x" * 60_000,
]


def pull(name, **fields):
    return post("/v1/models/pull", {"model": name, "stream": False, **fields})


def on_models(method, names, action=""):
    """Requests about models whose names stand in the path."""
    paths = [f"/v1/models/{name}{action}" for name in names]
    return each([raw(head(method, path, [("content-length", "0"), ("connection", "close")])) for path in paths])


PATHS = ["%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..", "%00", "%ff", "hf:a/b/..", "x" * 8000, "/", "%1b[2J", "pypi:-r==1/x"]

MODELS = [
    Row("models: pull names that are none", each([pull(name) for name in NAMES]), expect={400, 404}, patience=20),
    Row("models: pull a number", post("/v1/models/pull", {"model": 1}), expect=REFUSED),
    Row("models: pull into a stream that nobody reads", leave(request("/v1/models/pull", {"model": "../x"}), 200)),
    Row("models: delete names that are none", on_models("DELETE", PATHS), expect={400, 404, 405, 414, 431}),
    Row("models: load names that are none", on_models("POST", PATHS, "/load"), expect={400, 404, 405, 414, 431}),
    Row("models: what no model does", on_models("POST", ["smollm2-135m-instruct"], "/launch"), expect={400, 404, 405}),
    Row(
        "models: unload the default one again and again beside chats",
        each([repeated(on_models("POST", ["smollm2-135m-instruct"], "/unload"))]),
        2,
        {200, 400, 409, 429, 503},
        meanwhile=1.5,
    ),
]


def ollama(content="hi", path="/api/chat", **fields):
    return post(
        path,
        lambda: {
            "messages": [{"role": "user", "content": content() if callable(content) else content}],
            "stream": False,
            **fields,
        },
    )


OLLAMA_ROWS = [
    Row("ollama: answers without an end", ollama(options={"num_predict": -1}), 16, ANY),
    Row("ollama: a context of 10^18 tokens", ollama(options={"num_ctx": 10**18, "num_predict": 1}), expect=EITHER),
    Row("ollama: options that are numbers of any size", ollama(options={"num_predict": 1e400}), expect=EITHER),
    Row("ollama: 100,000 options", ollama(options={str(n): n for n in range(100_000)}), expect=EITHER),
    Row("ollama: a format that is nested", ollama(format=nested_schema(200)), expect=EITHER),
    Row("ollama: 100,000 stop texts", ollama(options={"stop": ["a"] * 100_000}), expect=EITHER),
    Row("ollama: an image of 3 MB", ollama(images=["a" * 3 * MB]), expect=EITHER),
    Row("ollama: a context that keeps growing", post("/api/generate", {"context": [1] * 500_000}), expect=EITHER),
    Row("ollama: texts by the thousand", post("/api/embed", {"input": ["a"] * 100_000}), expect=EITHER),
    Row("ollama: half a line", leave(request("/api/chat", chat_body()), 64, after=0.01), meanwhile=0.5),
    Row(
        "ollama: names that are none",
        each([post(f"/api/{route}", {"model": name, "stream": False}) for route in ("pull", "show") for name in NAMES]),
        expect={200, 400, 404},
        patience=20,
    ),
    Row(
        "ollama: delete names that are none",
        each([raw(request("/api/delete", {"model": name}, method="DELETE")) for name in NAMES]),
        expect={400, 404},
        patience=20,
    ),
]
OLLAMA = [replace(row, error_is_text=True) for row in OLLAMA_ROWS]

ROWS = [
    *RESPONSES,
    *CONVERSATIONS,
    *MESSAGES,
    *DECISIONS,
    *CONSTRAINTS,
    *PROBABILITIES,
    *BATCH_ROWS,
    *MODELS,
    *OLLAMA,
]
