"""Start the server, load it with many clients, and print what they measured, one line of JSON per workload.

    cargo build --release
    python3 benches/serve.py                      # all workloads
    python3 benches/serve.py --workload clients   # one of them
    python3 benches/serve.py --gate               # those with limits; about seven minutes

clients      streamed chats of 1, 4, 8, 16 and 32 clients, no two prompts alike
shared       24 chats that share a system prompt of 600 words: one first, then the others by 8 clients
long-prompt  8 streams while a prompt of 2,000 words arrives
speculation  one client that chats, has code edited and texts summarized, with and without speculative decoding
decisions    64 questions about one text: in one request, and by 16 clients that chat with guided_choice
responses    the same question over and over, with the response cache
embeddings   1, 8 and 32 clients that embed one short text, or 32 long ones, none of them twice
both         4 streams of chat and 8 clients that embed, alone and at the same time
overload     ten times as many clients as the server admits, for a while; refusals with small and large bodies
probes       /livez, /readyz and /metrics while every core is busy, and while large bodies arrive
connections  1,000 slow clients beside a chat and a probe
grammar      4 streams beside a client whose grammar is ambiguous, and beside one that has none
batches      chats alone, then beside a batch: how much longer is the time between tokens?
soak         10,000 requests of all kinds, a third of them cancelled: is anything left over?

The last six have limits. With --gate only they run, and the exit status is 1 if a figure is beyond its limit.

Each workload starts and stops a server of its own on a free port of this machine, with the models that are on
disk. Every request has temperature 0, and most ask for the same number of tokens. Needs nothing but Python.
"""

import argparse
import asyncio
import json
import pathlib
import statistics
import sys
import time

from clients import Server, chat, embed, gaps, ms, options, quantile, together, words
from gates import GATES

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--workload", action="append", help="may be repeated; all of them by default")
parser.add_argument("--clients", default="1,4,8,16,32")
parser.add_argument("--rounds", type=int, default=1)
parser.add_argument("--max-tokens", type=int, default=64)
parser.add_argument("--seconds", type=float, default=30.0, help="duration of overload, probes and connections")
parser.add_argument("--requests", type=int, default=10_000, help="of the soak")
parser.add_argument("--gate", action="store_true", help="only workloads with limits; status 1 if one is missed")
parser.add_argument("--model", help="the server's --model")
parser.add_argument("--binary", type=pathlib.Path, help="the server; the release build by default")
args = parser.parse_args()
vars(options).update(vars(args))


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
    for flags in [[], ["--no-speculation"]]:
        async with Server(*flags) as server:
            for task, contents in TASKS.items():
                answers = [await chat(server, content, 200, ignore_eos=False) for content in contents]
                seconds = sum(answer.stamps[-1] - answer.stamps[0] for answer in answers)
                rates.setdefault(task, []).append(sum(answer.tokens - 1 for answer in answers) / seconds)
    for task, (speculative, without) in rates.items():
        rate = {"tok_s": round(speculative, 1), "tok_s_without": round(without, 1)}
        yield {"task": task, **rate, "times": round(speculative / without, 2)}


async def decisions():
    topics = ["money", "weather", "music", "safety", "a bridge", "a party", "ships", "the spring"]
    statements = [f"The text mentions {topic}, and this is statement {n}." for n in range(8) for topic in topics]
    async with Server() as server:
        await chat(server, "warm up", 1)
        questions = [{"type": "predicate", "instructions": statement} for statement in statements]
        body = json.dumps({"model": "default", "input": REPORT, "questions": questions})
        started = time.perf_counter()
        status, *lines = [line async for line in server.lines("POST", "/v1/decisions", body)]
        together_s = time.perf_counter() - started
        answers = json.loads(lines[-1])["answers"] if status == 200 else []
        assert len(answers) == len(questions), lines

        def ask(statement):
            content = f"{REPORT}\n\nIs this true? {statement} Reply with Yes or No."
            return lambda: chat(server, content, 8, guided_choice=["Yes", "No"], ignore_eos=False)

        by_chat, chat_s = await together([ask(statement) for statement in statements], 16)
        assert all(answer.tokens for answer in by_chat)
        rates = [round(len(questions) / seconds, 1) for seconds in (together_s, chat_s)]
        yield {
            "questions": len(questions),
            "questions_s": rates[0],
            "questions_s_by_chat": rates[1],
            "times": round(chat_s / together_s, 2),
            "outside_mass_mean": round(statistics.mean(answer["outside_mass"] for answer in answers), 3),
        }


async def responses():
    async with Server("--response-cache", "64M") as server:
        first, *others = [await chat(server, "What is a black hole?") for _ in range(50)]
        seconds = [answer.seconds for answer in others]
        yield {"first_ms": ms(first.seconds), "p50_ms": ms(statistics.median(seconds)), "max_ms": ms(max(seconds))}


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
    "speculation": speculation,
    "decisions": decisions,
    "responses": responses,
    "embeddings": embeddings,
    "both": both,
    **GATES,
}


async def main():
    """Prints the lines; returns whether all of them kept their limits."""
    kept = True
    for _ in range(args.rounds):
        for name in args.workload or (GATES if args.gate else WORKLOADS):
            async for line in WORKLOADS[name]():
                kept = kept and not line.get("failed")
                print(json.dumps({"workload": name, **line}), flush=True)
    return kept


sys.exit(0 if asyncio.run(main()) or not args.gate else 1)
