"""Drive a running server with streamed chats and print tokens per second and time to first token.

    python3 benches/load.py --clients 8 --requests 24

Every request asks for the same number of tokens at temperature 0, with a prompt of its own, so
that nothing can be reused between requests. Needs nothing beyond Python.
"""

import argparse
import http.client
import json
import statistics
import threading
import time
import urllib.parse

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
parser.add_argument("--clients", type=int, default=1)
parser.add_argument("--requests", type=int, default=8)
parser.add_argument("--prompt-words", type=int, default=80)
parser.add_argument("--max-tokens", type=int, default=64)
args = parser.parse_args()
url = urllib.parse.urlparse(args.url)

# Each is one token to most vocabularies.
WORDS = "river stone house night money story water child friend music paper garden winter light city road".split()


def chat(number):
    """One request: (seconds to the first token, prompt tokens, answer tokens)."""
    words = " ".join(WORDS[(number * 31 + i * i) % len(WORDS)] for i in range(args.prompt_words))
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": f"{number}: tell a story about {words}"}],
        "max_tokens": args.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=600)
    started = time.perf_counter()
    connection.request("POST", url.path + "/chat/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    first, usage = None, None
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[len(b"data: ") :])
        usage = chunk.get("usage") or usage
        if first is None and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            first = time.perf_counter() - started
    connection.close()
    return first, usage["prompt_tokens"], usage["completion_tokens"]


def client(numbers, results):
    while True:
        try:
            number = next(numbers)
        except StopIteration:
            return
        results.append(chat(number))


class Counter:
    """Numbers from 0, handed out to several threads."""

    def __init__(self, end):
        self.numbers, self.lock = iter(range(end)), threading.Lock()

    def __next__(self):
        with self.lock:
            return next(self.numbers)


results, numbers = [], Counter(args.requests)
threads = [threading.Thread(target=client, args=(numbers, results)) for _ in range(args.clients)]
started = time.perf_counter()
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
wall = time.perf_counter() - started
firsts, prompts, answers = zip(*results)
print(
    json.dumps(
        {
            "clients": args.clients,
            "requests": len(results),
            "prompt_tokens_mean": round(statistics.mean(prompts), 1),
            "output_tok_s": round(sum(answers) / wall, 1),
            "ttft_p50_ms": round(statistics.median(firsts) * 1e3, 1),
            "ttft_max_ms": round(max(firsts) * 1e3, 1),
        }
    )
)
