"""Load three instances behind HAProxy for a long time, while instances die and restart. Exit status 1 if anything is lost.

    cargo build --release
    python3 benches/fleet/soak.py                # an hour
    python3 benches/fleet/soak.py --minutes 1    # as in CI

Requests come at 80 % of the rate that the fleet reached in the first seconds, a third of them streams, a third
embeddings. Two of the instances are killed or restarted at random; the third runs all the time, and its memory is
measured: the slope is that of a line through the resident memory of the second half.

Lost is a request that failed although its response had not begun. Streams that had begun on an instance that was killed
cannot be saved; they are counted, and must end in a way that their clients notice.
"""

import argparse
import asyncio
import itertools
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "fleet"))
os.environ["PATH"] += ":/usr/sbin"

from client import CHAT, Connection, chat
from fleet import EMBEDDING_MODEL, HAProxy, balanced, instances
from load import words

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--minutes", type=float, default=60.0)
parser.add_argument("--share", type=float, default=0.8, help="of the rate that the fleet can serve")
parser.add_argument("--seed", type=int, default=9000, help="of the kills and restarts")
parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target" / "release" / "predict-otron-9000")
args = parser.parse_args()

N_CLIENTS = 12
CALIBRATION_SECONDS = 10
# Between two kills or restarts, at random.
EVENT_SECONDS = (10, 20) if args.minutes < 5 else (20, 60)
# Small enough to be full of cached prompts within the first minute: until then, memory grows as it should.
KV_MEMORY = "64M"
# What the memory of an instance may grow by, in KB per minute. The cache of embeddings fills at a tenth of that.
MAX_SLOPE_KB = 256


class Clients:
    """Sends requests on connections that are kept alive, and counts how they ended."""

    def __init__(self, port):
        self.port, self.idle, self.numbers = port, [], itertools.count()
        self.n_good = self.n_cut = 0
        self.lost = []

    async def request(self):
        number = next(self.numbers)
        text = f"{number} {words(number, 20)}"
        connection = self.idle.pop() if self.idle else Connection(self.port)
        headers = {"authorization": f"Bearer tenant-{number % 16}"}
        if number % 3 == 2:
            path, body = "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": text, "encoding_format": "base64"}
        else:
            path, body = CHAT, chat(text, 24, stream=number % 3 == 0)
        outcome = await connection.request("POST", path, body, headers)
        self.idle.append(connection)
        if outcome.is_good:
            self.n_good += 1
        elif outcome.is_stream and outcome.status == 200 and outcome.ends_clearly:
            self.n_cut += 1
        else:
            self.lost.append(outcome.describe())

    async def capacity(self):
        """Requests per second of clients that wait for nothing."""
        end, before = time.perf_counter() + CALIBRATION_SECONDS, self.n_good

        async def client():
            while time.perf_counter() < end:
                await self.request()

        started = time.perf_counter()
        await asyncio.gather(*[client() for _ in range(N_CLIENTS)])
        return (self.n_good - before) / (time.perf_counter() - started)


def slope(samples):
    """Of the least-squares line through pairs."""
    n = len(samples)
    x_mean, y_mean = sum(x for x, _ in samples) / n, sum(y for _, y in samples) / n
    spread = sum((x - x_mean) ** 2 for x, _ in samples)
    return sum((x - x_mean) * (y - y_mean) for x, y in samples) / spread if spread else 0.0


async def disturb(fleet, counts, chance):
    """Kills and restarts instances but the first, one at a time, until it is cancelled."""
    while True:
        await asyncio.sleep(chance.uniform(*EVENT_SECONDS))
        victim = chance.choice(fleet[1:])
        if chance.random() < 0.5:
            counts["kills"] += 1
            victim.signal(signal.SIGKILL)
            await victim.ended(10)
            await asyncio.sleep(2)
            await victim.start()
        else:
            counts["restarts"] += 1
            await victim.restart()


async def main(scratch):
    async with instances(args.binary, scratch, kv_memory=KV_MEMORY) as fleet, balanced(HAProxy, scratch, fleet) as balancer:
        clients = Clients(balancer.port)
        await clients.capacity()
        rate = args.share * await clients.capacity()
        print(json.dumps({"requests_s": round(rate, 1), "share": args.share}), flush=True)
        counts, memory, running = {"kills": 0, "restarts": 0}, [], set()
        disturbing = asyncio.create_task(disturb(fleet, counts, random.Random(args.seed)))
        started = time.monotonic()
        arrivals = random.Random(args.seed)
        due, n_most, sampled = started, 0, started
        while (now := time.monotonic()) < started + 60 * args.minutes:
            if disturbing.done():
                disturbing.result()
            due += arrivals.expovariate(rate)
            await asyncio.sleep(max(0.0, due - now))
            task = asyncio.create_task(clients.request())
            running.add(task)
            task.add_done_callback(running.discard)
            n_most = max(n_most, len(running))
            if now > sampled + 2:
                sampled = now
                memory.append((now / 60, fleet[0].resident_kb()))
        # No instance shall be left half restarted.
        disturbing.cancel()
        await asyncio.gather(*running)
        flat = slope(memory[len(memory) // 2 :])
        print(
            json.dumps(
                {
                    "minutes": args.minutes,
                    "good": clients.n_good,
                    "lost": len(clients.lost),
                    "streams_cut": clients.n_cut,
                    **counts,
                    "most_at_once": n_most,
                    "resident_mb": memory[-1][1] // 1024,
                    "slope_kb_per_minute": round(flat, 1),
                }
            ),
            flush=True,
        )
        for described in clients.lost[:10]:
            print(f"lost: {described}", flush=True)
        # A short run has too few samples.
        is_flat = args.minutes < 10 or flat < MAX_SLOPE_KB
        if not is_flat:
            print(f"memory grows by {flat:.0f} KB per minute", flush=True)
        return 0 if not clients.lost and is_flat else 1


with tempfile.TemporaryDirectory() as folder:
    status = asyncio.run(main(pathlib.Path(folder)))
sys.exit(status)
