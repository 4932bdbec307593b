"""Start the server, drive it as many clients would, and print what they saw, a line of JSON for each workload.

    cargo build --release
    python3 benches/serve.py                      # all workloads
    python3 benches/serve.py --workload clients   # one of them

clients      streamed chats of 1, 4, 8, 16 and 32 clients, each prompt of its own
shared       24 chats of 8 clients that share a system prompt of 600 words
long-prompt  8 streams while a prompt of 2,000 words arrives
overload     ten times as many clients as are let in, for a while
probes       /livez, /readyz and /metrics while every core computes

Each starts a server of its own on a free port of this machine, with the models that are on disk, and ends it
again. Every request asks for the same number of tokens at temperature 0. Needs nothing beyond Python.
"""

import argparse
import http.client
import json
import pathlib
import random
import re
import statistics
import subprocess
import threading
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--workload", choices=["clients", "shared", "long-prompt", "overload", "probes"])
parser.add_argument("--clients", default="1,4,8,16,32")
parser.add_argument("--rounds", type=int, default=1)
parser.add_argument("--max-tokens", type=int, default=64)
parser.add_argument("--seconds", type=float, default=10.0, help="of overload and probes")
parser.add_argument("--model", help="as the server's")
args = parser.parse_args()

BINARY = pathlib.Path(__file__).resolve().parent.parent / "target" / "release" / "predict-otron-9000"

# Each is one token to most vocabularies.
WORDS = "river stone house night money story water child friend music paper garden winter light city road".split()


def words(seed, n):
    return " ".join(random.Random(seed).choice(WORDS) for _ in range(n))


class Server:
    """A server of its own, as long as the block lasts."""

    def __init__(self, *options):
        model = ["--model", args.model] if args.model else []
        self.command = [str(BINARY), "--offline", "--port", "0", *model, *options]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        while self.get("/readyz")[0] != 200:
            time.sleep(0.05)
        chat(self, "warm up", 8)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def get(self, path):
        """Status and seconds."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        started = time.perf_counter()
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status, time.perf_counter() - started

    def resident_mb(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024


class Answer:
    """What a client saw: the status; when each piece of text came, in seconds from the start; token counts."""

    def __init__(self, status):
        self.status, self.stamps, self.prompt, self.tokens, self.seconds = status, [], 0, 0, 0.0


def chat(server, content, max_tokens=None, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    body = {
        "messages": [*messages, {"role": "user", "content": content}],
        "max_tokens": max_tokens or args.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    started = time.perf_counter()
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    answer = Answer(response.status)
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[len(b"data: ") :])
        if usage := chunk.get("usage"):
            answer.prompt, answer.tokens = usage["prompt_tokens"], usage["completion_tokens"]
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            answer.stamps.append(time.perf_counter() - started)
    answer.seconds = time.perf_counter() - started
    connection.close()
    return answer


def together(jobs, n_clients):
    """Does jobs with so many clients; gives what each came to, and the seconds that all took."""
    jobs, results, lock = iter(jobs), [], threading.Lock()

    def client():
        while True:
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            result = job()
            with lock:
                results.append(result)

    threads = [threading.Thread(target=client) for _ in range(n_clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, time.perf_counter() - started


def ms(seconds):
    return round(1e3 * seconds, 1)


def quantile(numbers, share):
    return sorted(numbers)[min(len(numbers) - 1, int(share * len(numbers)))]


def gaps(answers):
    return [b - a for answer in answers for a, b in zip(answer.stamps, answer.stamps[1:])]


def figures(answers, wall):
    firsts = [answer.stamps[0] for answer in answers]
    return {
        "requests": len(answers),
        "prompt_tokens_mean": round(statistics.mean(answer.prompt for answer in answers), 1),
        "output_tok_s": round(sum(answer.tokens for answer in answers) / wall, 1),
        "ttft_p50_ms": ms(statistics.median(firsts)),
        "ttft_max_ms": ms(max(firsts)),
        "gap_p50_ms": ms(statistics.median(gaps(answers))),
        "gap_p99_ms": ms(quantile(gaps(answers), 0.99)),
    }


def clients():
    for n in map(int, args.clients.split(",")):
        with Server() as server:
            contents = [f"{i}: tell a story about {words(i, 80)}" for i in range(max(3, 3 * n))]
            answers, wall = together([lambda c=c: chat(server, c) for c in contents], n)
            yield {"clients": n, **figures(answers, wall)}


def shared():
    with Server() as server:
        system = words("system", 600)
        contents = [f"{i}: tell a story about {words(i, 80)}" for i in range(24)]
        answers, wall = together([lambda c=c: chat(server, c, system=system) for c in contents], 8)
        yield {"clients": 8, **figures(answers, wall)}


def long_prompt():
    with Server() as server:
        jobs = [lambda i=i: chat(server, f"{i}: tell a story", 300) for i in range(8)]
        quiet, _ = together(jobs, 8)

        def late():
            time.sleep(1.5)
            chat(server, words("long", 2000), 1)

        disturbed, _ = together([*jobs, late], 9)
        before, after = (quantile(gaps(filter(None, some)), 0.99) for some in (quiet, disturbed))
        yield {"gap_p99_quiet_ms": ms(before), "gap_p99_ms": ms(after), "times": round(after / before, 1)}


def overload():
    with Server("--max-concurrent", "8", "--max-queue", "8") as server:
        end = time.perf_counter() + args.seconds
        answers, refusals, other = [], [], []

        def insist(i):
            n = 0
            while time.perf_counter() < end:
                n += 1
                answer = chat(server, f"{i} {n}: tell a story about {words(i, 20)}", 32)
                {200: answers, 429: refusals}.get(answer.status, other).append(answer)
                if answer.status == 429:
                    time.sleep(1)

        alone, wall = together([lambda i=i: chat(server, f"{i}: {words(i, 20)}", 32) for i in range(48)], 16)
        before = server.resident_mb()
        _, seconds = together([lambda i=i: insist(i) for i in range(160)], 160)
        tokens = lambda some: sum(answer.tokens for answer in some)
        yield {
            "answered": len(answers),
            "refused_429": len(refusals),
            "other": len(other),
            "refusal_p99_ms": ms(quantile([answer.seconds for answer in refusals], 0.99)),
            "output_tok_s": round(tokens(answers) / seconds, 1),
            "output_tok_s_at_capacity": round(tokens(alone) / wall, 1),
            "resident_mb": [before, server.resident_mb()],
        }


def probes():
    with Server() as server:
        end = time.perf_counter() + args.seconds
        times = {"/livez": [], "/readyz": [], "/metrics": []}

        def ask():
            while time.perf_counter() < end:
                for path, seconds in times.items():
                    seconds.append(server.get(path)[1])
                time.sleep(0.01)

        def compute(i):
            n = 0
            while time.perf_counter() < end:
                n += 1
                chat(server, f"{i} {n}: tell a story about {words(i, 80)}", 200)

        together([ask, *[lambda i=i: compute(i) for i in range(8)]], 9)
        for path, seconds in times.items():
            yield {"path": path, "p50_ms": ms(statistics.median(seconds)), "p99_ms": ms(quantile(seconds, 0.99))}


WORKLOADS = {
    "clients": clients,
    "shared": shared,
    "long-prompt": long_prompt,
    "overload": overload,
    "probes": probes,
}
for _ in range(args.rounds):
    for name, workload in WORKLOADS.items():
        if args.workload in (None, name):
            for line in workload():
                print(json.dumps({"workload": name, **line}), flush=True)
