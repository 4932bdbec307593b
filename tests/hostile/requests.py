"""Hostile requests and connections, one row each."""

import base64
import functools
import gzip
import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Callable

from client import ATTACKER, CHAT, CLOSED, UNFINISHED, Answer, chat_body, get, head, read_answer, request, reset, send


@dataclass
class Row:
    """An attack: what each of its clients does, and what they may be answered."""

    name: str
    # Given the target, attacks it and returns the answers that must be among `expect`.
    attack: Callable
    # Clients that attack at the same time.
    clients: int = 1
    # Statuses, or None for every answer but 5xx (except 503).
    expect: set | None = None
    # With API keys (`keys`, default models) or without (`open`, a tiny model).
    server: str = "keys"
    # How long clients wait for an answer before they leave, in seconds. For long work they do not wait long.
    patience: float | None = None
    # Address that the attack comes from.
    source: str = "127.0.0.1"
    # If not zero, the attack is still going on, after this many seconds, while others are served.
    meanwhile: float = 0.0
    # Whether errors are in Ollama's form: a text in place of an object.
    error_is_text: bool = False

    def __post_init__(self):
        if self.patience is None:
            self.patience = 3.0 if UNFINISHED in (self.expect or ()) else 8.0


REFUSED = {400}
SERVED = {200, 429}
EITHER = {200, 400, 413, 429}
# Work that may take longer than the clients wait.
ANY = {200, 400, 413, 429, 503, UNFINISHED}
# What a connection may get that does not speak HTTP.
BROKEN = {400, 405, 408, 413, 414, 417, 431, 501, 505, CLOSED}

MB = 1 << 20


# --- What clients do


def post(path, body, **options):
    """Sends one request. `body` may be a function, so that large ones exist only where they are used: each row has
    a process of its own."""

    @functools.cache
    def data():
        return request(path, body() if callable(body) else body, **options)

    return lambda target: [target.exchange(data())]


def chat(content="hi", **fields):
    return post(CHAT, lambda: chat_body(content, **fields))


def lazy_chat(fields):
    return post(CHAT, lambda: chat_body(**fields()))


def raw(data):
    """Sends bytes and returns the first answer."""
    return lambda target: [target.exchange(data() if callable(data) else data)]


def each(attacks):
    """Attacks one after the other."""
    return lambda target: [answer for attack in attacks for answer in attack(target)]


def repeated(attack):
    """The attack again and again, as long as the row lasts."""

    def repeat(target):
        answers = []
        while not target.stop.is_set() and len(answers) < 10_000:
            answers += attack(target)
        return answers

    return repeat


def connections(n, first=b"", step=b"", pause=1.0):
    """Opens `n` connections, sends `first` on each, then `step` in every pause, and never reads."""

    def attack(target):
        open_ones = []
        try:
            for _ in range(n):
                try:
                    connection = target.connect(timeout=0.5)
                    connection.settimeout(0.2)
                    send(connection, first)
                    open_ones.append(connection)
                except OSError:
                    continue
                if target.stop.is_set():
                    return []
            while not target.stop.wait(pause):
                for connection in open_ones if step else []:
                    try:
                        connection.send(step)
                    except OSError:
                        pass
            return []
        finally:
            for connection in open_ones:
                connection.close()

    return attack


def leave(data, n, after=0.0, by_reset=False, half_close=False):
    """Sends bytes and leaves without reading the answer, `n` times."""

    def attack(target):
        for _ in range(n):
            try:
                connection = target.connect()
                send(connection, data() if callable(data) else data)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
                if after:
                    connection.settimeout(after)
                    try:
                        connection.recv(1024)
                    except TimeoutError:
                        pass
                reset(connection) if by_reset else connection.close()
            except OSError:
                pass
        return []

    return attack


def pipelined(data, n):
    """Sends `n` requests at once on one connection, and reads a little of the answers."""

    def attack(target):
        try:
            with target.connect() as connection:
                connection.settimeout(3)
                send(connection, data * n)
                return [read_answer(connection, time.monotonic() + target.patience)]
        except OSError:
            return [Answer(CLOSED)]

    return attack


# --- Bodies


def nested(depth, opening="[", closing="]"):
    return (opening * depth + closing * depth).encode()


def nested_schema(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


def field(text):
    """A chat with a field written out, for what Python's JSON would not write."""
    return b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":1,' + text + b"}"


def tool(name="f", **parameters):
    parameters = parameters or {"type": "object", "properties": {"x": {"type": "integer"}}}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


def chunked(chunks, path=CHAT):
    headers = [("content-type", "application/json"), ("transfer-encoding", "chunked")]
    return head("POST", path, headers) + chunks


def with_headers(*headers, method="GET", path="/v1/models", **options):
    return head(method, path, headers, **options)


def text_1_against_many():
    return {"text_1": "a" * 400_000, "text_2": ["b"] * 100_000}


def random_text(n):
    return base64.b64encode(os.urandom(n)).decode()


PRIMES = [999983, 999979, 999961, 999959, 999953, 999931, 999917, 999907, 999883, 999863, 999853, 999809]

EMBED, SCORE, RERANK, COMPLETE = "/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/completions"
ENCODER = {"model": "all-minilm-l6-v2"}

# --- Rows

# Copies that are quadratic in the body, and long work from small bodies.
TEXTS = [
    Row("score: a long text against 100,000", post(SCORE, text_1_against_many), expect={400, 413, 429}),
    Row("score: a long text against 100,000, by 4", post(SCORE, text_1_against_many), 4, {400, 413, 429}),
    Row(
        "score: 100,000 against a long text",
        post(SCORE, lambda: {"text_2": "a" * 400_000, "text_1": ["b"] * 100_000}),
        expect={400, 413, 429},
    ),
    Row(
        "score: a long text against 2,048",
        post(SCORE, lambda: {"text_1": "a " * 400_000, "text_2": ["b"] * 2048}),
        expect={400, 429},
    ),
    Row(
        "score: a long text against 2,048, truncated, by 4",
        post(SCORE, lambda: {"text_1": "a " * 400_000, "text_2": ["b"] * 2048, "truncate": True}),
        4,
        ANY,
    ),
    Row("score: 100,000 pairs", post(SCORE, {"text_1": ["a"] * 100_000, "text_2": ["b"] * 100_000}), expect={400}),
    Row(
        "rerank: a query of 500 kB and 2,048 documents, by 4",
        post(RERANK, lambda: {"query": "a " * 250_000, "documents": ["b " * 120] * 2048, "truncate": True}),
        4,
        ANY,
    ),
    Row("rerank: 300,000 empty documents", post(RERANK, {"query": "a", "documents": [""] * 300_000}), expect={400}),
    Row(
        "rerank: documents that are returned, by 8",
        post(RERANK, lambda: {"query": "a", "documents": ["é" * 400] * 2048, "return_documents": True}),
        8,
        ANY,
    ),
    Row("rerank: top_n of 2^63", post(RERANK, {"query": "a", "documents": ["b"], "top_n": 1 << 63}), expect=EITHER),
    Row(
        "embeddings: 2,048 long texts, by 8",
        post(EMBED, lambda: {"input": [f"{i} " + "word " * 180 for i in range(2048)], "truncate": True}),
        8,
        ANY,
    ),
    Row(
        "embeddings: 2,048 long texts, by clients that leave",
        leave(
            lambda: request(EMBED, {"input": [random_text(3) + " word" * 160 for _ in range(2048)], "truncate": True}),
            3,
            after=0.3,
        ),
        4,
        ANY,
    ),
    Row("embeddings: 2,048 times one letter, by 8", post(EMBED, {"input": ["a"] * 2048}), 8, ANY),
    Row("embeddings: one text of 1.9 MB", post(EMBED, lambda: {"input": "a b" * 630_000}), 4, {400, 429}),
    Row(
        "embeddings: one text of 1.9 MB, truncated",
        post(EMBED, lambda: {"input": "a b" * 630_000, "truncate": True}),
        8,
        ANY,
    ),
    Row("embeddings: a word of 1.9 MB", post(EMBED, lambda: {"input": "a" * 1_900_000, "truncate": True}), 8, ANY),
    Row("embeddings: accents without a letter", post(EMBED, lambda: {"input": "\u0301" * 600_000}), 4, ANY),
    Row("embeddings: 900,000 token ids", post(EMBED, lambda: {"input": [7] * 900_000}), 4, {400, 429}),
    Row("embeddings: 300,000 lists of ids", post(EMBED, lambda: {"input": [[7]] * 300_000}), 4, {400, 429}),
    Row("embeddings: ids out of range", post(EMBED, {"input": [[4294967295], [30_522]]}), expect=REFUSED),
    Row(
        "embeddings: numbers that are no ids",
        each([post(EMBED, {"input": [value]}) for value in (-1, 1 << 32, 1 << 64, 1.5, True, None, {}, [])]),
        expect=REFUSED,
    ),
    Row(
        "embeddings: dimensions out of range",
        each([post(EMBED, {"input": "a", "dimensions": n}) for n in (0, -1, 385, 1 << 31, 1 << 63, 1 << 64)]),
        expect=REFUSED,
    ),
    Row(
        "embeddings: dimensions out of range, forced",
        each(
            [post(EMBED, {"input": "a", "dimensions": n, "force_dimensions": True}) for n in (0, 385, 1 << 40, 1 << 63)]
        ),
        expect=REFUSED,
    ),
    Row("embeddings: nothing", each([post(EMBED, {"input": x}) for x in ([], [[]], [""], "", ["", 1])]), expect=EITHER),
    Row("embeddings: a prompt's name of 1 MB", post(EMBED, {"input": "a", "prompt_name": "x" * MB}), expect=EITHER),
]

# Grammars that are small to write and large to compile or to apply.
GRAMMAR_FIELDS = {
    "multipleOf of 7 digits": {"guided_json": {"type": "integer", "multipleOf": 9999991}},
    "multipleOf of 15 digits": {"guided_json": {"type": "integer", "multipleOf": 999999999999989}},
    "multipleOf with many decimals": {"guided_json": {"type": "number", "multipleOf": 0.000000123457}},
    "multipleOf near zero": {"guided_json": {"type": "number", "multipleOf": 1e-300}},
    "multipleOf of 1e300": {"guided_json": {"type": "number", "multipleOf": 1e300}},
    "multipleOf of zero": {"guided_json": {"type": "integer", "multipleOf": 0}},
    "a negative multipleOf": {"guided_json": {"type": "integer", "multipleOf": -7}},
    "a product of multipleOf": {"guided_json": {"allOf": [{"type": "integer", "multipleOf": p} for p in PRIMES]}},
    "a sum of multipleOf": {"guided_json": {"anyOf": [{"type": "integer", "multipleOf": p} for p in PRIMES]}},
    "100 different multipleOf": {
        "guided_json": {
            "type": "object",
            "properties": {f"k{i}": {"type": "integer", "multipleOf": 997 + i} for i in range(100)},
        }
    },
    "bounds of 300 digits": {"guided_json": {"type": "number", "minimum": 1.7e-308, "maximum": 1.7e308}},
    "integer bounds of 18 digits": {"guided_json": {"type": "integer", "minimum": -(10**18), "maximum": 10**18 - 7}},
    "a length of 10^9": {"guided_json": {"type": "string", "minLength": 10**9}},
    "a length of at most 10^9": {"guided_json": {"type": "string", "maxLength": 10**9}},
    "a length of 2^64": {"guided_json": {"type": "string", "minLength": 1 << 64}},
    "10^9 items": {"guided_json": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}},
    "10^6 strings of 10^6": {
        "guided_json": {"type": "array", "minItems": 10**6, "items": {"type": "string", "minLength": 10**6}}
    },
    "10^9 properties": {"guided_json": {"type": "object", "minProperties": 10**9}},
    "5,000 prefix items": {"guided_json": {"type": "array", "prefixItems": [{"type": "string"}] * 5000}},
    "a pattern of nested repetitions": {"guided_json": {"type": "string", "pattern": "^(((a{1,99}){1,99}){1,99})$"}},
    "2,000 optional properties": {
        "guided_json": {"type": "object", "properties": {f"key{i}": {"type": "string"} for i in range(2000)}}
    },
    "required properties without a type": {"guided_json": {"required": [f"k{i}" for i in range(5000)]}},
    "200 pattern properties": {
        "guided_json": {"type": "object", "patternProperties": {f"^a{{{i}}}.*b": {} for i in range(1, 200)}}
    },
    "an enum of 8,000": {"guided_json": {"enum": [f"value {i} of many" for i in range(8000)]}},
    "an enum of long strings": {"guided_json": {"enum": ["a" * 2000 + str(i) for i in range(20)]}},
    "a constant of 1 MB": {"guided_json": {"const": "a" * MB}},
    "a chain of 4,000 references": {
        "guided_json": {
            "$ref": "#/$defs/d0",
            "$defs": {**{f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(4000)}, "d4000": {"type": "integer"}},
        }
    },
    "a reference to itself": {"guided_json": {"$ref": "#"}},
    "references in a circle": {
        "guided_json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    },
    "references that double 40 times": {
        "guided_json": {
            "$ref": "#/$defs/d0",
            "$defs": {
                **{
                    f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2, "minItems": 2}
                    for i in range(40)
                },
                "d40": {"type": "integer"},
            },
        }
    },
    "allOf over anyOf": {
        "guided_json": {
            "allOf": [
                {"anyOf": [{"properties": {f"p{i}_{j}": {"type": "integer"}}} for j in range(8)]} for i in range(12)
            ]
        }
    },
    "oneOf over oneOf": {
        "guided_json": {"allOf": [{"oneOf": [{"const": i}, {"type": "string"}, {"type": "null"}]} for i in range(14)]}
    },
    "an intersection of patterns": {
        "guided_json": {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(4, 18)]}
    },
    "a pattern that is exponential when determinized": {"guided_regex": "(a|b)*a(a|b){40}"},
    "two of them in one": {"guided_regex": "((a|b)*a(a|b){25}|(c|d)*c(c|d){25}|(e|f)*e(e|f){25}){3}"},
    "26,000 optional letters": {"guided_regex": "[ab]?" * 26000},
    "5,000 optional letters": {"guided_regex": "[ab]?" * 5000},
    "100,000 letters": {"guided_regex": "a" * 100_000},
    "5,000 classes of Unicode": {"guided_regex": r"\p{L}" * 5000},
    "repeated classes of Unicode": {"guided_regex": r"(\p{L}{1,100}\p{N}{1,100}){1,50}"},
    "optional classes of Unicode": {"guided_regex": r"(\w?\s?\p{Lu}?\p{Greek}?){800}"},
    "any character 100,000 times": {"guided_regex": ".{0,100000}"},
    "nested repetitions": {"guided_regex": "((a{0,200}){0,200}){0,200}"},
    "nested stars": {"guided_regex": "(((((a*)*)*)*)*)*b"},
    "case folding of everything": {"guided_regex": r"(?i)(\p{L}|straße|[a-zà-ÿ])" * 500},
    "20,000 nested groups": {"guided_regex": "(" * 20_000 + "a" + ")" * 20_000},
    "10,000 alternatives": {"guided_regex": "|".join(f"w{i}x{i * 7}" for i in range(10_000))},
    "look-around and back references": {"guided_regex": r"(?=a)(a)\1"},
    "an unfinished class": {"guided_regex": "[" * 1000},
    "20,000 choices": {"guided_choice": [f"choice number {i}" for i in range(4000)]},
    "100,000 choices": {"guided_choice": ["a"] * 100_000},
    "a choice of nothing": {"guided_choice": ["", ""]},
    "an ambiguous grammar": {"grammar": 'start: start start | "a" | "aa" | "a"'},
    "an exponential grammar": {
        "grammar": "start: a a a a a a a a\na: " + " | ".join(["b a", "a b", '""']) + '\nb: "x" | "xx" | a'
    },
    "a grammar without an end": {"grammar": 'start: "a" start'},
    "a grammar of 4,000 rules": {
        "grammar": "start: r0\n" + "\n".join(f'r{i}: "{i}" r{i + 1} | r{i + 1}' for i in range(4000)) + '\nr4000: "x"'
    },
    "4,000 lexemes at once": {
        "grammar": "start: "
        + " | ".join(f"T{i}" for i in range(4000))
        + "\n"
        + "\n".join(f"T{i}: /x[0-9]*y{i}/" for i in range(4000))
    },
    "a grammar of nothing but empty rules": {"grammar": "start: a a a a\na: b b b b |\nb: a a a a |"},
    "a repetition in a grammar": {"grammar": 'start: ("a" | "a" "b"?)~0..100000'},
    "repetitions of repetitions in a grammar": {"grammar": 'start: x~1..1000\nx: y~1..1000\ny: z~1..1000\nz: "a"'},
    "an import in a grammar": {"grammar": "%import /etc/passwd\nstart: WORD"},
    "JSON in a grammar": {"grammar": 'start: %json {"type": "integer", "multipleOf": 9999991}'},
    "a grammar of 1 MB": {"grammar": 'start: "a"\n' + "// comment\n" * 90_000},
    "an unknown format": {"guided_json": {"type": "string", "format": "x" * 100_000}},
    "a schema that is not one": {"guided_json": '{"type": ["object", 1, null, {"a": []}]}'},
    "a schema in text, deep": {"guided_json": '{"items":' * 5000 + "{}" + "}" * 5000},
    "a schema of 60 levels": {"guided_json": nested_schema(28)},
    "a response format with everything": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": nested_schema(27)}}
    },
    "a response format's name of 1 MB": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x" * MB, "schema": {}}}
    },
    "an unknown response format": {"response_format": {"type": "x" * MB}},
    "not": {"guided_json": {"not": {"not": {"not": {"type": "integer"}}}}},
}
GRAMMARS = [
    Row(f"grammar: {name}", chat(**{"max_tokens": 4, **fields}), expect={200, 400, 429, 503})
    for name, fields in GRAMMAR_FIELDS.items()
]
GRAMMARS += [
    Row(f"grammar: {name}, by {n}", chat(max_tokens=8, **GRAMMAR_FIELDS[name]), n, ANY)
    for name, n in [
        ("multipleOf of 7 digits", 4),
        ("26,000 optional letters", 4),
        ("optional classes of Unicode", 4),
        ("a pattern that is exponential when determinized", 8),
        ("an exponential grammar", 8),
        ("an enum of 8,000", 16),
    ]
]
GRAMMARS += [
    Row(
        f"grammar: {name}, by clients that leave",
        leave(lambda name=name: request(CHAT, chat_body(**GRAMMAR_FIELDS[name])), 3, after=0.1),
        4,
        set(),
    )
    for name in ("multipleOf of 7 digits", "26,000 optional letters", "100 different multipleOf")
]
GRAMMARS += [
    Row(
        "grammar: 40 different ones that are hard to compile",
        lambda target: [
            target.exchange(request(CHAT, chat_body(guided_regex=f"(a|b|{i})*a(a|b){{{9 + i % 5}}}")))
            for i in range(40)
        ],
        2,
        {200, 400, 429, 503},
    ),
    Row(
        "grammar: compiling beside a neighbor's chat",
        repeated(chat(max_tokens=2, guided_json={"type": "integer", "multipleOf": 9999991})),
        4,
        ANY,
        meanwhile=1.0,
        patience=3,
    ),
    Row(
        "grammar: ambiguous ones beside a neighbor's chat",
        repeated(chat(max_tokens=40, **GRAMMAR_FIELDS["an ambiguous grammar"])),
        4,
        ANY,
        meanwhile=1.0,
        patience=3,
    ),
    Row(
        "grammar: in the stream of 8 choices",
        chat(max_tokens=100, n=8, stream=True, guided_regex="(a|aa|aaa|.)*"),
        4,
        ANY,
    ),
]

# Tokens: long texts through the tokenizers, many ids back.
LONG_TEXTS = {
    "one letter": "a" * 1_900_000,
    "spaces": " " * 1_900_000,
    "digits": "7" * 1_900_000,
    "line breaks": "\n" * 900_000,
    "words": "word " * 380_000,
    "apostrophes": "'" * 1_900_000,
    "combining accents": "e" + "\u0301" * 300_000,
    "emoji": "\U0001f468\u200d\U0001f469" * 70_000,
    "special tokens": "<|im_start|>" * 150_000,
    "beginnings of special tokens": "<|im_" * 380_000,
    "code points of four bytes": "\U0010ffff" * 160_000,
    "mixed scripts": "aé日ж1 \t" * 80_000,
}
TOKENS = [
    Row(f"tokenize: 2 MB of {name}", post("/tokenize", lambda text=text: {"prompt": text}), 4, ANY)
    for name, text in LONG_TEXTS.items()
]
TOKENS += [
    Row(
        f"tokenize: 2 MB of {name}, by the encoder",
        post("/tokenize", lambda text=text: {"prompt": text, **ENCODER}),
        4,
        ANY,
    )
    for name, text in LONG_TEXTS.items()
    if name in ("one letter", "combining accents", "mixed scripts", "code points of four bytes")
]
TOKENS += [
    Row(
        "tokenize: 24 times 2 MB beside a neighbor's chat",
        repeated(post("/tokenize", lambda: {"prompt": LONG_TEXTS["mixed scripts"], "return_token_strs": True})),
        24,
        ANY,
        meanwhile=1.5,
        patience=5,
    ),
    Row(
        "prompts: 24 times 2 MB beside a neighbor's chat",
        repeated(chat(LONG_TEXTS["mixed scripts"])),
        24,
        ANY,
        meanwhile=1.5,
        patience=5,
    ),
    Row(
        "embeddings: 24 times 2 MB beside a neighbor's chat",
        repeated(post(EMBED, lambda: {"input": LONG_TEXTS["mixed scripts"], "truncate": True})),
        24,
        ANY,
        meanwhile=1.5,
        patience=5,
    ),
    Row(
        "bodies: 24 times 4 MB, which is too long, beside a neighbor's chat",
        repeated(chat("a" * 4_000_000)),
        24,
        {413},
        meanwhile=1.5,
    ),
    Row(
        "detokenize: beside a neighbor's chat",
        repeated(post("/detokenize", lambda: {"tokens": [7] * 900_000})),
        24,
        ANY,
        meanwhile=1.5,
        patience=5,
    ),
    Row(
        "tokenize: texts of tokens", post("/tokenize", {"prompt": "a b " * 400_000, "return_token_strs": True}), 4, ANY
    ),
    Row(
        "tokenize: 50,000 messages", post("/tokenize", {"messages": [{"role": "user", "content": ""}] * 50_000}), 4, ANY
    ),
    Row("tokenize: neither text nor messages", post("/tokenize", {}), expect=REFUSED),
    Row("detokenize: 900,000 ids", post("/detokenize", {"tokens": [7] * 900_000}), 8, ANY),
    Row("detokenize: ids out of range", post("/detokenize", {"tokens": [4294967295, 49_152] * 1000}), expect=REFUSED),
    Row(
        "detokenize: numbers that are no ids",
        each([post("/detokenize", {"tokens": [value]}) for value in (-1, 1 << 32, 1 << 64, 0.5, "a", None)]),
        expect=REFUSED,
    ),
    Row("prompt: 1.9 MB", chat(LONG_TEXTS["words"]), 8, {400, 429}),
    Row("prompt: a letter 1.9 million times", chat(LONG_TEXTS["one letter"]), 8, {400, 429, UNFINISHED}),
    Row("prompt: 2 MB of special tokens", chat(LONG_TEXTS["special tokens"]), 8, {400, 429, UNFINISHED}),
    Row(
        "prompt: 2 MB, truncated to 2^62 tokens",
        chat(LONG_TEXTS["words"], truncate_prompt_tokens=1 << 62),
        4,
        {200, 400, 429, UNFINISHED},
    ),
    Row("prompt: 2 MB, truncated", chat(LONG_TEXTS["words"], truncate_prompt_tokens=8), 4, {200, 429, UNFINISHED}),
    Row(
        "prompt: 50,000 messages",
        post(CHAT, {"messages": [{"role": "user", "content": "x"}] * 50_000}),
        4,
        {400, 429, UNFINISHED},
    ),
    Row(
        "prompt: 60,000 parts",
        post(
            CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 60_000}], "max_tokens": 1}
        ),
        4,
        EITHER,
    ),
    Row("prompt: 900,000 ids", post(COMPLETE, {"prompt": [7] * 900_000}), 8, {400, 429}),
    Row("prompt: 300,000 lists of ids", post(COMPLETE, {"prompt": [[7]] * 300_000}), 4, {400, 429}),
    Row("prompt: 65 texts", post(COMPLETE, {"prompt": ["a"] * 65, "max_tokens": 1}), expect=REFUSED),
    Row("prompt: 64 texts", post(COMPLETE, {"prompt": ["a"] * 64, "max_tokens": 1}), 4, ANY),
    Row(
        "prompt: ids out of range",
        each([post(COMPLETE, {"prompt": p, "max_tokens": 1}) for p in ([49_152], [[4294967295]], [-1], [1 << 40])]),
        expect=REFUSED,
    ),
    Row(
        "prompt: nothing",
        each([post(COMPLETE, {"prompt": p, "max_tokens": 1}) for p in ([], [[]], [""], "", None, {}, 1)]),
        expect=EITHER,
    ),
    Row("prompt: a suffix of 1 MB", post(COMPLETE, {"prompt": "a", "suffix": "b" * MB, "max_tokens": 1}), 4, EITHER),
    Row(
        "prompt: echoed 64 times",
        post(COMPLETE, {"prompt": ["word " * 1500] * 64, "echo": True, "max_tokens": 1}),
        4,
        ANY,
    ),
]

# JSON and its values.
VALUES = [
    Row("JSON: a million brackets", post(CHAT, lambda: nested(1_000_000)), 4, REFUSED),
    Row("JSON: 300,000 objects", post(CHAT, lambda: nested(300_000, '{"a":', "}")), 4, REFUSED),
    Row("JSON: brackets in an unknown field", post(CHAT, field(b'"x":' + nested(500_000))), expect=REFUSED),
    Row("JSON: 120 levels of braces", post(CHAT, field(b'"x":' + b'{"a":' * 120 + b"1" + b"}" * 120)), expect=REFUSED),
    Row("JSON: 100,000 equal keys", post(CHAT, field(b",".join([b'"x":1'] * 100_000))), expect=EITHER),
    Row("JSON: messages twice", post(CHAT, field(b'"messages":[]')), expect=EITHER),
    Row("JSON: 100,000 unknown keys", post(CHAT, field(b",".join(b'"k%d":1' % i for i in range(100_000)))), 4, EITHER),
    Row("JSON: a key of 1 MB", post(CHAT, field(b'"' + b"k" * MB + b'":1')), expect=EITHER),
    Row(
        "JSON: numbers out of range",
        each(
            [
                post(CHAT, field(b'"%s":%s' % (name, number)))
                for name in (b"temperature", b"seed", b"max_tokens", b"n", b"top_p", b"x", b"min_tokens")
                for number in (
                    b"1e400",
                    b"-1e400",
                    b"-0",
                    b"1e-400",
                    b"9" * 5000,
                    b"0." + b"3" * 5000,
                    b"NaN",
                    b"Infinity",
                )
            ]
        ),
        expect=EITHER,
    ),
    Row("JSON: a number of 1 MB", post(CHAT, field(b'"seed":' + b"7" * MB)), expect=REFUSED),
    Row(
        "JSON: surrogates",
        each(
            [
                post(CHAT, b'{"messages":[{"role":"user","content":"%s"}],"max_tokens":1}' % text)
                for text in (b"\\ud800", b"\\udc00\\ud800", b"\\ud83d\\ud83d", b"\\ud800\\u0000", b"\\uD83D\\uDE00")
            ]
        ),
        expect=EITHER,
    ),
    Row(
        "JSON: bytes that are no UTF-8",
        each(
            [
                post(CHAT, b'{"messages":[{"role":"user","content":"%s"}],"max_tokens":1}' % text)
                for text in (
                    b"\xff\xfe",
                    b"\xc0\x80",
                    b"\xed\xa0\x80",
                    b"\xf8\x88\x80\x80\x80",
                    b"\x00",
                    b"\n",
                    b"\x1b[2J",
                )
            ]
        ),
        expect=REFUSED,
    ),
    Row("JSON: NUL in a text", chat("a\x00b" * 100), expect={200}),
    Row("JSON: control characters in a text", chat("\x1b[2J\u202e\u2066\ufeff\ufffe" * 30), expect={200}),
    Row(
        "JSON: no object",
        each(
            [post(CHAT, body) for body in (b"", b"null", b"[]", b'"x"', b"1", b"{", b"}", b"{}{}", b"\xef\xbb\xbf{}")]
        ),
        expect=REFUSED,
    ),
    Row("JSON: 1.9 MB of spaces", post(CHAT, b" " * 1_900_000 + b"{}"), 4, REFUSED),
    Row("JSON: UTF-16", post(CHAT, json.dumps(chat_body()).encode("utf-16")), expect=REFUSED),
    Row("JSON: escapes", post(CHAT, field(b'"user":"' + b"\\u0000" * 300_000 + b'"')), 4, EITHER),
    Row(
        "model: names that are paths",
        each(
            [
                chat(model=name)
                for name in (
                    "../../etc/passwd",
                    "/etc/passwd",
                    "hf:a/b",
                    "pypi:x==1/y",
                    "a\x00b",
                    "a\nb",
                    "\x1b[31m",
                    "",
                    " ",
                    "x" * 100_000,
                )
            ]
        ),
        expect={200, 400, 404},
    ),
    Row("model: no string", each([chat(model=m) for m in (1, [], {}, True, [["a"]])]), expect=REFUSED),
    Row(
        "parameters: counts out of range",
        each(
            [
                chat(**{name: value})
                for name in ("n", "max_tokens", "max_completion_tokens", "top_logprobs", "best_of")
                for value in (-1, 0, 1 << 31, 1 << 63, 1 << 64, -(1 << 63), 1.5, "1", [1], 1e308)
            ]
        ),
        # `best_of` is unknown to chat, and huge limits mean none.
        expect={200, 400, UNFINISHED},
        patience=0.4,
    ),
    Row("parameters: n of 17 and of 10^9", each([chat(n=17), chat(n=10**9)]), expect=REFUSED),
    Row("parameters: n of 8, by 16", chat(n=8, max_tokens=40), 16, ANY),
    Row(
        "parameters: min_tokens of 2^62",
        chat(min_tokens=1 << 62, max_tokens=1 << 62, ignore_eos=True),
        4,
        ANY,
        patience=2,
    ),
    Row("parameters: a bias for 100,000 tokens", chat(logit_bias={str(i): -100 for i in range(100_000)}), 4, EITHER),
    Row("parameters: a bias for all tokens", chat(logit_bias={str(i): -100 for i in range(49_152)}), 4, EITHER),
    Row(
        "parameters: biases for no tokens",
        each([chat(logit_bias={k: 1}) for k in ("99999999999999999999", "-1", "abc", "", "1e3", "4294967296", " 1")]),
        expect=EITHER,
    ),
    Row(
        "parameters: biases out of range",
        each([post(CHAT, field(b'"logit_bias":{"1":%s}' % v)) for v in (b"1e400", b"101", b"-1e308", b'"1"', b"null")]),
        expect=EITHER,
    ),
    Row(
        "parameters: stop strings",
        each(
            [
                chat(stop=stop)
                for stop in ("", [""], ["a"] * 5, ["a"] * 100_000, "a" * 1025, "a" * MB, [1], {}, ["a" * 1024] * 4)
            ]
        ),
        expect=EITHER,
    ),
    Row(
        "parameters: stop strings at work", chat(max_tokens=200, stop=["a" * 1023 + "b"] * 4), 4, {200, 429, UNFINISHED}
    ),
    Row("parameters: 100,000 stop tokens", chat(stop_token_ids=[7] * 100_000), expect=REFUSED),
    Row(
        "parameters: floats out of range",
        each(
            [
                post(CHAT, field(b'"%s":%s' % (name, value)))
                for name in (
                    b"temperature",
                    b"top_p",
                    b"min_p",
                    b"presence_penalty",
                    b"repeat_penalty",
                    b"frequency_penalty",
                )
                for value in (b"1e308", b"-1e308", b"-1", b"3e38", b"1e-320", b'"1"', b"[]")
            ]
        ),
        expect=EITHER,
    ),
    Row(
        "parameters: integers at their ends",
        each(
            [
                chat(**{name: value})
                for name in ("seed", "top_k", "repeat_last_n", "truncate_prompt_tokens")
                for value in ((1 << 63) - 1, -(1 << 63), 1 << 63, -2, 0, 1 << 31)
            ]
        ),
        expect=EITHER,
    ),
    Row("parameters: 20 likely tokens of many", chat(max_tokens=60, n=8, logprobs=True, top_logprobs=20), 4, ANY),
    Row("parameters: a prediction of 1.9 MB", chat(prediction={"type": "content", "content": "a b" * 600_000}), 4, ANY),
    Row("parameters: a salt of 1 MB", chat(cache_salt="s" * MB), 4, REFUSED),
    Row(
        "parameters: 20 salts",
        lambda target: [
            target.exchange(request(CHAT, chat_body("w " * 400, cache_salt=f"salt {i}"))) for i in range(20)
        ],
        expect=SERVED,
    ),
    Row("parameters: a user of 1.9 MB", chat(user="u" * 1_900_000), 4, EITHER),
    Row(
        "parameters: template variables",
        each(
            [
                lazy_chat(lambda kwargs=kwargs: {"chat_template_kwargs": kwargs})
                for kwargs in (
                    {f"k{i}": i for i in range(60_000)},
                    {
                        "messages": "x",
                        "tools": 1,
                        "bos_token": "\x00",
                        "raise_exception": 1,
                        "namespace": 2,
                        "range": 3,
                    },
                    {"add_generation_prompt": "x" * MB},
                    {"a": "{{ 1/0 }}", "enable_thinking": [[[[]]]]},
                )
            ]
        ),
        expect=EITHER,
    ),
    Row("parameters: stream options without a stream", chat(stream_options={"include_usage": True}), expect=REFUSED),
    Row(
        "parameters: wrong types",
        each(
            [
                chat(**{name: value})
                for name in (
                    "stream",
                    "stop",
                    "tools",
                    "tool_choice",
                    "response_format",
                    "stream_options",
                    "logit_bias",
                )
                for value in (0, "x", [[]], {"type": {}}, -1.5)
            ]
        ),
        expect=EITHER,
    ),
]


def messages(*some):
    return post(CHAT, {"messages": list(some), "max_tokens": 1})


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def called(arguments, name="f"):
    call = {**CALL, "function": {"name": name, "arguments": arguments}}
    return messages(
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "r"},
    )


MESSAGES = [
    Row("messages: none", post(CHAT, {"messages": []}), expect=REFUSED),
    Row(
        "messages: no messages",
        each([post(CHAT, {"messages": m}) for m in (None, {}, "x", [1], [[]], [{}], [None], [{"role": 1}])]),
        expect=REFUSED,
    ),
    Row("messages: a role of 1.9 MB", messages({"role": "r" * 1_900_000, "content": "x"}), expect=REFUSED),
    Row("messages: a name of 1.9 MB", messages({"role": "user", "name": "n" * 1_900_000, "content": "x"}), 4, EITHER),
    Row(
        "messages: parts that are no text",
        each(
            [
                messages({"role": "user", "content": [part]})
                for part in (
                    {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
                    {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * MB}},
                    {"type": "input_audio", "input_audio": {"data": "A" * MB, "format": "wav"}},
                    {"type": "file", "file": {"file_id": "../../x"}},
                    {"type": "x" * 100_000},
                    {"type": "text"},
                    {"text": "x"},
                    {},
                    1,
                    None,
                )
            ]
        ),
        expect=REFUSED,
    ),
    Row("messages: null content", messages({"role": "user", "content": None}), expect=REFUSED),
    Row("messages: only a system message", messages({"role": "system", "content": "x"}), expect=EITHER),
    Row("messages: only assistants", messages(*[{"role": "assistant", "content": "x"}] * 30), expect=EITHER),
    Row(
        "messages: calls with broken arguments",
        each(
            [
                called(a)
                for a in (
                    "{",
                    "",
                    "null",
                    "[1]",
                    '{"a":' * 5000,
                    "\x00",
                    '{"a":1e999}',
                    '{"a":"\\ud800"}',
                    "{" * 100_000,
                    "NaN",
                )
            ]
        ),
        expect=EITHER,
    ),
    Row(
        "messages: calls with broken names",
        each([called("{}", n) for n in ("", "f" * MB, "a b", "\x00", "é")]),
        expect=EITHER,
    ),
    Row(
        "messages: a result without a call",
        messages({"role": "tool", "tool_call_id": "x", "content": "r"}),
        expect=REFUSED,
    ),
    Row(
        "messages: a call without a result",
        messages({"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [CALL]}),
        expect=REFUSED,
    ),
    Row(
        "messages: 8,000 calls",
        post(
            CHAT,
            lambda: {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "tool_calls": [{**CALL, "id": f"c{i}"} for i in range(8000)]},
                    *[{"role": "tool", "tool_call_id": f"c{i}", "content": "r"} for i in range(8000)],
                ]
            },
        ),
        4,
        ANY,
    ),
    Row(
        "messages: 12,000 calls with one id",
        post(
            CHAT,
            lambda: {
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [CALL] * 12_000}]
            },
        ),
        4,
        ANY,
    ),
    Row("tools: 129", chat(tools=[tool(f"f{i}") for i in range(129)]), expect=REFUSED),
    Row("tools: 15,000", chat(tools=[tool(f"f{i}") for i in range(15_000)]), expect=REFUSED),
    Row(
        "tools: 128 that must be called",
        chat(tools=[tool(f"f{i}") for i in range(128)], tool_choice="required"),
        4,
        ANY,
    ),
    Row(
        "tools: 128 with large schemas that must be called",
        lazy_chat(
            lambda: {
                "tools": [
                    tool(
                        f"f{i}",
                        type="object",
                        properties={f"p{i}_{j}": {"enum": [f"{i} {j} {k}" for k in range(20)]} for j in range(20)},
                    )
                    for i in range(128)
                ],
                "tool_choice": "required",
            }
        ),
        4,
        ANY,
    ),
    Row("tools: all of one name", chat(tools=[tool()] * 128), expect=EITHER),
    Row("tools: a deep schema", chat(tools=[tool(**nested_schema(25))], tool_choice="required"), 4, ANY),
    Row(
        "tools: schemas that are none",
        each(
            [
                chat(tools=[{"type": "function", "function": {"name": "f", "parameters": p}}], tool_choice="required")
                for p in (
                    1,
                    "x",
                    [],
                    {"type": 1},
                    {"$ref": "http://127.0.0.1:1/x"},
                    {"type": "integer", "multipleOf": 9999991},
                    True,
                )
            ]
        ),
        expect={200, 400, 429, 503},
    ),
    Row(
        "tools: a description of 1.9 MB",
        chat(tools=[{"type": "function", "function": {"name": "f", "description": "d " * 900_000}}]),
        4,
        ANY,
    ),
    Row(
        "tools: strict ones that are hard to compile",
        lazy_chat(
            lambda: {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "strict": True,
                            "parameters": {
                                "type": "object",
                                "properties": {"a": {"type": "string", "pattern": "(a|b)*a(a|b){40}"}},
                            },
                        },
                    }
                ],
                "tool_choice": "required",
                "max_tokens": 40,
            }
        ),
        4,
        ANY,
    ),
    Row(
        "tools: a choice that does not exist",
        chat(tools=[tool()], tool_choice={"type": "function", "function": {"name": "g" * MB}}),
        expect=REFUSED,
    ),
    Row(
        "tools: a choice of 60,000",
        chat(
            tools=[tool()],
            tool_choice={
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}] * 30_000},
            },
        ),
        expect=EITHER,
    ),
]

# Heads and framing.
SMALL = json.dumps(chat_body()).encode()
HTTP = [
    Row("head: a value of 390 kB", raw(with_headers(("x", "v" * 390_000))), 8, {200, *BROKEN}),
    Row("head: a value of 4 MB", raw(with_headers(("x", "v" * 4 * MB))), 4, BROKEN),
    Row("head: 90 values of 4 kB", raw(with_headers(*[(f"x{i}", "v" * 4000) for i in range(90)])), 8, {200, *BROKEN}),
    Row("head: 20,000 headers", raw(with_headers(*[(f"x{i}", "v") for i in range(20_000)])), 4, BROKEN),
    Row("head: 200 cookies", raw(with_headers(*[("cookie", "v")] * 200)), 4, {200, *BROKEN}),
    Row("head: two hosts", raw(with_headers(("host", "evil.example"))), expect={400}),
    Row("head: two equal hosts", raw(with_headers(("host", "localhost"))), expect={400}),
    Row("head: no host", raw(with_headers(host=None)), expect={400}),
    Row(
        "head: hosts that are none",
        each([raw(with_headers(host=h)) for h in ("", "a b", "a/b", "u@h", "[::1", "\x7f")]),
        expect={200, 400, 403, 421},
    ),
    Row("head: a path of 60 kB", raw(get("/v1/models/" + "a" * 60_000)), 8, {404, 414}),
    Row("head: a path of 1 MB", raw(get("/" + "a" * MB)), 4, BROKEN),
    Row("head: a query of 60 kB", raw(get("/v1/models?" + "a=b&" * 15_000)), 8, {200, 414}),
    Row("routes: 300 unknown ones", each([raw(get(f"/{'x' * 3000}/{i}")) for i in range(300)]), expect={404}),
    Row(
        "routes: tricks with percent signs",
        each(
            [
                raw(get("/v1/models/" + path))
                for path in (
                    "%00",
                    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
                    "%ff",
                    "%",
                    "%zz",
                    "%2F" * 5000,
                    "..",
                    "../../health",
                    "%0d%0aX:1",
                    "a%20b",
                    "%E2%80%AE",
                    "//",
                    "?",
                    "%c0%ae",
                )
            ]
        ),
        expect={200, 400, 404},
    ),
    Row(
        "methods",
        each(
            [
                raw(with_headers(("content-length", "0"), method=m, path=p))
                for m in ("HEAD", "OPTIONS", "TRACE", "CONNECT", "PRI", "get", "X" * 1000, "DELETE", "PUT", "PATCH")
                for p in ("/v1/models", CHAT, "/livez", "/x")
            ]
        ),
        expect={200, 204, 400, 403, 404, 405, CLOSED, UNFINISHED},
        patience=1.0,
    ),
    Row(
        "targets of other forms",
        each(
            [
                raw(b"%s HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer sk-attacker\r\n\r\n" % line)
                for line in (
                    b"GET *",
                    b"OPTIONS *",
                    b"GET http://evil.example/v1/models",
                    b"CONNECT evil.example:443",
                    b"GET //v1/models",
                    b"GET v1",
                    b"GET /\x00",
                    b"GET /\xff\xfe",
                    b"GET /a b",
                )
            ]
        ),
        expect={200, 204, 400, 403, 404, 405, 421, CLOSED},
        patience=2,
    ),
    Row(
        "versions",
        each(
            [
                raw(b"GET /livez%s\r\nhost: localhost\r\n\r\n" % v)
                for v in (b"", b" HTTP/0.9", b" HTTP/1.0", b" HTTP/1.2", b" HTTP/2.0", b" HTTP/9.9", b" http/1.1")
            ]
        ),
        expect={200, 400, 505, CLOSED},
    ),
    Row(
        "smuggling: a length and chunks",
        raw(
            with_headers(
                ("content-type", "application/json"),
                ("content-length", "5"),
                ("transfer-encoding", "chunked"),
                method="POST",
                path=CHAT,
            )
            + b"0\r\n\r\nGET /v1/models HTTP/1.1\r\n\r\n"
        ),
        expect=BROKEN,
    ),
    Row(
        "smuggling: two lengths",
        raw(
            with_headers(
                ("content-type", "application/json"),
                ("content-length", "5"),
                ("content-length", str(len(SMALL))),
                method="POST",
                path=CHAT,
            )
            + SMALL
        ),
        expect=BROKEN,
    ),
    Row(
        "smuggling: lengths that are none",
        each(
            [
                raw(
                    with_headers(("content-type", "application/json"), ("content-length", n), method="POST", path=CHAT)
                    + SMALL
                )
                for n in ("-1", "+5", "0x10", "5, 5", "1e3", "18446744073709551616", "", "5 5", "٣")
            ]
        ),
        expect=BROKEN,
    ),
    Row(
        "smuggling: a length of 2^63",
        raw(
            with_headers(
                ("content-type", "application/json"), ("content-length", str((1 << 63) - 1)), method="POST", path=CHAT
            )
        ),
        expect={400, 413, CLOSED},
    ),
    Row(
        "smuggling: encodings",
        each(
            [
                raw(
                    with_headers(
                        ("content-type", "application/json"), ("transfer-encoding", e), method="POST", path=CHAT
                    )
                    + b"0\r\n\r\n"
                )
                for e in (
                    "chunked, chunked",
                    "gzip",
                    "identity",
                    "chunked, identity",
                    "xchunked",
                    "\tchunked",
                    "chunked;x=y",
                    "gzip, chunked",
                )
            ]
        ),
        expect=BROKEN,
    ),
    Row(
        "smuggling: a folded header",
        raw(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\r\n\r\n"),
        expect={200, 401, *BROKEN},
    ),
    Row(
        "smuggling: a space before the colon",
        raw(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx : a\r\n\r\n"),
        expect=BROKEN,
    ),
    Row("smuggling: line feeds alone", raw(b"GET /livez HTTP/1.1\nhost: localhost\n\n"), expect={200, *BROKEN}),
    Row(
        "smuggling: a NUL in a value",
        raw(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n"),
        expect=BROKEN,
    ),
    Row(
        "chunks: sizes that are none",
        each(
            [
                raw(chunked(size + b"\r\nabc\r\n0\r\n\r\n"))
                for size in (b"zz", b"-1", b"ffffffffffffffffff", b"0x3", b"", b" 3", b"3 3")
            ]
        ),
        expect=BROKEN,
    ),
    Row("chunks: a size of 2^63", raw(chunked(b"7fffffffffffffff\r\nabc")), expect={UNFINISHED, *BROKEN}, patience=1),
    Row("chunks: an extension of 1 MB", raw(chunked(b"3;" + b"x" * MB + b"\r\nabc\r\n0\r\n\r\n")), 4, BROKEN),
    Row(
        "chunks: one byte each",
        raw(lambda: chunked(b"".join(b"1\r\n \r\n" for _ in range(100_000)) + b"0\r\n\r\n")),
        8,
        {400, 429},
    ),
    Row(
        "chunks: 100,000 trailers",
        raw(lambda: chunked(b"2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 100_000 + b"\r\n")),
        4,
        BROKEN,
    ),
    Row("chunks: 50 MB", raw(lambda: chunked((b"10000\r\n" + b" " * 65536 + b"\r\n") * 800)), 4, {413, 429, CLOSED}),
    Row("a body of 50 MB", raw(lambda: request(CHAT, b" " * (50 * MB))), 4, {413, 429, CLOSED}),
    Row(
        "a body that was not announced",
        raw(with_headers(("content-type", "application/json"), method="POST", path=CHAT) + SMALL),
        expect=BROKEN,
    ),
    Row(
        "content types",
        each(
            [
                post(CHAT, SMALL, headers=[("content-type", t)])
                for t in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
            ]
        ),
        expect={200, 400, 415},
    ),
    Row("a body without a type", raw(head("POST", CHAT, [("content-length", len(SMALL))]) + SMALL), expect={415}),
    Row(
        "compressed zeros",
        post(CHAT, lambda: gzip.compress(bytes(200 * MB)), headers=[("content-encoding", "gzip")]),
        4,
        {400, 413, 415, 429},
    ),
    Row(
        "a compressed body", post(CHAT, gzip.compress(SMALL), headers=[("content-encoding", "gzip")]), expect={400, 415}
    ),
    Row(
        "a client that waits to continue",
        raw(
            head(
                "POST",
                CHAT,
                [("content-type", "application/json"), ("content-length", "100"), ("expect", "100-continue")],
            )
        ),
        16,
        {UNFINISHED, *BROKEN},
        patience=1.5,
    ),
    Row(
        "an unknown expectation",
        raw(
            head(
                "POST",
                CHAT,
                [("content-type", "application/json"), ("content-length", len(SMALL)), ("expect", "x" * 1000)],
            )
            + SMALL
        ),
        expect={200, 417},
    ),
    Row(
        "an upgrade to websockets",
        raw(
            with_headers(
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-key", "x"),
                ("sec-websocket-version", "13"),
            )
        ),
        8,
        {200, 400, 426},
    ),
    Row(
        "an upgrade to HTTP/2",
        raw(
            with_headers(
                ("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABkAAQAAP__")
            )
        ),
        8,
        {200, 400, 426},
    ),
    Row("HTTP/2 at once", raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100)), 8, BROKEN),
    Row("TLS", raw(bytes.fromhex("16030100c8010000c40303") + os.urandom(200)), 8, {UNFINISHED, *BROKEN}, patience=1),
    Row("random bytes", raw(lambda: os.urandom(MB)), 8, {UNFINISHED, *BROKEN}, patience=2),
    Row("empty lines", raw(b"\r\n" * 500_000), 4, {UNFINISHED, *BROKEN}, patience=2),
    Row(
        "pipelined: 2,000 probes",
        pipelined(get("/livez").replace(b"connection: close\r\n", b""), 2000),
        8,
        {200, CLOSED, UNFINISHED},
    ),
    Row(
        "pipelined: 300 chats",
        pipelined(request(CHAT, chat_body(max_tokens=50)), 300),
        4,
        {200, 429, CLOSED, UNFINISHED},
        patience=1,
    ),
    Row(
        "pipelined: 200 API documents",
        pipelined(head("GET", "/openapi.json"), 200),
        16,
        {200, CLOSED, UNFINISHED},
        patience=2,
    ),
    Row("a request id of 60 kB", raw(with_headers(("x-request-id", "i" * 60_000))), 4, {200, 400, 431}),
    Row(
        "request ids that are none",
        each([raw(with_headers(("x-request-id", i))) for i in ("", "\x7f", "a\tb", "é", "\xff" * 100)]),
        expect={200, 400, CLOSED},
    ),
    Row(
        "traces that are none",
        each(
            [
                raw(with_headers(("traceparent", t)))
                for t in ("", "00-" + "0" * 32 + "-" + "0" * 16 + "-00", "x" * 60_000, "ff-1-2-3", "00-" + "é" * 32)
            ]
        ),
        expect={200, 400, CLOSED},
    ),
    Row(
        "retries that never were",
        each(
            [
                post(CHAT, SMALL, headers=[("x-stainless-retry-count", n), ("x-stainless-timeout", n)])
                for n in ("1", "-1", "1e99", "9" * 1000, "NaN", "")
            ]
        ),
        expect=EITHER,
    ),
    Row(
        "retries of one request, by 64",
        post(CHAT, chat_body(max_tokens=60, temperature=0), headers=[("x-stainless-retry-count", "1")]),
        64,
        ANY,
    ),
]

# Clients and connections.
FAR = "127.0.0.2"
SLOW_BODY = head("POST", CHAT, [("content-type", "application/json"), ("content-length", "100000")]) + b'{"a":'
BIG_ANSWER = request(EMBED, {"input": [f"{i}" for i in range(2048)]})
CONNECTIONS = [
    Row("connections: 1,200 silent ones", connections(1200), meanwhile=3.0, source=FAR),
    Row("connections: 1,200 silent ones from the neighbor's address", connections(1200), meanwhile=3.0),
    Row(
        "connections: 1,200 half heads",
        connections(1200, b"GET /livez HTTP/1.1\r\nx: ", b"x", 0.5),
        meanwhile=3.0,
        source=FAR,
    ),
    Row(
        "connections: 300 bodies of a byte a second", connections(300, SLOW_BODY, b" ", 0.5), meanwhile=2.0, source=FAR
    ),
    Row(
        "connections: 1,100 bodies of a byte a second",
        connections(1100, SLOW_BODY, b" ", 0.5),
        meanwhile=3.0,
        source=FAR,
    ),
    Row("connections: 64 that do not read a large answer", connections(64, BIG_ANSWER), meanwhile=6.0, source=FAR),
    Row(
        "connections: 200 that do not read the API document",
        connections(200, head("GET", "/openapi.json") * 20),
        meanwhile=2.0,
        source=FAR,
    ),
    Row(
        "connections: 200 that do not read a stream",
        connections(200, request(CHAT, chat_body(stream=True, max_tokens=20, ignore_eos=True))),
        meanwhile=2.0,
        source=FAR,
    ),
    Row("connections: 1,200 that were used once", connections(1200, head("GET", "/livez")), meanwhile=3.0, source=FAR),
    Row("clients that leave at once, 2,000 times", leave(b"", 500, by_reset=True), 4),
    Row("clients that leave in the head", leave(b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost:", 200), 2),
    Row("clients that leave in the body", leave(SLOW_BODY + b"x" * 50_000, 200, by_reset=True), 2),
    Row("clients that leave in the body, politely", leave(SLOW_BODY, 200, half_close=True), 2),
    Row(
        "clients that leave before the answer",
        leave(request(CHAT, chat_body(max_tokens=400, ignore_eos=True)), 100, by_reset=True),
        2,
    ),
    Row(
        "clients that leave in the stream",
        leave(request(CHAT, chat_body(max_tokens=400, ignore_eos=True, stream=True, n=4)), 60, after=0.05),
        4,
    ),
    Row(
        "clients that close only their side",
        leave(request(CHAT, chat_body(max_tokens=400, ignore_eos=True)), 50, after=0.02, half_close=True),
        2,
    ),
    Row("clients that leave while texts are embedded", leave(BIG_ANSWER, 10, after=0.05), 4),
    Row(
        "more chats than the server takes",
        post(CHAT, chat_body(max_tokens=2000, ignore_eos=True, stream=True)),
        400,
        {200, 429, UNFINISHED},
        patience=3,
    ),
]

# Keys, tenants and salts.
SPACES = " " * 390_000


def with_authorization(value, **options):
    return head("GET", "/v1/models", [("authorization", value)], key=None, **options)


KEYS = [
    Row("keys: 1,000 wrong ones", each([raw(get("/v1/models", key=f"sk-{i}")) for i in range(250)]), 4, {401, 429}),
    Row(
        "keys: 390 kB of spaces",
        raw(with_authorization("Bearer" + SPACES + "sk-attacker")),
        8,
        {200, 401, 429, *BROKEN},
    ),
    Row("keys: 390 kB of spaces before", raw(with_authorization(SPACES + "Bearer x")), 8, {401, 429, *BROKEN}),
    Row("keys: a key of 390 kB", raw(with_authorization("Bearer " + "k" * 390_000)), 8, {401, 429, *BROKEN}),
    Row(
        "keys: forms that are none",
        each(
            [
                raw(with_authorization(v))
                for v in (
                    "",
                    "Bearer",
                    "Bearer ",
                    "Basic eDp4",
                    "sk-attacker",
                    "Bearer a b",
                    "Bearer é",
                    "Bearer \xff",
                    ", Bearer x",
                    "Bearer sk-attacker,",
                )
            ]
        ),
        expect={401, 429, 400},
    ),
    Row(
        "keys: two headers",
        raw(head("GET", "/v1/models", [("authorization", "Bearer x")], key=ATTACKER)),
        expect={200, 400, 401},
    ),
    Row(
        "keys: none",
        each([post(p, {}, key=None) for p in (CHAT, COMPLETE, EMBED, SCORE, RERANK, "/tokenize", "/x")]),
        expect={401, 404, 429},
    ),
    Row("keys: none, and bodies of 2 MB, by 16", post(CHAT, b" " * 2 * MB, key=None), 16, {401, 429, CLOSED}),
    Row(
        "tenants by spaces, without keys",
        post(CHAT, chat_body(), headers=[("authorization", "Bearer" + SPACES + "x")], key=None),
        8,
        {200, 429, *BROKEN},
        server="open",
    ),
    Row(
        "tenants by case, without keys",
        each(
            [
                post(CHAT, chat_body("w " * 40), headers=[("authorization", s + "earer" + " " * i + "k")], key=None)
                for i in range(1, 150)
                for s in "bB"
            ]
        ),
        expect=SERVED,
        server="open",
    ),
]

# Pages that a browser on the same machine has open.
OPEN = {"server": "open"}


def from_page(path="/v1/models", host="localhost", method="GET", **headers):
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return raw(head(method, path, named, key=None, host=host))


PAGES = [
    Row(
        "pages: hosts of others",
        each(
            [
                from_page(host=h)
                for h in (
                    "evil.example",
                    "evil.example:8080",
                    "localhost.evil.example",
                    "127.0.0.1.evil.example",
                    "localhosT.evil",
                    "0x7f000001.example",
                    "evil.localhost.example",
                )
            ]
        ),
        expect={403},
        **OPEN,
    ),
    Row(
        "pages: hosts of this machine",
        each([from_page(host=h) for h in ("localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8080", "[::1]")]),
        expect={200},
        **OPEN,
    ),
    Row(
        "pages: hosts that are none",
        each(
            [
                from_page(host=h)
                for h in (
                    "",
                    "a b",
                    "localhost@evil.example",
                    "evil.example#localhost",
                    "localhost:x",
                    "localhost:80:80",
                )
            ]
        ),
        expect={400, 403},
        **OPEN,
    ),
    Row(
        "pages: other origins",
        each(
            [
                from_page(origin=o)
                for o in (
                    "http://evil.example",
                    "null",
                    "https://localhost.evil.example",
                    "http://evil.example:80",
                    "file://",
                    "",
                    "x",
                )
            ]
        ),
        expect={403},
        **OPEN,
    ),
    Row(
        "pages: other origins that write",
        each([post(CHAT, chat_body(), key=None, headers=[("origin", o)]) for o in ("http://evil.example", "null")]),
        expect={403},
        **OPEN,
    ),
    Row("pages: sites", from_page(sec_fetch_site="cross-site"), expect={403}, **OPEN),
    Row(
        "pages: probes for others",
        each([from_page("/livez", host=h) for h in ("evil.example", "10.0.0.1:8080")]),
        expect={200, 403},
        **OPEN,
    ),
    Row(
        "pages: a form",
        post(CHAT, SMALL, key=None, headers=[("origin", "http://evil.example"), ("content-type", "text/plain")]),
        expect={403, 415},
        **OPEN,
    ),
    Row(
        "pages: a preflight",
        from_page(
            CHAT,
            method="OPTIONS",
            origin="http://evil.example",
            access_control_request_method="POST",
            access_control_request_headers="content-type",
        ),
        expect={403, 405},
        **OPEN,
    ),
    Row(
        "pages: a proxy's target",
        raw(b"GET http://evil.example/v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        expect={400, 403, 421},
        **OPEN,
    ),
    Row("pages: a forwarded host", from_page(host="evil.example", x_forwarded_host="localhost"), expect={403}, **OPEN),
    Row("pages: two hosts", from_page(Host="evil.example"), expect={400}, **OPEN),
    Row("pages: no host", from_page(host=None), expect={400}, **OPEN),
]

ROWS = [*TEXTS, *GRAMMARS, *TOKENS, *VALUES, *MESSAGES, *HTTP, *CONNECTIONS, *KEYS, *PAGES]
