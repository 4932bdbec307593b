"""Hostile model folders, one row each. They are small models of tests/data with one thing made wrong."""

import json
import os
import pathlib
import shutil
import struct
from dataclasses import dataclass, field
from typing import Callable

import gguf
from client import CHAT, chat_body, request

ROOT = pathlib.Path(__file__).resolve().parents[2]
LLAMA = ROOT / "tests/data/tiny/llama"
BERT = ROOT / "tests/data/tiny-encoders/bert"

# What a row may expect beside a part of the message.
SERVES = "serves"

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

CHATS = [
    request(CHAT, chat_body("hello", max_tokens=4)),
    request(CHAT, chat_body("a" * 300 + " <|x|> \u0301é日", max_tokens=2, logprobs=True, top_logprobs=5)),
]
EMBEDDINGS = [request("/v1/embeddings", {"input": ["hello", "a" * 300 + " \u0301é日"]})]


@dataclass
class Row:
    """A model folder: what is written into it, and how the server must take it."""

    name: str
    # Writes the files into a folder. May return another path to start the server with.
    write: Callable
    # A part of the message that the server ends with, `SERVES`, or None for either.
    expect: str | None = None
    kind: str = "chat"
    # Done to the path when the server is ready.
    after_ready: Callable | None = None
    # A file that must not appear in the working directory.
    forbidden: str | None = None
    env: dict = field(default_factory=dict)

    def options(self, path):
        tiny = path.parent / "tiny" if isinstance(path, pathlib.Path) else pathlib.Path(os.devnull)
        if self.kind == "embedding":
            tiny.mkdir()
            llama(tiny)
            return ["--model", str(tiny), "--embedding-model", str(path)]
        return ["--model", str(path)]

    def requests(self):
        return EMBEDDINGS if self.kind == "embedding" else CHATS


def remove(folder):
    """Removes a folder whose contents may be unreadable."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


# --- Models to begin with


def llama(folder):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(LLAMA / name, folder)
    put(folder, "tokenizer_config.json", {"chat_template": TEMPLATE})


def bert(folder):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(BERT / name, folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(300)), "hello", "a", "##a"]
    put(
        folder,
        "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
            "decoder": None,
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {word: i for i, word in enumerate(words)},
            },
        },
    )


def put(folder, name, value):
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())


def parsed(folder, name):
    return json.loads((folder / name).read_text())


def base(kind):
    return bert if kind == "embedding" else llama


def config(kind="chat", **fields):
    """A model with these fields in its configuration; `None` removes one."""

    def write(folder):
        base(kind)(folder)
        value = {**parsed(folder, "config.json"), **fields}
        put(folder, "config.json", {key: item for key, item in value.items() if item is not None})

    return write


def files(kind="chat", **contents):
    """A model with these files; `__` in a name stands for a dot, `_S_` for a slash."""

    def write(folder):
        base(kind)(folder)
        for name, content in contents.items():
            put(folder, name.replace("__", ".").replace("_S_", "/"), content() if callable(content) else content)

    return write


def template(text):
    return files(tokenizer_config__json=lambda: {"chat_template": text() if callable(text) else text})


def tokenizer(change, kind="chat"):
    """A model whose tokenizer.json was changed."""

    def write(folder):
        base(kind)(folder)
        value = parsed(folder, "tokenizer.json")
        value = change(value) or value
        put(folder, "tokenizer.json", value)

    return write


def changed(**parts):
    return lambda value: {**value, **parts}


def split_safetensors(folder):
    data = (folder / "model.safetensors").read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def safetensors(change, kind="chat"):
    """A model whose header (a dictionary) and data were changed by a function that returns both or None."""

    def write(folder):
        base(kind)(folder)
        header, data = split_safetensors(folder)
        header, data = change(header, data) or (header, data)
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        put(folder, "model.safetensors", struct.pack("<Q", len(text)) + text + data)

    return write


def weights(change, kind="chat"):
    """A model whose file of weights was changed as bytes."""

    def write(folder):
        base(kind)(folder)
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return write


def filled(pattern, kind="chat", only=""):
    """All tensors, or those with `only` in their name, filled with a pattern of four bytes."""

    def change(header, data):
        data = bytearray(data)
        for name, info in header.items():
            if name != "__metadata__" and only in name:
                start, end = info["data_offsets"]
                data[start:end] = pattern * ((end - start) // 4)
        return header, bytes(data)

    return safetensors(change, kind)


def zeros(**fields):
    """A llama with zero weights of any size, as a sparse file."""

    def write(folder):
        config(**fields)(folder)
        sizes = parsed(folder, "config.json")
        hidden, inner, head = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
        heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
        shapes = {"model.embed_tokens.weight": [sizes["vocab_size"], hidden], "model.norm.weight": [hidden]}
        for i in range(sizes["num_hidden_layers"]):
            layer = f"model.layers.{i}."
            shapes |= {
                layer + "input_layernorm.weight": [hidden],
                layer + "post_attention_layernorm.weight": [hidden],
                layer + "mlp.down_proj.weight": [hidden, inner],
                layer + "mlp.gate_proj.weight": [inner, hidden],
                layer + "mlp.up_proj.weight": [inner, hidden],
                layer + "self_attn.q_proj.weight": [heads * head, hidden],
                layer + "self_attn.k_proj.weight": [kv_heads * head, hidden],
                layer + "self_attn.v_proj.weight": [kv_heads * head, hidden],
                layer + "self_attn.o_proj.weight": [hidden, heads * head],
            }
        header, end = {}, 0
        for name, shape in shapes.items():
            size = 2
            for n in shape:
                size *= n
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        with open(folder / "model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)

    return write


def gguf_llama():
    """The tiny llama as a GGUF file."""
    file = gguf.Gguf()
    sizes = json.loads((LLAMA / "config.json").read_text())
    vocabulary = json.loads((LLAMA / "tokenizer.json").read_text())
    words = sorted(vocabulary["model"]["vocab"], key=vocabulary["model"]["vocab"].get)
    words += ["<bos>", "<eos>", "<pad>", *(f"<x{i}>" for i in range(sizes["vocab_size"] - len(words) - 3))]
    values = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.embedding_length": sizes["hidden_size"],
        "llama.feed_forward_length": sizes["intermediate_size"],
        "llama.block_count": sizes["num_hidden_layers"],
        "llama.attention.head_count": sizes["num_attention_heads"],
        "llama.attention.head_count_kv": sizes["num_key_value_heads"],
        "llama.context_length": sizes["max_position_embeddings"],
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.freq_base": 10_000.0,
        "llama.rope.dimension_count": sizes["head_dim"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [1] * 256 + [3] * (len(words) - 256),
        "tokenizer.ggml.merges": ["a a", "e r"],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.chat_template": TEMPLATE,
    }
    # The merges name tokens that do not exist in the vocabulary of bytes.
    values["tokenizer.ggml.merges"] = []
    for key, value in values.items():
        file.set(key, (gguf.ARRAY, gguf.array(gguf.STRING, [])) if value == [] else value)
    header, data = split_safetensors(LLAMA)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, info in header.items():
        if name == "__metadata__":
            continue
        for old, new in names.items():
            name = name.replace(old, new)
        start, end = info["data_offsets"]
        file.tensors.append((name, info["shape"], 0, data[start:end], None))
    return file


def gguf_file(change=lambda file: None):
    """The tiny llama as a GGUF file, changed by a function that may return other bytes."""

    def write(folder):
        file = gguf_llama()
        data = change(file)
        path = folder / "model.gguf"
        path.write_bytes(data if isinstance(data, bytes) else file.data())
        return path

    return write


def keys(**values):
    """A GGUF file with other keys; `__` in a name stands for a dot."""

    def change(file):
        for name, value in values.items():
            file.set(name.replace("__", "."), value() if callable(value) else value)

    return gguf_file(change)


def tensor(name, **parts):
    """A GGUF file with a tensor whose shape, kind, data or offset differ."""

    def change(file):
        for i, (old, shape, kind, data, offset) in enumerate(file.tensors):
            if old == name:
                new = {"shape": shape, "kind": kind, "data": data, "offset": offset, **parts}
                file.tensors[i] = (old, new["shape"], new["kind"], new["data"], new["offset"])

    return gguf_file(change)


def linked(name, target):
    """A model with a symbolic link in place of a file."""

    def write(folder):
        llama(folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return write


def replaced(name, make):
    """A model with something else in place of a file."""

    def write(folder):
        llama(folder)
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return write


def all_of(*writers):
    def write(folder):
        for writer in writers:
            path = writer(folder)
        return path

    return write


# --- Chat templates

DOUBLED = "{% set x = [1, 2] %}" + "{% set x = [x, x] %}" * 40
LONG = "{% set s = 'ab' %}" + "{% set s = s + s %}" * 40
TEMPLATES = {
    "a text doubled 40 times": LONG + "{{ s | length }}",
    "a text doubled 40 times by ~": "{% set s = 'ab' %}" + "{% set s = s ~ s %}" * 40 + "{{ s }}",
    "a text doubled in a namespace": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "a text doubled by format": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = '%s%s' % (n.s, n.s) %}{% endfor %}",
    "a text doubled by join": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = [n.s, n.s] | join %}{% endfor %}",
    "a text doubled by replace": "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s.replace('a', 'aa') %}{% endfor %}",
    "a text doubled by set blocks": "{% set s %}ab{% endset %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 40,
    "many texts that are kept": "{% set n = namespace(l=[]) %}{% for i in range(100000) %}{% set n.l = n.l + ['x' * 100000] %}{% endfor %}",
    "a list that doubles": "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = n.l + n.l %}{% endfor %}{{ n.l | length }}",
    "the repr of nested lists": DOUBLED + "{{ x }}",
    "equality of nested lists": DOUBLED + DOUBLED.replace("x", "y") + "{{ x == y }}",
    "order of nested lists": DOUBLED + DOUBLED.replace("x", "y") + "{{ x < y }}",
    "sorted nested lists": DOUBLED + DOUBLED.replace("x", "y") + "{{ [x, y, x, y] | sort | length }}",
    "unique nested lists": DOUBLED + "{{ [x, x, x] | unique | list | length }}",
    "nested lists in nested lists": DOUBLED + DOUBLED.replace("x", "y") + "{{ x in [y, y] }}{{ y in x }}",
    "nested lists as keys": DOUBLED + "{% set d = {x: 1, y: 2} %}{{ d[x] }}",
    "nested lists as JSON": DOUBLED + "{{ x | tojson }}",
    "nested lists as a text": DOUBLED + "{{ x | string | length }}{{ x | join(',') }}",
    "nested lists as a sum": DOUBLED + "{{ x | sum(start=[]) }}",
    "nested dictionaries": "{% set x = {'a': 1} %}" + "{% set x = {'a': x, 'b': x} %}" * 40 + "{{ x }}{{ x | tojson }}",
    "nested lists by groups": DOUBLED + "{{ [x, x] | groupby(0) | list }}{{ [x] | map('string') | list }}",
    "a loop of 10^10": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}x",
    "a range of 10^9": "{{ range(1000000000) | list | length }}",
    "a range of 10^18": "{% for i in range(1000000000000000000) %}{% endfor %}",
    "a text times 10^9": "{{ 'a' * 1000000000 }}",
    "a text times 2^62": "{{ 'a' * 4611686018427387904 }}",
    "a list times 10^9": "{{ ([1] * 1000000000) | length }}",
    "a width of 10^9": "{{ '%999999999d' % 1 }}{{ '{:>999999999}'.format(1) }}",
    "centered to 10^9": "{{ 'a'.center(1000000000) }}{{ 'a' | center(1000000000) }}{{ 'a'.ljust(1000000000) }}{{ 'a'.zfill(1000000000) }}",
    "indented by 10^9": "{{ 'a\nb' | indent(1000000000) }}{{ [1] | tojson(indent=1000000000) }}",
    "a power": "{{ 10 ** 10 ** 10 }}",
    "a large integer": "{{ 9 ** 9 ** 2 }}{{ 123456789012345678901234567890 * 10 }}",
    "a division by zero": "{{ 1 / 0 }}{{ 1 // 0 }}{{ 1 % 0 }}",
    "the smallest integer": "{{ (-9223372036854775807 - 1) // -1 }}{{ -(-9223372036854775807 - 1) }}{{ (-9223372036854775807 - 1) % -1 }}",
    "slices": "{{ 'abc'[::0] }}{{ [1,2][9223372036854775807:-9223372036854775807:-1] }}",
    "batches and slices": "{{ range(100000) | batch(1) | list | length }}{{ [1] | slice(1000000000) | list | length }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macros that call each other": "{% macro a() %}{{ b() }}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "a loop that calls itself": "{% for i in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "callers of callers": "{% macro m() %}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 300
    + "x"
    + "{% endcall %}" * 300,
    "100,000 operators": lambda: "{{ 1" + " + 1" * 100_000 + " }}",
    "100,000 comparisons": lambda: "{{ 1" + " == 1" * 100_000 + " }}",
    "100,000 nots": lambda: "{{ " + "not " * 100_000 + "1 }}",
    "100,000 minus signs": lambda: "{{ " + "-" * 100_000 + "1 }}",
    "100,000 parentheses": lambda: "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "100,000 brackets": lambda: "{{ " + "[" * 100_000 + "]" * 100_000 + " }}",
    "100,000 braces": lambda: "{{ " + "{1:" * 100_000 + "1" + "}" * 100_000 + " }}",
    "100,000 filters": lambda: "{{ 'a'" + " | upper" * 100_000 + " }}",
    "100,000 attributes": lambda: "{{ messages" + ".a" * 100_000 + " }}",
    "100,000 subscripts": lambda: "{{ messages" + "[0]" * 100_000 + " }}",
    "100,000 calls": lambda: "{{ messages" + "()" * 100_000 + " }}",
    "100,000 ands": lambda: "{{ 1" + " and 1" * 100_000 + " }}",
    "100,000 conditional expressions": lambda: "{{ " + "1 if 1 else " * 100_000 + "1 }}",
    "100,000 tests": lambda: "{{ 1" + " is defined" * 100_000 + " }}",
    "20,000 conditions": lambda: "{% if 1 %}" * 20_000 + "{% endif %}" * 20_000,
    "20,000 loops": lambda: "{% for i in [1] %}" * 20_000 + "{% endfor %}" * 20_000,
    "60,000 alternatives": lambda: "{% if 0 %}" + "{% elif 0 %}" * 60_000 + "{% endif %}",
    "60,000 set blocks": lambda: "{% set a %}" * 60_000 + "{% endset %}" * 60_000,
    "60,000 macros": lambda: "".join(f"{{% macro m{i}() %}}x{{% endmacro %}}" for i in range(60_000)),
    "20,000 filter blocks": lambda: "{% filter upper %}" * 20_000 + "{% endfilter %}" * 20_000,
    "a template of 20 MB": lambda: "x" * 20_000_000,
    "a list of 500,000 items": lambda: "{{ [" + "1," * 500_000 + "] }}",
    "a long string": lambda: "{{ '" + "\\n" * 2_000_000 + "' }}",
    "open tags": "{% for m in messages %}{{ ",
    "files of others": "{% include '/etc/passwd' %}{% import '/etc/passwd' as x %}{% extends '/etc/passwd' %}",
    "Python's insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages.__init__.__globals__ }}",
    "a long error": "{{ raise_exception('x' * 10000000) }}",
    "a date of 10 MB": "{{ strftime_now('%Y' * 2500000) }}",
    "a date that is none": "{{ strftime_now('%') }}{{ strftime_now('%\u00e9%9999999999d') }}",
    "many parts": "{{ ('a,' * 3000000).split(',') | length }}",
    "many parts joined": "{{ range(100000) | join('x' * 100000) }}",
    "what does not end in Jinja's own": "{{ lipsum(n=100000000) }}{{ cycler(*range(100000000)) }}",
    "upper case that grows": "{% set n = namespace(s='ﬃ') %}{% for i in range(40) %}{% set n.s = (n.s + n.s) | upper %}{% endfor %}",
    "escapes that grow": "{% set n = namespace(s='<') %}{% for i in range(40) %}{% set n.s = n.s | e | tojson %}{% endfor %}",
    "strings of all messages": "{% for i in range(3000) %}{{ messages | tojson }}{{ messages | string }}{% endfor %}",
    "a namespace in itself": "{% set n = namespace() %}{% set n.n = n %}{{ n }}{{ n == n }}{{ n | tojson }}",
    "a stack of namespaces": "{% set n = namespace(x=1) %}{% for i in range(100000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
    "deep equality": "{% set n = namespace(x=1, y=1) %}{% for i in range(100000) %}{% set n.x = [n.x] %}{% set n.y = [n.y] %}{% endfor %}{{ n.x == n.y }}",
    "deep JSON": "{% set n = namespace(x=1) %}{% for i in range(100000) %}{% set n.x = {'a': n.x} %}{% endfor %}{{ n.x | tojson }}",
    "a deep list that is dropped": "{% set n = namespace(x=1) %}{% for i in range(1000000) %}{% set n.x = [n.x] %}{% endfor %}",
    "slices of slices": "{% set n = namespace(x=range(100000)) %}{% for i in range(10000) %}{% set n.x = n.x[1:] %}{% endfor %}{{ n.x | length }}",
    "filters on filters": "{% set n = namespace(x=[1]) %}{% for i in range(100000) %}{% set n.x = n.x | map('int') %}{% endfor %}{{ n.x | list }}",
    "reversed reversals": "{% set n = namespace(x=[1]) %}{% for i in range(100000) %}{% set n.x = n.x | reverse %}{% endfor %}{{ n.x | list }}",
    "sorting much": "{% for i in range(1000) %}{{ range(100000) | sort(reverse=true) | first }}{% endfor %}",
    "concatenated keys": "{% set n = namespace(d={}) %}{% for i in range(100000) %}{% set n.d = dict(n.d, **{'k' ~ i: i}) %}{% endfor %}",
    "items of a dictionary": "{{ dict(a=1).items() | list | tojson }}{{ {'a': 1} | items | list }}{{ {'a': 1} | dictsort }}",
}

# --- Tokenizers


def with_vocabulary(entries):
    def change(value):
        value["model"]["vocab"].update(entries)

    return change


def added(*tokens):
    def change(value):
        value["added_tokens"] += [
            {
                "id": i,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, text in tokens
        ]

    return change


def growing(n):
    """A normalizer that doubles the letter a `n` times."""
    return {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * n}


def nested_normalizer(depth):
    text = '{"type":"Sequence","normalizers":[' * depth + '{"type":"NFC"}' + "]}" * depth
    return lambda folder: put(
        folder,
        "tokenizer.json",
        (LLAMA / "tokenizer.json").read_bytes().replace(b'"normalizer": null', f'"normalizer": {text}'.encode()),
    )


def by_regex(pattern):
    return changed(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    )


def merges(pairs):
    def change(value):
        value["model"]["merges"] = pairs

    return change


def model(**fields):
    def change(value):
        value["model"] = {**value["model"], **fields}

    return change


TOKENIZERS = {
    "an id near 2^32": with_vocabulary({"zz": (1 << 32) - 2}),
    "an id of 2^32": with_vocabulary({"zz": 1 << 32}),
    "an id of 10^9": with_vocabulary({"zz": 10**9}),
    "a negative id": with_vocabulary({"zz": -1}),
    "an added token near 2^32": added(((1 << 32) - 2, "<far>")),
    "an added token of 2 x 10^9": added((2 * 10**9, "<far>")),
    "more tokens than the model": with_vocabulary({f"zz{i}": 320 + i for i in range(50_000)}),
    "one id for all": lambda value: {
        **value,
        "model": {**value["model"], "vocab": {text: 5 for text in value["model"]["vocab"]}},
    },
    "no vocabulary": lambda value: {**value, "model": {**value["model"], "vocab": {}}},
    "no added tokens": changed(added_tokens=[]),
    "an added token without text": added((259, "")),
    "an added token of 5 MB": added((259, "x" * 5_000_000)),
    "200,000 added tokens": lambda value: added(*((i, f"<t{i}>") for i in range(259, 200_259)))(value),
    "a normalizer that doubles 40 times": changed(normalizer=growing(40)),
    "a normalizer that doubles 24 times": changed(normalizer=growing(24)),
    "a normalizer that writes 10 MB for a letter": changed(
        normalizer={"type": "Replace", "pattern": {"String": "e"}, "content": "x" * 10_000_000}
    ),
    "a normalizer that prepends 10 MB": changed(normalizer={"type": "Prepend", "prepend": "x" * 10_000_000}),
    "a normalizer that replaces nothing": changed(
        normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "xx"}
    ),
    "a normalizer that replaces every place": changed(
        normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 10_000}
    ),
    "a catastrophic normalizer": changed(
        normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": "x"}
    ),
    "a table of characters that is none": changed(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA" * 100}
    ),
    "a catastrophic pattern": by_regex("(a+)+$"),
    "a catastrophic pattern of alternatives": by_regex("^(a|a|aa)*$"),
    "a catastrophic pattern with a back reference": by_regex(r"(.*)*(.*)*(.*)*\1x"),
    "a pattern that matches nothing": by_regex(""),
    "a pattern with 10,000 groups": by_regex("(" * 10_000 + "a" + ")" * 10_000),
    "a pattern of 10^9 repetitions": by_regex("((a{1,100000}){1,100000}){1,100000}"),
    "a pattern that is none": by_regex("(((["),
    "merges of unknown tokens": merges([["qqq", "zzz"]]),
    "merges in a circle": merges([["a", "b"], ["b", "a"], ["a", "a"]]),
    "merges that are none": merges(["a", "", "a b c", 5]),
    "500,000 merges": merges([["a", "a"]] * 500_000),
    "an unknown model": lambda value: {**value, "model": {"type": "X"}},
    "a WordPiece with words of 10^9": lambda value: {
        **value,
        "model": {
            "type": "WordPiece",
            "unk_token": "!",
            "continuing_subword_prefix": "",
            "max_input_chars_per_word": 10**9,
            "vocab": value["model"]["vocab"],
        },
    },
    "a WordPiece without its unknown token": lambda value: {
        **value,
        "model": {
            "type": "WordPiece",
            "unk_token": "nope",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"a": 0},
        },
    },
    "a unigram with an unknown id out of range": lambda value: {
        **value,
        "model": {"type": "Unigram", "unk_id": 10**6, "vocab": [["a", -1.0]], "byte_fallback": False},
    },
    "a unigram with endless scores": lambda value: {
        **value,
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [[w, -1e308] for w in value["model"]["vocab"]],
            "byte_fallback": True,
        },
    },
    "dropout": model(dropout=0.5),
    "dropout out of range": model(dropout=1e9),
    "an unknown token out of range": model(unk_token="nope", fuse_unk=True),
    "a prefix of 1 MB": model(continuing_subword_prefix="x" * 1_000_000),
    "padding to 10^9": changed(
        padding={
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    ),
    "padding to multiples of 2^62": changed(
        padding={
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": 1 << 62,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    ),
    "truncation to nothing": changed(
        truncation={"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0}
    ),
    "truncation with a large stride": changed(
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 9}
    ),
    "a template of unknown tokens": changed(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
    "a template of 10^5 texts": lambda value: {
        **value,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 100_000,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {},
        },
    },
    "a template with ids out of range": changed(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"[X]": {"id": "[X]", "ids": [4294967290], "tokens": ["[X]"]}},
        }
    ),
    "no decoder": changed(decoder=None),
    "decoders that cut": changed(decoder={"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}),
    "10,000 decoders": changed(
        decoder={
            "type": "Sequence",
            "decoders": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 10_000,
        }
    ),
}

# --- Rows


def named(prefix, rows, write, kind="chat", **options):
    return [Row(f"{prefix}: {name}", write(value), kind=kind, **options) for name, value in rows.items()]


def retyped(dtype):
    def change(header, data):
        for name, info in header.items():
            if name != "__metadata__":
                info["dtype"] = dtype

    return change


def reshaped(name, shape):
    def change(header, data):
        header[name]["shape"] = shape

    return change


def moved(name, offsets):
    def change(header, data):
        header[name]["data_offsets"] = offsets

    return change


def without(part):
    """Without the tensors with this in their name; the data is packed again."""

    def change(header, data):
        kept, packed = {}, b""
        for name, info in header.items():
            if name != "__metadata__" and part not in name:
                start, end = info["data_offsets"]
                kept[name] = {**info, "data_offsets": [len(packed), len(packed) + end - start]}
                packed += data[start:end]
        return kept, packed

    return change


Q, NORM, EMBED = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight"
NAN, INFINITY, HUGE = b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", struct.pack("<f", 3e38)

SAFETENSORS = [
    Row("safetensors: as it is", llama, SERVES),
    Row("safetensors: empty", weights(lambda data: b""), "error"),
    Row("safetensors: seven bytes", weights(lambda data: data[:7]), "error"),
    Row("safetensors: half", weights(lambda data: data[: len(data) // 2]), "error"),
    Row("safetensors: one byte short", weights(lambda data: data[:-1]), "error"),
    Row("safetensors: one byte long", weights(lambda data: data + b"x"), "error"),
    Row("safetensors: a header of 2^63", weights(lambda data: struct.pack("<Q", 1 << 63) + data[8:]), "error"),
    Row("safetensors: a header of 2^64 - 1", weights(lambda data: b"\xff" * 8 + data[8:]), "error"),
    Row(
        "safetensors: a header of 60 MB of brackets",
        weights(lambda data: struct.pack("<Q", 60_000_000) + b"[" * 60_000_000),
        "error",
    ),
    Row(
        "safetensors: a header of 60 MB of names",
        weights(
            lambda data: (text := b'{"a":[' + b'"x",' * 15_000_000 + b'"x"]}') and struct.pack("<Q", len(text)) + text
        ),
        "error",
    ),
    Row("safetensors: a header that is none", safetensors(lambda header, data: (b"null", data)), "error"),
    Row(
        "safetensors: 200,000 tensors",
        safetensors(
            lambda header, data: (
                {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)},
                b"",
            )
        ),
        "error",
    ),
    Row(
        "safetensors: a tensor twice",
        safetensors(
            lambda header, data: (
                json.dumps(header).replace("model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj").encode(),
                data,
            )
        ),
        "error",
    ),
    Row("safetensors: overlapping tensors", safetensors(moved(Q, [0, 16384])), "error"),
    Row("safetensors: offsets out of order", safetensors(moved(Q, [16384, 0])), "error"),
    Row("safetensors: offsets of 2^64", safetensors(moved(Q, [(1 << 64) - 16384, 1 << 64])), "error"),
    Row("safetensors: an empty dimension", safetensors(reshaped(Q, [0, 64])), "error"),
    Row("safetensors: dimensions of 2^62", safetensors(reshaped(Q, [1 << 62, 1 << 62])), "error"),
    Row("safetensors: 1,000 dimensions", safetensors(reshaped(Q, [64, 64] + [1] * 1000)), "error"),
    Row("safetensors: negative dimensions", safetensors(reshaped(Q, [-64, -64])), "error"),
    Row(
        "safetensors: turned dimensions", safetensors(reshaped("model.layers.0.mlp.up_proj.weight", [64, 96])), "error"
    ),
    Row("safetensors: integers", safetensors(retyped("I32")), "error"),
    Row("safetensors: an unknown type", safetensors(retyped("X" * 1000)), "error"),
    Row("safetensors: no head or embeddings", safetensors(without("embed_tokens")), "error"),
    Row("safetensors: no norm", safetensors(without("model.norm")), "error"),
    Row("safetensors: no second layer", safetensors(without("layers.1.")), "error"),
    Row("safetensors: no tensors", safetensors(lambda header, data: ({}, b"")), "error"),
    Row("safetensors: all NaN", filled(NAN), "error"),
    Row("safetensors: a norm of NaN", filled(NAN, only="model.norm"), "error"),
    Row("safetensors: all infinite", filled(INFINITY), "error"),
    Row("safetensors: all huge", filled(HUGE)),
    Row(
        "safetensors: embeddings of NaN for one token",
        safetensors(lambda header, data: (header, data[: 65 * 256] + NAN * 64 + data[66 * 256 :])),
    ),
    Row("safetensors: all zero", filled(bytes(4)), SERVES),
    Row("safetensors: rows of 49,152", zeros(intermediate_size=49_152, hidden_size=64), SERVES),
    Row("safetensors: rows of 200,000", zeros(intermediate_size=200_000, hidden_size=64), SERVES),
    Row(
        "safetensors: cut after it was loaded",
        llama,
        SERVES,
        after_ready=lambda path: os.truncate(path / "model.safetensors", 0),
    ),
    Row(
        "safetensors: an index that leaves the folder",
        files(model__safetensors__index__json={"weight_map": {EMBED: "../../../../etc/passwd"}}),
    ),
    Row(
        "safetensors: only an index that leaves the folder",
        all_of(
            files(model__safetensors__index__json={"weight_map": {EMBED: "../../../../etc/passwd"}}),
            lambda folder: (folder / "model.safetensors").unlink(),
        ),
        "error",
    ),
    Row(
        "safetensors: only an index of missing parts",
        all_of(
            files(
                model__safetensors__index__json={
                    "weight_map": {f"t{i}": f"part-{i}.safetensors" for i in range(10_000)}
                }
            ),
            lambda folder: (folder / "model.safetensors").unlink(),
        ),
        "error",
    ),
    Row(
        "safetensors: only an index that is none",
        all_of(
            files(model__safetensors__index__json=b'{"weight_map":' + b"[" * 100_000),
            lambda folder: (folder / "model.safetensors").unlink(),
        ),
        "error",
    ),
]

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
CONFIGS = [Row(f"config: {name} of 0", config(**{name: 0}), "error") for name in SIZES]
CONFIGS += [Row(f"config: {name} of 10^9", config(**{name: 10**9})) for name in SIZES]
CONFIGS += [
    Row(f"config: {name} of 2^63", config(**{name: 1 << 63}))
    for name in ("num_hidden_layers", "head_dim", "max_position_embeddings", "vocab_size")
]
CONFIGS += [
    Row("config: negative layers", config(num_hidden_layers=-1), "error"),
    Row("config: half a layer", config(num_hidden_layers=1.5), "error"),
    Row("config: a text for a size", config(hidden_size="64"), "error"),
    Row("config: heads that do not divide", config(num_attention_heads=3, num_key_value_heads=2), "error"),
    Row("config: more heads for keys than for queries", config(num_key_value_heads=8), "error"),
    Row("config: an odd head", config(head_dim=15), "error"),
    Row("config: another head", config(head_dim=32), "error"),
    Row("config: a context of 1", config(max_position_embeddings=1), "error"),
    Row("config: a context of 63", config(max_position_embeddings=63), "error"),
    Row("config: a base of zero", config(rope_parameters={"rope_theta": 0, "rope_type": "default"})),
    Row("config: a negative base", config(rope_parameters={"rope_theta": -1e4, "rope_type": "default"})),
    Row("config: a base of 1e308", config(rope_parameters={"rope_theta": 1e308, "rope_type": "default"})),
    Row("config: a scale of zero", config(rope_parameters={"rope_theta": 1e4, "rope_type": "linear", "factor": 0})),
    Row(
        "config: endless factors",
        config(
            rope_parameters={
                "rope_theta": 1e4,
                "rope_type": "longrope",
                "short_factor": [0.0] * 8,
                "long_factor": [1e300] * 8,
                "original_max_position_embeddings": 0,
            }
        ),
    ),
    Row(
        "config: 10^6 factors",
        config(
            rope_parameters={
                "rope_theta": 1e4,
                "rope_type": "longrope",
                "short_factor": [1.0] * 10**6,
                "long_factor": [1.0] * 10**6,
                "original_max_position_embeddings": 1,
            }
        ),
    ),
    Row("config: an unknown scaling", config(rope_parameters={"rope_theta": 1e4, "rope_type": "x" * 10**6})),
    Row(
        "config: yarn of zeros",
        config(
            rope_parameters={
                "rope_theta": 1e4,
                "rope_type": "yarn",
                "factor": 0,
                "beta_fast": 0,
                "beta_slow": 0,
                "original_max_position_embeddings": 0,
            }
        ),
    ),
    Row("config: a negative epsilon", config(rms_norm_eps=-1.0)),
    Row("config: an epsilon of 1e300", config(rms_norm_eps=1e300)),
    Row("config: an unknown activation", config(hidden_act="x"), "error"),
    Row(
        "config: a window of zero", config(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=0)
    ),
    Row("config: tokens out of range", config(eos_token_id=[1 << 31, 400], bos_token_id=(1 << 32) - 1)),
    Row("config: tokens of 2^40", config(eos_token_id=1 << 40)),
    Row("config: 10^6 ends", config(eos_token_id=[5] * 10**6)),
    Row("config: an unknown architecture", config(model_type="x" * 10_000, architectures=["X"]), "error"),
    Row("config: no architecture", config(model_type=None, architectures=None), "error"),
    Row(
        "config: experts",
        config(model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], num_experts=0, num_experts_per_tok=8),
        "error",
    ),
    Row(
        "config: 10^9 experts",
        config(
            model_type="qwen3_moe",
            architectures=["Qwen3MoeForCausalLM"],
            num_experts=10**9,
            num_experts_per_tok=10**9,
            moe_intermediate_size=64,
        ),
        "error",
    ),
    Row("config: layers of 10^6 kinds", config(layer_types=["full_attention"] * 10**6)),
    Row("config: empty", files(config__json=b""), "error"),
    Row("config: null", files(config__json=b"null"), "error"),
    Row("config: deep", files(config__json=b'{"a":' * 100_000), "error"),
    Row("config: 50 MB of spaces", files(config__json=lambda: b" " * 50_000_000), "error"),
    Row("config: NaN", files(config__json=b'{"hidden_size": NaN}'), "error"),
    Row("config: bytes", files(config__json=bytes(range(256)) * 100), "error"),
    Row("config: numbers of 10,000 digits", files(config__json=b'{"hidden_size":' + b"9" * 10_000 + b"}"), "error"),
    Row("other files: generation_config.json", files(generation_config__json=b"[" * 100_000), "error"),
    Row("other files: tokenizer_config.json", files(tokenizer_config__json=b'{"a":' * 100_000), "error"),
    Row(
        "other files: templates that are no text",
        files(tokenizer_config__json={"chat_template": [{"name": 1, "template": []}, 5]}),
    ),
    Row(
        "other files: 100,000 templates",
        files(tokenizer_config__json={"chat_template": [{"name": f"t{i}", "template": "x"} for i in range(100_000)]}),
    ),
    Row("other files: no template", files(tokenizer_config__json={})),
    Row(
        "other files: special tokens",
        files(
            tokenizer_config__json={
                "chat_template": TEMPLATE,
                "bos_token": "x" * 10**6,
                "eos_token": {"content": 5},
                "pad_token": [],
            }
        ),
    ),
    Row("other files: a template that is no text", files(chat_template__jinja=os.urandom(100_000))),
]

FILES = [
    Row("files: an empty folder", lambda folder: None, "error"),
    Row("files: no folder", lambda folder: folder / "missing", "error"),
    Row("files: a link to itself", linked("model.safetensors", "model.safetensors"), "error"),
    Row("files: a link to nothing", linked("tokenizer.json", "/nonexistent"), "error"),
    Row("files: a link to zeros", linked("config.json", "/dev/zero"), "error"),
    Row("files: weights that are zeros without end", linked("model.safetensors", "/dev/zero"), "error"),
    Row("files: a template without end", linked("chat_template.jinja", "/dev/zero")),
    Row("files: a link to random numbers", linked("tokenizer.json", "/dev/urandom"), "error"),
    Row("files: a link to the folder itself", linked("loop", "."), SERVES),
    Row("files: a link to the terminal", linked("config.json", "/dev/tty"), "error"),
    Row("files: a folder in place of weights", replaced("model.safetensors", lambda path: path.mkdir()), "error"),
    Row("files: a folder in place of the configuration", replaced("config.json", lambda path: path.mkdir()), "error"),
    Row("files: a pipe in place of weights", replaced("model.safetensors", os.mkfifo), "error"),
    Row("files: a pipe in place of the configuration", replaced("config.json", os.mkfifo), "error"),
    Row("files: a pipe in place of the tokenizer", replaced("tokenizer.json", os.mkfifo), "error"),
    Row("files: a pipe in place of the template", replaced("chat_template.jinja", os.mkfifo)),
    Row("files: a file that may not be read", all_of(llama, lambda folder: (folder / "model.safetensors").chmod(0))),
    Row(
        "files: a sparse tokenizer of 20 GB",
        replaced("tokenizer.json", lambda path: (path.touch(), os.truncate(path, 20 << 30))),
        "error",
    ),
    Row(
        "files: sparse weights of 1 TB",
        replaced("model.safetensors", lambda path: (path.touch(), os.truncate(path, 1 << 40))),
        "error",
    ),
    Row(
        "files: 20,000 files",
        all_of(llama, lambda folder: [(folder / f"x{i}.safetensors").touch() for i in range(20_000)] and None),
        SERVES,
    ),
    Row(
        "files: a name of control characters",
        lambda folder: (named := folder / "a\x1b[31m\nb") and (named.mkdir(), llama(named)) and named,
    ),
    Row(
        "files: pip in the working directory",
        lambda folder: (folder.parent / "pip.py").write_text("open('ran', 'w')")
        and "pypi:no-such-package-zz==1.0/x.gguf",
        "error",
        forbidden="ran",
        env={"PIP_INDEX_URL": "http://127.0.0.1:1/", "PIP_RETRIES": "0"},
    ),
]


def deep_array(depth):
    value = gguf.array(gguf.U8, [b"\x01"])
    for _ in range(depth):
        value = gguf.array(gguf.ARRAY, [value])
    return gguf.ARRAY, value


def cut(n):
    return gguf_file(lambda file: file.data()[:n])


def counts(**numbers):
    def change(file):
        for name, number in numbers.items():
            setattr(file, name, number)

    return gguf_file(change)


def u64(value):
    return gguf.U64, struct.pack("<Q", value)


GGUF = [
    Row("gguf: as it is", gguf_file(), SERVES),
    Row("gguf: empty", cut(0), "error"),
    Row("gguf: only its name", cut(4), "error"),
    Row("gguf: half a header", cut(2000), "error"),
    Row("gguf: one byte short", cut(-1), "error"),
    Row("gguf: half", cut(150_000), "error"),
    Row("gguf: another name", counts(magic=b"FUGG"), "error"),
    Row("gguf: version 0", counts(version=0), "error"),
    Row("gguf: version 2^31", counts(version=1 << 31), "error"),
    Row("gguf: big-endian", counts(version=3 << 24), "error"),
    Row("gguf: 2^64 keys", counts(n_keys=(1 << 64) - 1), "error"),
    Row("gguf: 2^64 tensors", counts(n_tensors=(1 << 64) - 1), "error"),
    Row("gguf: more keys than there are", counts(n_keys=60_000), "error"),
    Row("gguf: a key twice", gguf_file(lambda file: file.keys.append(file.keys[0])), "error"),
    Row("gguf: a tensor twice", gguf_file(lambda file: file.tensors.append(file.tensors[0])), "error"),
    Row("gguf: a text of 2^63", keys(general__name=(gguf.STRING, struct.pack("<Q", 1 << 63))), "error"),
    Row("gguf: an array of 2^61", keys(general__tags=(gguf.ARRAY, gguf.array(gguf.U64, [], 1 << 61))), "error"),
    Row("gguf: arrays of arrays", keys(general__tags=deep_array(50_000)), "error"),
    Row(
        "gguf: arrays of many empty arrays",
        keys(general__tags=(gguf.ARRAY, gguf.array(gguf.ARRAY, [gguf.array(gguf.U8, [])] * 1_000_000))),
    ),
    Row("gguf: an unknown type of value", keys(general__tags=(99, b"")), "error"),
    Row("gguf: a text that is none", keys(general__name=(gguf.STRING, gguf.string(b"\xff\xfe")))),
    Row("gguf: a key of 2^16", gguf_file(lambda file: file.keys.append(("k" * 65_536, 1))), "error"),
    *[
        Row(f"gguf: an alignment of {n}", keys(general__alignment=u64(n)), "error")
        for n in (0, 1, 3, 24, 1 << 31, 1 << 62, 1 << 63)
    ],
    Row("gguf: dimensions of 2^62", tensor("blk.0.attn_q.weight", shape=[1 << 62, 4]), "error"),
    Row("gguf: an empty dimension", tensor("blk.0.attn_q.weight", shape=[0, 64]), "error"),
    Row("gguf: 5 dimensions", tensor("blk.0.attn_q.weight", shape=[64, 64, 1, 1, 1]), "error"),
    Row("gguf: no dimensions", tensor("blk.0.attn_q.weight", shape=[]), "error"),
    Row("gguf: an unknown type of tensor", tensor("blk.0.attn_q.weight", kind=99), "error"),
    Row("gguf: rows that are no blocks", tensor("blk.0.attn_q.weight", kind=12), "error"),
    Row("gguf: an offset of 2^63", tensor("blk.0.attn_q.weight", offset=1 << 63), "error"),
    Row("gguf: an offset of 2^64 - 32", tensor("blk.0.attn_q.weight", offset=(1 << 64) - 32), "error"),
    Row("gguf: overlapping tensors", tensor("blk.0.attn_q.weight", offset=0), "error"),
    Row("gguf: an offset beside the alignment", tensor("blk.0.attn_q.weight", offset=7), "error"),
    *[
        Row(f"gguf: {name} of {n}", keys(**{f"llama__{name}": u64(n)}), "error")
        for name in ("block_count", "attention__head_count", "embedding_length")
        for n in (0, 10**9, (1 << 64) - 1)
    ],
    *[
        Row(f"gguf: a context of {n}", keys(llama__context_length=u64(n)), "error" if n < 64 else None)
        for n in (0, 1, 63, 1 << 40, (1 << 64) - 1)
    ],
    Row("gguf: heads by layer", keys(llama__attention__head_count=[4, 3])),
    Row("gguf: 10^6 heads by layer", keys(llama__attention__head_count=[4] * 10**6)),
    Row("gguf: an epsilon of NaN", keys(llama__attention__layer_norm_rms_epsilon=float("nan")), "error"),
    Row("gguf: a base of NaN", keys(llama__rope__freq_base=float("nan")), "error"),
    Row("gguf: a base of infinity", keys(llama__rope__freq_base=float("inf"))),
    Row("gguf: rotated dimensions of 10^9", keys(llama__rope__dimension_count=10**9)),
    Row("gguf: an unknown architecture", keys(general__architecture="x" * 100_000), "error"),
    Row("gguf: no architecture", keys(general__architecture=None), "error"),
    Row("gguf: no tokens", keys(tokenizer__ggml__tokens=None), "error"),
    Row("gguf: empty tokens", keys(tokenizer__ggml__tokens=(gguf.ARRAY, gguf.array(gguf.STRING, []))), "error"),
    Row(
        "gguf: fewer tokens than the model",
        keys(tokenizer__ggml__tokens=["a", "b"], tokenizer__ggml__token_type=[1, 1]),
    ),
    Row(
        "gguf: more tokens than the model",
        keys(tokenizer__ggml__tokens=[f"t{i}" for i in range(100_000)], tokenizer__ggml__token_type=[1] * 100_000),
        "error",
    ),
    Row("gguf: equal tokens", keys(tokenizer__ggml__tokens=["a"] * 320)),
    Row("gguf: more types than tokens", keys(tokenizer__ggml__token_type=[1] * 10_000), "error"),
    Row("gguf: unknown types of tokens", keys(tokenizer__ggml__token_type=[-(1 << 31)] * 320)),
    Row("gguf: a beginning out of range", keys(tokenizer__ggml__bos_token_id=(1 << 32) - 1)),
    Row("gguf: an end out of range", keys(tokenizer__ggml__eos_token_id=10_000)),
    Row("gguf: an unknown tokenizer", keys(tokenizer__ggml__model="x" * 100_000), "error"),
    Row("gguf: an unknown pre-tokenizer", keys(tokenizer__ggml__pre="x"), "error"),
    Row("gguf: merges that are none", keys(tokenizer__ggml__merges=["", "a", "a b c d", "zzz qqq", " "])),
    Row("gguf: 10^6 merges", keys(tokenizer__ggml__merges=lambda: ["a b"] * 10**6)),
    Row("gguf: SentencePiece without scores", keys(tokenizer__ggml__model="llama"), "error"),
    Row(
        "gguf: SentencePiece with scores of NaN",
        keys(tokenizer__ggml__model="llama", tokenizer__ggml__scores=[float("nan")] * 320),
    ),
    Row(
        "gguf: a unigram with endless scores",
        keys(tokenizer__ggml__model="t5", tokenizer__ggml__scores=[float("-inf")] * 320),
    ),
    Row(
        "gguf: a unigram with a table that is none",
        keys(
            tokenizer__ggml__model="t5",
            tokenizer__ggml__scores=[0.0] * 320,
            tokenizer__ggml__precompiled_charsmap=(gguf.ARRAY, gguf.array(gguf.U8, [b"\xff"] * 1000)),
        ),
    ),
    Row("gguf: WordPiece", keys(tokenizer__ggml__model="bert", tokenizer__ggml__unknown_token_id=(1 << 32) - 1)),
    Row("gguf: a hostile template", keys(tokenizer__chat_template=TEMPLATES["a text doubled 40 times"])),
    Row("gguf: 10^6 parts", keys(split__count=(gguf.U16, struct.pack("<H", 65_535)), split__no=(gguf.U16, b"\0\0"))),
    Row(
        "gguf: a sparse file of 1 TB",
        all_of(gguf_file(), lambda folder: os.truncate(folder / "model.gguf", 1 << 40) or folder / "model.gguf"),
    ),
    Row("gguf: cut after it was loaded", gguf_file(), SERVES, after_ready=lambda path: os.truncate(path, 0)),
    Row("gguf: a pipe", lambda folder: os.mkfifo(folder / "model.gguf") or folder / "model.gguf", "error"),
    Row("gguf: a folder", lambda folder: (folder / "model.gguf").mkdir() or folder / "model.gguf", "error"),
]

EMBEDDING = {"kind": "embedding"}
ENCODERS = [
    Row("encoder: as it is", bert, SERVES, **EMBEDDING),
    *[
        # A model without token types is one.
        Row(
            f"encoder: {name} of {n}",
            config("embedding", **{name: n}),
            "error" if n == 0 and name != "type_vocab_size" else None,
            **EMBEDDING,
        )
        for name in (
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "max_position_embeddings",
            "type_vocab_size",
            "vocab_size",
            "intermediate_size",
        )
        for n in (0, 10**9)
    ],
    Row("encoder: an unknown architecture", config("embedding", model_type="x"), "error", **EMBEDDING),
    Row("encoder: an unknown activation", config("embedding", hidden_act="x"), "error", **EMBEDDING),
    Row("encoder: all NaN", filled(NAN, "embedding"), "error", **EMBEDDING),
    Row("encoder: all infinite", filled(INFINITY, "embedding"), "error", **EMBEDDING),
    Row("encoder: half", weights(lambda data: data[: len(data) // 2], "embedding"), "error", **EMBEDDING),
    Row(
        "encoder: more tokens than the model",
        tokenizer(with_vocabulary({f"zz{i}": 400 + i for i in range(50_000)}), "embedding"),
        "error",
        **EMBEDDING,
    ),
    Row(
        "encoder: an id near 2^32", tokenizer(with_vocabulary({"zz": (1 << 32) - 2}), "embedding"), "error", **EMBEDDING
    ),
    Row(
        "encoder: a normalizer that doubles 40 times",
        tokenizer(changed(normalizer=growing(40)), "embedding"),
        **EMBEDDING,
    ),
    Row("encoder: padding to 10^9", tokenizer(TOKENIZERS["padding to 10^9"], "embedding"), **EMBEDDING),
    Row("encoder: a catastrophic pattern", tokenizer(by_regex("(a+)+$"), "embedding"), **EMBEDDING),
    Row(
        "encoder: pooling that is none",
        files("embedding", modules__json=[{"type": 5}], **{"1_Pooling_S_config__json": {"pooling_mode_cls_token": 7}}),
        **EMBEDDING,
    ),
    Row(
        "encoder: pooling of other dimensions",
        files(
            "embedding",
            **{"1_Pooling_S_config__json": {"word_embedding_dimension": 10**9, "pooling_mode_mean_tokens": True}},
        ),
        **EMBEDDING,
    ),
    Row(
        "encoder: modules outside",
        files(
            "embedding",
            modules__json=[
                {"idx": 0, "name": "0", "path": "../../../etc", "type": "sentence_transformers.models.Transformer"}
            ],
        ),
        **EMBEDDING,
    ),
    Row(
        "encoder: prompts of 10 MB",
        files(
            "embedding",
            config_sentence_transformers__json=lambda: {
                "prompts": {"query": "x" * 10_000_000},
                "default_prompt_name": "query",
            },
        ),
        **EMBEDDING,
    ),
    Row(
        "encoder: lengths of 2^63",
        files("embedding", sentence_bert_config__json={"max_seq_length": 1 << 63, "do_lower_case": 5}),
        **EMBEDDING,
    ),
    Row("encoder: a length of 0", files("embedding", sentence_bert_config__json={"max_seq_length": 0}), **EMBEDDING),
    Row(
        "encoder: an ONNX graph that is none",
        all_of(
            files("embedding", model__onnx=b"\x08\x07" + b"\xff" * 1000),
            lambda folder: (folder / "model.safetensors").unlink(),
        ),
        **EMBEDDING,
    ),
]

ROWS = [
    *SAFETENSORS,
    *CONFIGS,
    *FILES,
    *GGUF,
    *ENCODERS,
    *named("template", TEMPLATES, template),
    *named("tokenizer", TOKENIZERS, tokenizer),
    Row("tokenizer: 5,000 nested normalizers", all_of(llama, nested_normalizer(5000))),
    Row("tokenizer: empty", files(tokenizer__json=b""), "error"),
    Row("tokenizer: deep", files(tokenizer__json=b'{"model":' * 100_000), "error"),
]
