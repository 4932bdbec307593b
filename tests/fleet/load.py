"""Clients that keep a fleet busy, and what became of their requests."""

import asyncio
import contextlib
import itertools
import random

from client import CHAT, Connection, chat

# Each is one token in most vocabularies.
WORDS = "river stone house night money story water child friend music paper garden winter light city road".split()


def words(seed, n):
    return " ".join(random.Random(seed).choice(WORDS) for _ in range(n))


class Load:
    """Clients with keep-alive connections that send requests, every other one a stream, until they are stopped."""

    def __init__(self, port, n_clients, pause=0.0, max_tokens=24, prompt_words=20):
        self.port, self.n_clients, self.pause = port, n_clients, pause
        self.max_tokens, self.prompt_words = max_tokens, prompt_words
        self.outcomes, self.is_stopped, self.numbers = [], False, itertools.count()
        # Requests that are running, with whether their response has begun.
        self.n_running = 0

    async def client(self, key):
        connection = Connection(self.port)
        while not self.is_stopped:
            number = next(self.numbers)
            body = chat(f"{number} {words(number, self.prompt_words)}", self.max_tokens, stream=number % 2 == 0)
            self.n_running += 1
            outcome = await connection.request("POST", CHAT, body, {"authorization": f"Bearer {key}"})
            self.n_running -= 1
            self.outcomes.append(outcome)
            # Clients that all fail at once shall not turn this into a busy loop.
            await asyncio.sleep(self.pause if outcome.is_good else 0.2)
        connection.close()

    async def at_least(self, n):
        while len(self.outcomes) < n:
            await asyncio.sleep(0.05)

    def failed(self):
        return [outcome for outcome in self.outcomes if not outcome.is_good]


@contextlib.asynccontextmanager
async def load(*args, **options):
    """Load that goes on as long as the block; afterwards all requests have ended."""
    running = Load(*args, **options)
    clients = [asyncio.create_task(running.client(f"client-{i}")) for i in range(running.n_clients)]
    try:
        yield running
    finally:
        running.is_stopped = True
        await asyncio.gather(*clients)
