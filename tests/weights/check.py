"""Compares a server's answers with the references of one model.

    check.py NAME BASE_URL CACHE ISA    compare; the references are computed at the first call
    check.py --fetch NAME CACHE         download, and print what the server loads
    check.py --kl NAME CACHE BINARY     compare all probabilities, with `bench --kl`
    check.py --list                     print the names and kinds
"""

import json
import math
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request

from models import MODELS, Missing, fetch
from texts import TEXTS

# Mean Kullback-Leibler divergence from the float32 model, over the most likely tokens.
MAX_DIVERGENCE = 1e-4
# The same over the full vocabulary: options of `bench`, and the bound.
FULL_DIVERGENCES = [
    (["--activations", "16"], 1e-5),
    (["--activations", "8"], 5e-4),
    # The target of 0.0005 is met for SmolLM2 only.
    (["--activations", "16", "--kv-format", "int8"], 2e-3),
]
MIN_COSINE = 0.999999
# Where float weights and activations are rounded to bfloat16.
MIN_BF16_COSINE = 0.9995
# Reference tokens that are nearer to each other than this may change places.
TIE = 0.05


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)
    except urllib.error.HTTPError as e:
        sys.exit(f"{url}: {e.code} {e.read().decode()}")


def references(model, folder):
    file = folder / "reference.json"
    if not file.exists() or model.kind == "chat" and not (folder / "predictions.safetensors").exists():
        import reference

        made = getattr(reference, model.kind)(model, folder)
        file.write_text(json.dumps(made))
    return json.loads(file.read_text())


def divergence(expected, found):
    """Kullback-Leibler divergence of log probabilities; all tokens that are not in both count as one."""
    pairs = [(p, found[token]) for token, p in expected if token in found]
    rest, found_rest = (max(1 - math.fsum(map(math.exp, some)), 1e-12) for some in zip(*pairs))
    return math.fsum(math.exp(p) * (p - q) for p, q in pairs) + rest * math.log(rest / found_rest)


def check_chat(model, isa, url, cases):
    divergences, failures = [], []
    for case in cases:
        body = {"messages": [{"role": "user", "content": case["prompt"]}], "temperature": 0, "logprobs": True}
        body |= {"top_logprobs": 20, "max_tokens": len(case["tokens"])}
        answer = post(f"{url}/chat/completions", body)
        if answer["usage"]["prompt_tokens"] != case["n_prompt"]:
            failures.append(f"{case['prompt']!r}: {answer['usage']['prompt_tokens']} tokens, not {case['n_prompt']}")
            continue
        for expected, found in zip(case["tops"], answer["choices"][0]["logprobs"]["content"]):
            divergences.append(divergence(expected, {top["token"]: top["logprob"] for top in found["top_logprobs"]}))
            if found["token"] != expected[0][0]:
                if expected[0][1] - dict(expected).get(found["token"], -math.inf) > TIE:
                    failures.append(f"{case['prompt']!r}: {found['token']!r} instead of {expected[0][0]!r}")
                break
    mean = sum(divergences) / max(len(divergences), 1)
    print(f"{model.name}, {isa} kernels: mean KL {mean:.7f}, largest {max(divergences):.5f}, {len(divergences)} positions")
    if mean > MAX_DIVERGENCE:
        failures.append(f"mean KL {mean} is above {MAX_DIVERGENCE}")
    return failures


def check_embedding(model, isa, url, vectors):
    least, failures = 1.0, []
    bound = MIN_BF16_COSINE if isa == "default" else MIN_COSINE
    answer = post(f"{url}/embeddings", {"input": TEXTS, "model": "default", "truncate": True})
    for text, expected, found in zip(TEXTS, vectors, answer["data"]):
        cosine = math.fsum(a * b for a, b in zip(expected, found["embedding"]))
        least = min(least, cosine)
        if cosine < bound:
            failures.append(f"{text[:40]!r}: cosine {cosine:.7f}")
    print(f"{model.name}, {isa} kernels: least cosine {least:.8f} of {len(vectors)} texts")
    return failures


def command_fetch(name, cache):
    model = by_name(name)
    folder = fetch(model, pathlib.Path(cache))
    if model.template:
        (folder / "template.jinja").write_text(model.template)
    print(folder / model.path)


def command_check(name, url, cache, isa):
    model = by_name(name)
    compare = check_chat if model.kind == "chat" else check_embedding
    failures = compare(model, isa, url, references(model, fetch(model, pathlib.Path(cache))))
    if failures:
        sys.exit("\n".join(f"{model.name}: {failure}" for failure in failures))


def command_kl(name, cache, binary):
    model = by_name(name)
    folder = fetch(model, pathlib.Path(cache))
    references(model, folder)
    failures = []
    for options, bound in FULL_DIVERGENCES:
        predictions = folder / "predictions.safetensors"
        command = [binary, "bench", "--model", folder / model.path, "--kl", predictions, "--json", *options]
        nothing_else = ["--prompt", "0", "--streams", "0", "--depths", "0"]
        report = json.loads(subprocess.run([*command, *nothing_else], check=True, capture_output=True).stdout)
        found = report["divergence"]
        print(f"{name}, {' '.join(options)}: {found}")
        if not found["mean_kl"] <= bound:
            failures.append(f"{name}, {' '.join(options)}: mean KL {found['mean_kl']} is above {bound}")
    if failures:
        sys.exit("\n".join(failures))


def by_name(name):
    return next(model for model in MODELS if model.name == name)


match sys.argv[1:]:
    case ["--list"]:
        print("\n".join(f"{model.name} {model.kind}" for model in MODELS))
    case ["--fetch", name, cache]:
        try:
            command_fetch(name, cache)
        except Missing as e:
            sys.exit(f"{name}: skipped, since {e}")
    case ["--kl", name, cache, binary]:
        command_kl(name, cache, binary)
    case [name, url, cache, isa]:
        command_check(name, url, cache, isa)
    case _:
        sys.exit(__doc__)
