"""Clients of the server for the benchmarks: they start it, chat, embed, and note when what came."""

import argparse
import asyncio
import json
import pathlib
import random
import re
import subprocess
import threading
import time

BINARY = pathlib.Path(__file__).resolve().parent.parent / "target" / "release" / "predict-otron-9000"

# The server's --model, its binary, the tokens of a chat, how long workloads last and
# how many requests a soak has; the command line may change them.
options = argparse.Namespace(model=None, binary=None, max_tokens=64, seconds=30.0, requests=10_000)

# Each is one token in most vocabularies.
WORDS = "river stone house night money story water child friend music paper garden winter light city road".split()


def words(seed, n):
    return " ".join(random.Random(seed).choice(WORDS) for _ in range(n))


class Server:
    """A server that runs as long as the block."""

    def __init__(self, *flags):
        model = ["--model", options.model] if options.model else []
        self.command = [str(options.binary or BINARY), "--offline", "--port", "0", *model, *flags]

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
        try:
            writer.write((head + body).encode())
            yield int((await reader.readline()).split()[1])
            async for line in reader:
                yield line
        finally:
            writer.close()

    async def get(self, path):
        """Returns the status and the seconds it took."""
        started = time.perf_counter()
        status, *_ = [line async for line in self.lines("GET", path)]
        return status, time.perf_counter() - started

    def resident_kb(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    def resident_mb(self):
        return self.resident_kb() // 1024


class Answer:
    """A response as a client saw it: status, arrival of each piece of text in seconds from the start, token counts."""

    def __init__(self):
        self.status, self.stamps, self.prompt, self.tokens, self.seconds = None, [], 0, 0, 0.0


async def chat(server, content, max_tokens=None, system=None, **fields):
    messages = [{"role": "system", "content": system}] if system else []
    body = {
        "messages": [*messages, {"role": "user", "content": content}],
        "max_tokens": max_tokens or options.max_tokens,
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


async def embed(server, texts):
    """Returns the seconds and the tokens of an embeddings request."""
    body = json.dumps({"input": texts, "encoding_format": "base64"})
    started = time.perf_counter()
    status, *lines = [line async for line in server.lines("POST", "/v1/embeddings", body)]
    assert status == 200, lines
    usage = json.loads(lines[-1])["usage"]
    return time.perf_counter() - started, usage["total_tokens"]
