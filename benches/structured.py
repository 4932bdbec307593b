"""Measure the cost of structured output: time per token, compared with unconstrained responses.

Each round runs all kinds in turn, so that all see the same machine; figures are medians over rounds.
Usage: BASE_URL=http://127.0.0.1:8080/v1 structured.py [rounds] [clients]
"""

import json
import os
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 9
CLIENTS = int(sys.argv[2]) if len(sys.argv) > 2 else 1
N_TOKENS = 128

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "format": "email", "maxLength": 60},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "email", "tags"],
    "additionalProperties": False,
}
LONG = {"type": "array", "items": PERSON, "minItems": 20}
KINDS = {
    "nothing": {"ignore_eos": True},
    "any JSON object": {"guided_json": {"type": "object", "minProperties": 60}},
    "JSON schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "people", "schema": LONG}}},
    "regular expression": {"guided_regex": "([A-Z][a-z]{1,9}( [a-z]{1,9}){3,9}\\. ){40}"},
    "Lark": {"grammar": "start: line{40}\nline: /[a-z]+/ \" = \" sum \"\\n\"\nsum: NUMBER (\" + \" NUMBER)*\nNUMBER: /[0-9]{1,4}/"},
}


def milliseconds_per_token(fields, seed):
    body = {
        "model": "default", "stream": True, "max_tokens": N_TOKENS, "seed": seed,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "Write a list of people."}], **fields,
    }
    request = urllib.request.Request(
        os.environ["BASE_URL"] + "/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    times, n_tokens = [], 0
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                times.append(time.perf_counter())
            if chunk.get("usage"):
                n_tokens = chunk["usage"]["completion_tokens"]
    return (times[-1] - times[0]) * 1e3 / max(n_tokens - 1, 1), n_tokens


def main():
    found = {kind: [] for kind in KINDS}
    counts = {kind: 0 for kind in KINDS}
    with ThreadPoolExecutor(CLIENTS) as pool:
        for round_ in range(ROUNDS + 1):
            for kind, fields in KINDS.items():
                seeds = range(1000 * round_, 1000 * round_ + CLIENTS)
                all_ = list(pool.map(lambda seed: milliseconds_per_token(fields, seed), seeds))
                if round_ > 0:  # the first round warms up
                    found[kind].append(statistics.median(time for time, _ in all_))
                    counts[kind] += sum(n for _, n in all_)
    free = statistics.median(found["nothing"])
    for kind, times in found.items():
        median = statistics.median(times)
        print(f"{kind:20} {median:7.3f} ms per token, {100 * (median / free - 1):+5.1f} %  ({counts[kind]} tokens)")


if __name__ == "__main__":
    main()
