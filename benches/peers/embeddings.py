"""Embed the same tokens with this project and its peers, alternating; print medians and ratios.

    cargo build --release
    python3 benches/peers/embeddings.py --model FOLDER --rounds 3

FOLDER has config.json, model.safetensors and the tokenizer's files of a BERT, such as all-MiniLM-L6-v2. Its
weights are exported to an ONNX graph, which ONNX Runtime and fastembed (built on it) run in float32, and
OpenVINO in float32 and bfloat16. The peers compute in their own process, padded to the longest text; this
project is asked over HTTP, without its cache. All get token ids except fastembed, which gets the text of the
same tokens. The peers are installed from the Python package index into an environment of their own,
target/embedding-peers.
"""

import argparse
import base64
import http.client
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
OURS = "predict-otron-9000"
# Each shape's name and the length of its texts in tokens.
SHAPES = {
    "32 x 128": [128] * 32,
    "32 x 16": [16] * 32,
    "1 x 16": [16],
    "32 x 256": [256] * 32,
    "32 x 16 to 256": [16 + 97 * i % 241 for i in range(32)],
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, type=pathlib.Path, help="a folder with a BERT")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target" / "release" / OURS)
parser.add_argument("--python", help="a Python that has the peers, instead of target/embedding-peers")
parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
args = parser.parse_args()


def environment():
    """Returns the Python of the environment with the peers, creating it if needed."""
    folder = ROOT / "target" / "embedding-peers"
    python = folder / "bin" / "python"
    requirements = HERE / "requirements-embeddings.txt"
    installed = folder / requirements.name
    if not installed.exists() or installed.read_text() != requirements.read_text():
        venv.create(folder, with_pip=True, clear=True)
        command = [python, "-m", "pip", "install", "-r", requirements]
        subprocess.run(command, check=True, stdout=sys.stderr)
        shutil.copy(requirements, installed)
    return python


if not args.inside:
    python = args.python or environment()
    os.execv(python, [str(python), __file__, "--inside", *sys.argv[1:]])

import numpy as np
import onnx
import onnxruntime
import openvino
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from tokenizers import Tokenizer

config = json.loads((args.model / "config.json").read_text())
tensors = load_file(args.model / "model.safetensors")


def graph():
    """The encoder as ONNX: ids, kinds and mask of padded texts to their last states, under the usual names."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nodes, weights = [], {}

    def constant(name, array):
        weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def node(kind, *inputs, **attributes):
        output = f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def linear(x, name):
        weight = constant(f"{name}.weight", tensors[f"{name}.weight"].T)
        return node("Add", node("MatMul", x, weight), constant(f"{name}.bias", tensors[f"{name}.bias"]))

    def norm(x, name):
        scale, bias = [constant(f"{name}.{part}", tensors[f"{name}.{part}"]) for part in ("weight", "bias")]
        return node("LayerNormalization", x, scale, bias, epsilon=config["layer_norm_eps"])

    def number(name, value):
        return constant(name, np.array(value, np.float32))

    split = constant("split", np.array([0, 0, heads, hidden // heads], np.int64))
    join = constant("join", np.array([0, 0, hidden], np.int64))
    zero, one, two = [constant(f"i{i}", np.array([i], np.int64)) for i in range(3)]
    axes = constant("axes", np.array([1, 2], np.int64))
    length = node("Slice", node("Shape", "input_ids"), one, two)
    table = constant("positions", tensors["embeddings.position_embeddings.weight"])
    words = node("Gather", constant("words", tensors["embeddings.word_embeddings.weight"]), "input_ids")
    kinds = node("Gather", constant("kinds_table", tensors["embeddings.token_type_embeddings.weight"]), "token_type_ids")
    x = node("Add", node("Add", words, kinds), node("Slice", table, zero, length))
    x = norm(x, "embeddings.LayerNorm")
    visible = node("Unsqueeze", node("Cast", "attention_mask", to=TensorProto.FLOAT), axes)
    hiding = node("Mul", node("Sub", visible, number("f1", 1)), number("large", 1e9))
    for idx in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{idx}"

        def heads_of(name, order):
            projected = linear(x, f"{layer}.attention.self.{name}")
            return node("Transpose", node("Reshape", projected, split), perm=order)

        scores = node("MatMul", heads_of("query", [0, 2, 1, 3]), heads_of("key", [0, 2, 3, 1]))
        scores = node("Add", node("Div", scores, number("root", (hidden / heads) ** 0.5)), hiding)
        mixed = node("MatMul", node("Softmax", scores, axis=-1), heads_of("value", [0, 2, 1, 3]))
        mixed = node("Reshape", node("Transpose", mixed, perm=[0, 2, 1, 3]), join)
        x = norm(node("Add", linear(mixed, f"{layer}.attention.output.dense"), x), f"{layer}.attention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        erf = node("Add", node("Erf", node("Div", inner, number("root2", 2**0.5))), number("f1", 1))
        inner = node("Mul", node("Mul", inner, erf), number("half", 0.5))
        x = norm(node("Add", linear(inner, f"{layer}.output.dense"), x), f"{layer}.output.LayerNorm")
    nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"]))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    integers = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "len"]) for name in inputs]
    states = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", "len", hidden])
    made = helper.make_graph(nodes, "bert", integers, [states], list(weights.values()))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def padded(texts):
    longest = max(map(len, texts))
    ids = np.zeros((len(texts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": mask}


def pooled(states, mask):
    mask = mask[..., None].astype(np.float32)
    vectors = (states * mask).sum(1) / mask.sum(1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def onnx_runtime(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def embed(texts):
        inputs = padded(texts)
        return pooled(session.run(None, inputs)[0], inputs["attention_mask"])

    return embed


def open_vino(model, precision):
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": args.threads}
    compiled = core.compile_model(core.read_model(model), "CPU", hints)

    def embed(texts):
        inputs = padded(texts)
        return pooled(compiled(inputs)[0], inputs["attention_mask"])

    return embed


def fast_embed(model, folder):
    """Returns fastembed with the graph and the tokenizer's files in a folder of its own."""
    for name in "config.json", "tokenizer.json", "special_tokens_map.json":
        shutil.copy(args.model / name, folder)
    # By default it would truncate texts where the model's authors did.
    longest = {"model_max_length": config["max_position_embeddings"], "pad_token": "[PAD]"}
    pathlib.Path(folder, "tokenizer_config.json").write_text(json.dumps(longest))
    pathlib.Path(folder, "model.onnx").write_bytes(model)
    TextEmbedding.add_custom_model(
        model="measured",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="measured"),
        dim=config["hidden_size"],
        model_file="model.onnx",
    )
    embedding = TextEmbedding("measured", specific_model_path=folder, threads=args.threads)

    def embed(texts):
        words = [" ".join(map(tokenizer.id_to_token, text[1:-1])) for text in texts]
        return np.array(list(embedding.embed(words)))

    return embed


class Ours:
    """This project's server, which runs as long as the block."""

    def __enter__(self):
        command = [args.binary, "--offline", "--port", "0", "--embedding-model", args.model.resolve()]
        command += ["--embedding-cache", "0", "--threads", str(args.threads)]
        self.process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.connection = http.client.HTTPConnection("127.0.0.1", int(found[1]))
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def __call__(self, texts):
        # The server adds the model's first and last tokens.
        body = json.dumps({"input": [text[1:-1] for text in texts], "encoding_format": "base64"})
        self.connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
        answer = json.loads(self.connection.getresponse().read())
        vectors = [base64.b64decode(item["embedding"]) for item in answer["data"]]
        return np.array([np.frombuffer(vector, np.float32) for vector in vectors])


def rate(embed, texts):
    """Returns texts per second."""
    embed(texts)
    seconds, end = [], time.perf_counter() + 2
    while len(seconds) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        embed(texts)
        seconds.append(time.perf_counter() - started)
    return len(texts) / statistics.median(seconds)


tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
# Words that are one token wherever they occur, so that ids and text mean the same to every system.
words = [idx for word, idx in sorted(tokenizer.get_vocab().items()) if re.fullmatch("[a-z]{3,}", word)]
tokenizer.no_padding()
first, last = tokenizer.encode("").ids
random = np.random.default_rng(1)
texts = {
    name: [[first, *random.choice(words, length - 2).tolist(), last] for length in lengths]
    for name, lengths in SHAPES.items()
}
model = graph().SerializeToString()
with Ours() as ours, tempfile.TemporaryDirectory() as folder:
    systems = {
        OURS: ours,
        "fastembed": fast_embed(model, folder),
        "ONNX Runtime float32": onnx_runtime(model),
        "OpenVINO float32": open_vino(model, "f32"),
        "OpenVINO bfloat16": open_vino(model, "bf16"),
    }
    expected = {name: systems["ONNX Runtime float32"](of_shape) for name, of_shape in texts.items()}
    results, cosines = {}, {}
    for _ in range(args.rounds):
        for name, of_shape in texts.items():
            for system, embed in systems.items():
                results.setdefault((name, system), []).append(rate(embed, of_shape))
                cosine = (embed(of_shape) * expected[name]).sum(1).min()
                cosines[system] = min(cosine, cosines.get(system, 1))

print(f"texts per second (ours / theirs), medians of {args.rounds} rounds, {args.threads} threads\n")
print(f"| | {' | '.join(systems)} |")
print(f"| --- |{' --- |' * len(systems)}")
for name in SHAPES:
    median = {system: statistics.median(results[name, system]) for system in systems}
    cells = [f"{median[OURS]:,.0f}"]
    cells += [f"{theirs:,.0f} ({median[OURS] / theirs:.1f} x)" for theirs in list(median.values())[1:]]
    print(f"| {name} | {' | '.join(cells)} |")
print(f"| smallest cosine to float32 | {' | '.join(f'{cosines[system]:.6f}' for system in systems)} |")
