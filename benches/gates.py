"""Workloads with limits: what the server must keep to under overload, large bodies, slow clients and cancellations.

Each yields lines of figures; `limits` has the figures that are bounded and by what.
"""

import asyncio
import contextlib
import json
import pathlib
import random
import statistics
import sys
import time
import urllib.request

from clients import Server, chat, gaps, ms, options, quantile, together, words

PROBER = pathlib.Path(__file__).with_name("prober.py")

REFUSAL_MS, PROBE_MS, CHAT_SECONDS = 10, 20, 2
SOAK_GROWTH_MIB = 1
# How much slower streams may be beside a grammar that is slow than beside a text.
GRAMMAR_TIMES = 1.1
# How much longer the time between tokens may be beside a batch.
BATCH_TIMES = 1.2


async def probe(server, seconds, path, body_bytes=None, pause=0.02):
    """Asks from a process of its own. Returns pairs of status and seconds."""
    body = [] if body_bytes is None else [str(body_bytes)]
    command = [sys.executable, str(PROBER), str(server.port), str(seconds), str(pause), path, *body]
    prober = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await prober.communicate()
    return json.loads(out)


def p99_ms(seconds):
    return ms(quantile(seconds, 0.99)) if seconds else None


def line(limits, **figures):
    """A line of figures; those in `limits` must be there and at most as large."""
    failed = [name for name, limit in limits.items() if figures[name] is None or figures[name] > limit]
    return {**figures, "limits": limits, "failed": failed}


async def overload():
    for what, body_bytes in [("small bodies", 0), ("bodies of 1 MB", 1 << 20)]:
        async with Server("--max-concurrent", "8", "--max-queue", "8", "--kv-memory", "100M") as server:
            answers, refused, other = [], [], []
            ask = lambda i, n: chat(server, f"{i} {n}: write a story about {words(i, 20)}", 32)
            alone, wall = await together([lambda i=i: ask(i, 0) for i in range(96)], 16)
            before = server.resident_mb()
            end = time.perf_counter() + options.seconds

            async def insist(i):
                # Clients of a real server do not all start at the same moment.
                await asyncio.sleep(random.Random(i).random())
                n = 0
                while time.perf_counter() < end:
                    n += 1
                    answer = await ask(i, n)
                    {200: answers, 429: refused}.get(answer.status, other).append(answer)
                    if answer.status == 429:
                        await asyncio.sleep(1)

            async def measure():
                await asyncio.sleep(2)
                return await probe(server, options.seconds - 3, "/v1/chat/completions", body_bytes)

            measured = asyncio.create_task(measure())
            _, seconds = await together([lambda i=i: insist(i) for i in range(160)], 160)
            refusals = [seconds for status, seconds in await measured if status == 429]
            tokens = lambda some: sum(answer.tokens for answer in some)
            yield line(
                {"refusal_p99_ms": REFUSAL_MS, "other": 0},
                what=what,
                answered=len(answers),
                refused_429=len(refused),
                other=len(other),
                refusals_measured=len(refusals),
                refusal_p50_ms=ms(statistics.median(refusals)) if refusals else None,
                refusal_p99_ms=p99_ms(refusals),
                output_tok_s=round(tokens(answers) / seconds, 1),
                output_tok_s_at_capacity=round(tokens(alone) / wall, 1),
                resident_mb=[before, server.resident_mb()],
            )


async def probes():
    async with Server() as server:

        async def write_stories(i, n):
            await chat(server, f"{i} {n}: write a story about {words(i, 80)}", 200)

        async def send_bodies(i, n):
            body = json.dumps({"prompt": f"{i} {n} " + "a b c " * 316_000})
            async for _ in server.lines("POST", "/tokenize", body):
                pass

        for load, job, n_clients in [
            ("8 chats", write_stories, 8),
            ("16 clients with bodies of 1.9 MB", send_bodies, 16),
        ]:
            for path in ["/livez", "/readyz", "/metrics"]:

                async def compute(i):
                    n = 0
                    while True:
                        n += 1
                        with contextlib.suppress(OSError):
                            await job(i, n)

                clients = [asyncio.create_task(compute(i)) for i in range(n_clients)]
                await asyncio.sleep(1)
                answers = await probe(server, options.seconds / 3, path, pause=0.01)
                for client in clients:
                    client.cancel()
                await asyncio.wait(clients)
                seconds = [seconds for _, seconds in answers]
                yield line(
                    {"p99_ms": PROBE_MS, "other": 0},
                    path=path,
                    load=load,
                    other=sum(status != 200 for status, _ in answers),
                    p50_ms=ms(statistics.median(seconds)),
                    p99_ms=p99_ms(seconds),
                )


async def slow_connections():
    """A thousand clients that send a byte now and then."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    beginnings = [b"", b"POST /v1/chat", head + b"x: ", head + b"content-length: 100000\r\n\r\n"]
    async with Server() as server:
        done = asyncio.Event()
        n_open = 0

        async def trickle(i):
            nonlocal n_open
            beginning = beginnings[i % len(beginnings)]
            while not done.is_set():
                with contextlib.suppress(OSError, asyncio.TimeoutError):
                    connect = asyncio.open_connection("127.0.0.1", server.port)
                    _, writer = await asyncio.wait_for(connect, 5)
                    n_open += 1
                    try:
                        writer.write(beginning)
                        while not done.is_set() and not writer.is_closing():
                            await asyncio.sleep(0.5)
                            writer.write(b" " if beginning else b"")
                            await writer.drain()
                    finally:
                        n_open -= 1
                        writer.close()
                await asyncio.sleep(0.1)

        slow = asyncio.gather(*[trickle(i) for i in range(1000)])
        await asyncio.sleep(5)
        connections = n_open
        probing = asyncio.create_task(probe(server, options.seconds, "/livez"))
        chats = []
        end = time.perf_counter() + options.seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            answer = await chat(server, f"{len(chats)}: say hello", 1)
            chats.append(time.perf_counter() - started if answer.status == 200 else float("inf"))
            await asyncio.sleep(0.2)
        answers = await probing
        done.set()
        await slow
        yield line(
            {"probe_p99_ms": PROBE_MS, "chat_max_s": CHAT_SECONDS, "other": 0},
            connections=connections,
            chats=len(chats),
            other=sum(status != 200 for status, _ in answers),
            probe_p99_ms=p99_ms([seconds for _, seconds in answers]),
            chat_max_s=round(max(chats), 2),
        )


async def grammar():
    """Four streams beside a client without and with a grammar in which each text can be read in ever more ways."""
    ambiguous = 'start: start start | "a" | "aa" | "a"'

    async with Server() as server:
        text = lambda i: chat(server, f"{i}: write a story about {words(i, 20)}", 100)

        async def beside(i, **fields):
            """The middle time between tokens of four streams; the others' tokens per second."""
            done = asyncio.Event()
            n_tokens = 0

            async def other():
                nonlocal n_tokens
                n = 0
                while not done.is_set():
                    n += 1
                    answer = await chat(server, f"{i} {n}: write a letter", 100, **fields)
                    n_tokens += answer.tokens

            running = asyncio.create_task(other())
            answers, seconds = await together([lambda k=k: text(100 * i + k) for k in range(12)], 4)
            done.set()
            await running
            return statistics.median(gaps(answers)), n_tokens / seconds

        rounds = [(await beside(i), await beside(i + 50, grammar=ambiguous)) for i in range(5)]
        (plain, _), (constrained, n_tokens) = [
            tuple(map(statistics.median, zip(*some))) for some in zip(*rounds)
        ]
        yield line(
            {"times": GRAMMAR_TIMES},
            gap_p50_beside_text_ms=ms(plain),
            gap_p50_beside_grammar_ms=ms(constrained),
            grammar_tok_s=round(n_tokens, 1),
            times=round(constrained / plain, 2),
        )


class Soak:
    """Requests of all kinds, a third of which are cancelled by their clients."""

    def __init__(self, server):
        self.server = server
        self.n_done = self.n_cancelled = self.n_failed = 0
        # Requests done, and megabytes resident then.
        self.memory = []

    def request(self, n):
        """The route and the body of the request with this number."""
        draw = random.Random(n)
        text = words(n, draw.choice([5, 20, 80]))
        sampling = {
            "max_tokens": draw.choice([1, 4, 16]),
            "stream": draw.random() < 0.5,
            "temperature": draw.choice([0, 1]),
        }
        message = {"messages": [{"role": "user", "content": f"{n} {text}"}]}
        number = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        return draw.choice(
            [
                ("/v1/chat/completions", {**message, **sampling}),
                ("/v1/chat/completions", {**message, **sampling, "n": 2}),
                ("/v1/chat/completions", {**message, **sampling, "guided_json": number}),
                ("/v1/completions", {"prompt": text, **sampling}),
                ("/v1/embeddings", {"input": [f"{n} {i} {text}" for i in range(draw.choice([1, 4]))]}),
                ("/v1/rerank", {"query": f"{n}", "documents": [text, "river"]}),
                ("/tokenize", {"prompt": text * 50}),
            ]
        )

    async def send(self, n):
        path, body = self.request(n)
        draw = random.Random(-n - 1)
        patience = draw.uniform(0, 0.25) if draw.random() < 0.33 else 60

        async def exchange():
            return [part async for part in self.server.lines("POST", path, json.dumps(body))]

        try:
            status, *_ = await asyncio.wait_for(exchange(), patience)
            self.n_failed += status != 200
        except (TimeoutError, asyncio.TimeoutError):
            self.n_cancelled += 1
        except OSError:
            self.n_failed += 1
        self.n_done += 1

    async def rest(self):
        """Notes the memory when nothing runs, and what was freed has been returned to the system."""
        await asyncio.sleep(2.5)
        self.memory.append((self.n_done, self.server.resident_kb() / 1024))

    def growth_mib(self):
        """Growth over the second half by the line of least squares."""
        half = self.memory[len(self.memory) // 2 :]
        slope = statistics.linear_regression([n for n, _ in half], [mib for _, mib in half]).slope
        return round(slope * (half[-1][0] - half[0][0]), 2)


def fetched(server, path, body=None, media_type="application/json"):
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", body, {"content-type": media_type})
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.read().decode()


async def soak():
    # Caches that are full long before half of the requests are done.
    async with Server("--kv-memory", "64M", "--embedding-cache", "1M") as server:
        run = Soak(server)
        started = time.perf_counter()
        for first in range(0, options.requests, 500):
            await together([lambda n=n: run.send(n) for n in range(first, first + 500)], 16)
            await run.rest()
        seconds = time.perf_counter() - started
        [load] = json.loads(fetched(server, "/v1/loads"))["loads"]
        usage = [
            part.rsplit(" ", 1)[1]
            for part in fetched(server, "/metrics").splitlines()
            if part.startswith("vllm:kv_cache_usage_perc")
        ]
        yield line(
            {"growth_mib": SOAK_GROWTH_MIB, "failed_requests": 0, "running": 0, "waiting": 0, "kv_usage": 0},
            requests=run.n_done,
            cancelled=run.n_cancelled,
            failed_requests=run.n_failed,
            seconds=round(seconds),
            resident_mib=[round(run.memory[0][1]), round(run.memory[-1][1])],
            growth_mib=run.growth_mib(),
            running=load["num_running_reqs"],
            waiting=load["num_waiting_reqs"],
            kv_usage=max(map(float, usage)),
        )


def start_batch(server, n):
    """Starts a batch of `n` chats; returns its path."""
    path = "/v1/chat/completions"

    def line_of(i):
        content = f"batch {i}: write a story about {words(i, 80)}"
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 64, "ignore_eos": True}
        return json.dumps({"custom_id": str(i), "method": "POST", "url": path, "body": body})

    part = '--cut\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    file = part % ("file", '; filename="in.jsonl"', "\n".join(map(line_of, range(n))))
    form = (part % ("purpose", "", "batch") + file + "--cut--\r\n").encode()
    uploaded = json.loads(fetched(server, "/v1/files", form, "multipart/form-data; boundary=cut"))
    request = {"input_file_id": uploaded["id"], "endpoint": path, "completion_window": "24h"}
    return "/v1/batches/" + json.loads(fetched(server, "/v1/batches", json.dumps(request).encode()))["id"]


async def batches():
    async with Server() as server:

        async def ask(i, n):
            # Between chats the batch has its turn.
            await asyncio.sleep(random.Random(i).uniform(0.1, 0.5))
            return await chat(server, f"{i} {n}: write a story about {words(i, 20)}", 60)

        live = lambda n: together([lambda i=i: ask(i, n) for i in range(60)], 2)
        await live(0)
        quiet, _ = await live(1)
        path = start_batch(server, 400)
        disturbed, _ = await live(2)
        n_meanwhile = json.loads(fetched(server, path))["request_counts"]["completed"]
        started = time.perf_counter()
        while (batch := json.loads(fetched(server, path)))["status"] != "completed":
            await asyncio.sleep(0.1)
        n_after = batch["request_counts"]["completed"] - n_meanwhile
        alone, beside = (quantile(gaps(some), 0.99) for some in (quiet, disturbed))
        first = lambda some: ms(statistics.median(answer.stamps[0] for answer in some))
        yield line(
            {"times": BATCH_TIMES},
            gap_p99_alone_ms=ms(alone),
            gap_p99_ms=ms(beside),
            times=round(beside / alone, 2),
            ttft_p50_alone_ms=first(quiet),
            ttft_p50_ms=first(disturbed),
            lines_meanwhile=n_meanwhile,
            lines_s_alone=round(n_after / (time.perf_counter() - started), 1),
        )


GATES = {"batches": batches, "overload": overload, "probes": probes, "connections": slow_connections, "grammar": grammar, "soak": soak}
