"""Start the server, load it with many clients, and print what they measured, one line of JSON per workload.

    cargo build --release
    python3 benches/serve.py                      # all workloads
    python3 benches/serve.py --workload clients   # one of them

clients      streamed chats of 1, 4, 8, 16 and 32 clients, no two prompts alike
shared       24 chats that share a system prompt of 600 words: one first, then the others by 8 clients
long-prompt  8 streams while a prompt of 2,000 words arrives
overload     ten times as many clients as the server admits, for a while
probes       /livez, /readyz and /metrics while every core is busy
speculation  one client that chats, has code edited and texts summarized, with and without speculative decoding
responses    the same question over and over, with the response cache
embeddings   1, 8 and 32 clients that embed one short text, or 32 long ones, none of them twice
both         4 streams of chat and 8 clients that embed, alone and at the same time

Each workload starts and stops a server of its own on a free port of this machine, with the models that are on
disk. Every request has temperature 0, and most ask for the same number of tokens. Needs nothing but Python.
"""

import argparse
import asyncio
import json
import pathlib
import random
import re
import statistics
import subprocess
import threading
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--workload", action="append", help="may be repeated; all of them by default")
parser.add_argument("--clients", default="1,4,8,16,32")
parser.add_argument("--rounds", type=int, default=1)
parser.add_argument("--max-tokens", type=int, default=64)
parser.add_argument("--seconds", type=float, default=30.0, help="duration of overload and probes")
parser.add_argument("--model", help="the server's --model")
parser.add_argument("--binary", type=pathlib.Path, help="the server; the release build by default")
args = parser.parse_args()

BINARY = pathlib.Path(__file__).resolve().parent.parent / "target" / "release" / "predict-otron-9000"

# Each is one token in most vocabularies.
WORDS = "river stone house night money story water child friend music paper garden winter light city road".split()


def words(seed, n):
    return " ".join(random.Random(seed).choice(WORDS) for _ in range(n))


class Server:
    """A server that runs as long as the block."""

    def __init__(self, *options):
        model = ["--model", args.model] if args.model else []
        self.command = [str(args.binary or BINARY), "--offline", "--port", "0", *model, *options]

    async def __aenter__(self):
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        while (await self.get("/readyz"))[0] != 200:
            await asyncio.sleep(0.05)
        await chat(self, "warm up", 8)
        return self

    async def __aexit__(self, *_):
        self.process.kill()
        self.process.wait()

    async def lines(self, method, path, body=""):
        """The status of a response, then its lines."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        yield int((await reader.readline()).split()[1])
        async for line in reader:
            yield line
        writer.close()

    async def get(self, path):
        """Returns the status and the seconds it took."""
        started = time.perf_counter()
        status, *_ = [line async for line in self.lines("GET", path)]
        return status, time.perf_counter() - started

    def resident_mb(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024


class Answer:
    """A response as a client saw it: status, arrival of each piece of text in seconds from the start, token counts."""

    def __init__(self):
        self.status, self.stamps, self.prompt, self.tokens, self.seconds = None, [], 0, 0, 0.0


async def chat(server, content, max_tokens=None, system=None, **fields):
    messages = [{"role": "system", "content": system}] if system else []
    body = {
        "messages": [*messages, {"role": "user", "content": content}],
        "max_tokens": max_tokens or args.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    answer = Answer()
    started = time.perf_counter()
    async for line in server.lines("POST", "/v1/chat/completions", json.dumps(body)):
        if answer.status is None:
            answer.status = line
        elif b'"usage":{' in line:
            usage = json.loads(line[len(b"data: ") :])["usage"]
            answer.prompt, answer.tokens = usage["prompt_tokens"], usage["completion_tokens"]
        elif b'"delta":{"content":' in line:
            answer.stamps.append(time.perf_counter() - started)
    answer.seconds = time.perf_counter() - started
    return answer


async def together(jobs, n_clients):
    """Runs jobs, functions that return an awaitable, on `n_clients` clients; returns their results and the seconds
    that all of them took."""
    jobs, results = iter(jobs), []

    async def client():
        for job in jobs:
            results.append(await job())

    started = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(n_clients)])
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


async def clients():
    for n in map(int, args.clients.split(",")):
        async with Server() as server:
            contents = [f"{i}: write a long story about {words(i, 80)}" for i in range(max(3, 3 * n))]
            answers, wall = await together([lambda c=c: chat(server, c) for c in contents], n)
            yield {"clients": n, **figures(answers, wall)}


async def shared():
    async with Server() as server:
        system = words("system", 600)
        jobs = [lambda i=i: chat(server, f"{i}: write a long story about {words(i, 80)}", system=system) for i in range(24)]
        [first], alone = await together(jobs[:1], 1)
        answers, wall = await together(jobs[1:], 8)
        yield {
            "clients": 8,
            **figures(answers, wall),
            "ttft_first_ms": ms(first.stamps[0]),
            "output_tok_s_all": round(sum(answer.tokens for answer in [first, *answers]) / (alone + wall), 1),
        }


async def long_prompt():
    async with Server() as server:
        jobs = [lambda i=i: chat(server, f"{i}: tell a story", 300) for i in range(8)]
        quiet, _ = await together(jobs, 8)

        async def late():
            await asyncio.sleep(1.5)
            await chat(server, words("long", 2000), 1)

        disturbed, _ = await together([*jobs, late], 9)
        before, after = (quantile(gaps(filter(None, some)), 0.99) for some in (quiet, disturbed))
        yield {"gap_p99_quiet_ms": ms(before), "gap_p99_ms": ms(after), "times": round(after / before, 1)}


async def overload():
    async with Server("--max-concurrent", "8", "--max-queue", "8", "--kv-memory", "100M") as server:
        answers, refusals, other = [], [], []
        ask = lambda i, n: chat(server, f"{i} {n}: write a story about {words(i, 20)}", 32)
        alone, wall = await together([lambda i=i: ask(i, 0) for i in range(96)], 16)
        before = server.resident_mb()
        end = time.perf_counter() + args.seconds

        async def insist(i):
            # Clients of a real server do not all start at the same moment.
            await asyncio.sleep(random.Random(i).random())
            n = 0
            while time.perf_counter() < end:
                n += 1
                answer = await ask(i, n)
                {200: answers, 429: refusals}.get(answer.status, other).append(answer)
                if answer.status == 429:
                    await asyncio.sleep(1)

        _, seconds = await together([lambda i=i: insist(i) for i in range(160)], 160)
        tokens = lambda some: sum(answer.tokens for answer in some)
        yield {
            "answered": len(answers),
            "refused_429": len(refusals),
            "other": len(other),
            "refusal_p50_ms": ms(quantile([answer.seconds for answer in refusals], 0.5)),
            "refusal_p99_ms": ms(quantile([answer.seconds for answer in refusals], 0.99)),
            "output_tok_s": round(tokens(answers) / seconds, 1),
            "output_tok_s_at_capacity": round(tokens(alone) / wall, 1),
            "resident_mb": [before, server.resident_mb()],
        }


async def probes():
    async with Server() as server:
        end = time.perf_counter() + args.seconds
        times = {"/livez": [], "/readyz": [], "/metrics": []}

        async def ask():
            while time.perf_counter() < end:
                for path, seconds in times.items():
                    seconds.append((await server.get(path))[1])
                await asyncio.sleep(0.01)

        async def compute(i):
            n = 0
            while time.perf_counter() < end:
                n += 1
                await chat(server, f"{i} {n}: write a story about {words(i, 80)}", 200)

        await together([ask, *[lambda i=i: compute(i) for i in range(8)]], 9)
        for path, seconds in times.items():
            yield {"path": path, "p50_ms": ms(statistics.median(seconds)), "p99_ms": ms(quantile(seconds, 0.99))}


CODE = """class Account:
    def __init__(self, owner, balance):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance = self.balance + amount
        return self.balance

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance = self.balance - amount
        return self.balance
"""
REPORT = (
    "The town council met on Tuesday to discuss the old bridge over the river. Mayor Ellen Marsh said that the "
    "bridge was no longer safe for heavy trucks. Two engineers had found cracks in the northern pillar. Repairs "
    "would take eight months and cost four million dollars. Shop owners feared that they would lose customers "
    "during that time. The council decided to open a small ferry and to begin the repairs in the spring."
)
TASKS = {
    "chat": ["What is a black hole?", "Why is the sky blue?", "How do I bake bread?", "Who was Napoleon?"],
    "code": [
        f"Rename balance to money in this code and print all of it:\n{CODE}",
        f"Add a docstring to each method of this class:\n{CODE}",
    ],
    "quotes": [
        f"Summarise this report and quote its most important sentences word for word:\n{REPORT}",
        f"List what the mayor and the council said, with quotes from the report:\n{REPORT}",
    ],
}


async def speculation():
    rates = {}
    for options in [[], ["--no-speculation"]]:
        async with Server(*options) as server:
            for task, contents in TASKS.items():
                answers = [await chat(server, content, 200, ignore_eos=False) for content in contents]
                seconds = sum(answer.stamps[-1] - answer.stamps[0] for answer in answers)
                rates.setdefault(task, []).append(sum(answer.tokens - 1 for answer in answers) / seconds)
    for task, (speculative, without) in rates.items():
        rate = {"tok_s": round(speculative, 1), "tok_s_without": round(without, 1)}
        yield {"task": task, **rate, "times": round(speculative / without, 2)}


async def responses():
    async with Server("--response-cache", "64M") as server:
        first, *others = [await chat(server, "What is a black hole?") for _ in range(50)]
        seconds = [answer.seconds for answer in others]
        yield {"first_ms": ms(first.seconds), "p50_ms": ms(statistics.median(seconds)), "max_ms": ms(max(seconds))}


async def embed(server, texts):
    """Returns the seconds and the tokens of an embeddings request."""
    body = json.dumps({"input": texts, "encoding_format": "base64"})
    started = time.perf_counter()
    status, *lines = [line async for line in server.lines("POST", "/v1/embeddings", body)]
    assert status == 200, lines
    usage = json.loads(lines[-1])["usage"]
    return time.perf_counter() - started, usage["total_tokens"]


def embedding_jobs(server, seconds, n_texts, n_words, seed=0):
    """Yields requests with texts that are new each time, until the time is over."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        seed += 1
        texts = [f"{seed} {i} {words(seed * 1000 + i, n_words - 3)}" for i in range(n_texts)]
        yield lambda texts=texts: embed(server, texts)


def embedding_figures(results, wall, n_texts):
    seconds = [seconds for seconds, _ in results]
    return {
        "requests": len(results),
        "tokens_mean": round(sum(tokens for _, tokens in results) / len(results) / n_texts, 1),
        "texts_s": round(len(results) * n_texts / wall, 1),
        "p50_ms": ms(statistics.median(seconds)),
        "p99_ms": ms(quantile(seconds, 0.99)),
    }


async def embeddings():
    async with Server() as server:
        await embed(server, ["warm up"])
        for n_texts, n_words in [(1, 14), (32, 126)]:
            for n in [1, 8, 32]:
                jobs = embedding_jobs(server, 5, n_texts, n_words, seed=1000 * n)
                results, wall = await together(jobs, n)
                yield {"texts": n_texts, "clients": n, **embedding_figures(results, wall, n_texts)}


async def both():
    contents = [f"{i}: write a long story about {words(i, 80)}" for i in range(12)]
    async with Server() as server:
        await embed(server, ["warm up"])

        async def stories(seed):
            return await together([lambda c=c: chat(server, f"{seed} {c}") for c in contents], 4)

        async def texts(seconds, seed):
            return await together(embedding_jobs(server, seconds, 8, 126, seed), 8)

        answers, wall = await stories("alone")
        yield {"what": "chat alone", **figures(answers, wall)}
        results, wall = await texts(5, 0)
        yield {"what": "embeddings alone", **embedding_figures(results, wall, 8)}
        embedding = asyncio.create_task(texts(12, 10_000))
        await asyncio.sleep(0.5)
        answers, wall = await stories("together")
        yield {"what": "chat beside embeddings", **figures(answers, wall)}
        results, wall = await embedding
        yield {"what": "embeddings beside chat", **embedding_figures(results, wall, 8)}


WORKLOADS = {
    "clients": clients,
    "shared": shared,
    "long-prompt": long_prompt,
    "overload": overload,
    "probes": probes,
    "speculation": speculation,
    "responses": responses,
    "embeddings": embeddings,
    "both": both,
}


async def main():
    for _ in range(args.rounds):
        for name in args.workload or WORKLOADS:
            async for line in WORKLOADS[name]():
                print(json.dumps({"workload": name, **line}), flush=True)


asyncio.run(main())
