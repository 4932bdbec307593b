"""Measure a fleet on this machine: what balancers cost, and what is lost when instances go.

    cargo build --release
    python3 benches/fleet/measure.py                    # everything, about six minutes
    python3 benches/fleet/measure.py --part overhead    # one part

overhead    a tiny request (a cached embedding) straight to an instance and through each balancer
throughput  instances with one thread, each with clients of its own, against the same clients through each balancer
threads     one instance with two threads against two with one
losses      the checks of tests/fleet: requests failed with an instance that is killed, that hangs, and in a rolling
            restart; share of requests that find their prefix; tokens that arrive in clumps

Instances of `throughput` are as many as there are cores, three at most: more of them would measure how they share cores.
The clients and the balancer run on the same cores, so figures of throughput are below those of a fleet with machines of
its own. Needs haproxy and nginx, and smg where SMG names its program (pip install -r tests/fleet/requirements.txt).
"""

import argparse
import asyncio
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "fleet"))
os.environ["PATH"] += ":/usr/sbin"

import test_fleet
from client import CHAT, Connection, chat
from fleet import BALANCERS, EMBEDDING_MODEL, balanced, instances
from load import words

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--part", action="append", help="may be repeated; all of them by default")
parser.add_argument("--balancer", action="append", help="HAProxy, Nginx or SMG; all of them by default")
parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement of throughput")
parser.add_argument("--rounds", type=int, default=3, help="measurements of throughput, of which the median counts")
parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target" / "release" / "predict-otron-9000")
args = parser.parse_args()

N_TINY = 500
CLIENTS_PER_INSTANCE = 4
N_CORES = len(os.sched_getaffinity(0))
# SMG asks for the load of all instances every 10 s. Until it has, it prefers one.
SETTLE_SECONDS = {"SMG": 11}


def quantile(numbers, share):
    return sorted(numbers)[min(len(numbers) - 1, int(share * len(numbers)))]


def median(numbers):
    return quantile(numbers, 0.5)


def report(part, **figures):
    print(json.dumps({"part": part, **figures}), flush=True)


def chosen_balancers():
    for kind in BALANCERS:
        if args.balancer and kind.__name__ not in args.balancer:
            continue
        if kind.__name__ == "SMG" and not shutil.which(os.environ.get("SMG", "smg")):
            print("SMG is not measured: no program smg, and SMG does not name one", file=sys.stderr)
            continue
        yield kind


async def settled(balancer):
    await asyncio.sleep(SETTLE_SECONDS.get(balancer.name, 1))


async def tiny_requests(port):
    connection = Connection(port)
    body = {"model": EMBEDDING_MODEL, "input": "A text that is in the cache.", "encoding_format": "base64"}
    seconds = []
    for _ in range(N_TINY + 20):
        outcome = await connection.request("POST", "/v1/embeddings", body, {"x-session-id": "tiny"})
        assert outcome.is_good, outcome.describe()
        seconds.append(outcome.seconds)
    connection.close()
    # The first ones fill the caches of all instances.
    return [1e3 * quantile(seconds[20:], share) for share in (0.5, 0.99)]


async def overhead(scratch):
    async with instances(args.binary, scratch) as fleet:
        for kind in chosen_balancers():
            async with balanced(kind, scratch, fleet) as balancer:
                await settled(balancer)
                # Alternating, because machines drift.
                rounds = [
                    [await tiny_requests(fleet[0].port), await tiny_requests(balancer.port)] for _ in range(args.rounds)
                ]
                direct, through = [[median(pairs) for pairs in zip(*side)] for side in zip(*rounds)]
                report(
                    "overhead",
                    balancer=kind.__name__,
                    direct_p50_ms=round(direct[0], 2),
                    through_p50_ms=round(through[0], 2),
                    direct_p99_ms=round(direct[1], 2),
                    through_p99_ms=round(through[1], 2),
                    overhead_p50_ms=round(through[0] - direct[0], 2),
                )


async def tokens_per_second(ports, n_clients, seed):
    """Generated tokens per second of clients that take the ports in turn."""
    end = time.perf_counter() + args.seconds
    n_tokens = 0

    async def client(number):
        nonlocal n_tokens
        connection, i = Connection(ports[number % len(ports)]), 0
        while time.perf_counter() < end:
            i += 1
            name = f"{seed} {number} {i}"
            outcome = await connection.request("POST", CHAT, chat(f"{name}: {words(name, 20)}", 48))
            assert outcome.is_good, outcome.describe()
            n_tokens += outcome.usage()["completion_tokens"]
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*[client(number) for number in range(n_clients)])
    return n_tokens / (time.perf_counter() - started)


async def throughput(scratch):
    n = min(3, N_CORES)
    async with instances(args.binary, scratch, n) as fleet:
        ports, n_clients = [instance.port for instance in fleet], CLIENTS_PER_INSTANCE * n
        await tokens_per_second(ports, n_clients, "warm up")
        for kind in chosen_balancers():
            async with balanced(kind, scratch, fleet) as balancer:
                await settled(balancer)
                rounds = [
                    [
                        await tokens_per_second(ports, n_clients, f"{kind} {i} own"),
                        await tokens_per_second([balancer.port], n_clients, f"{kind} {i} balanced"),
                    ]
                    for i in range(args.rounds)
                ]
                own, through = map(median, zip(*rounds))
                report(
                    "throughput",
                    balancer=kind.__name__,
                    instances=n,
                    clients=n_clients,
                    own_tok_s=round(own, 1),
                    balanced_tok_s=round(through, 1),
                    share=round(median([b / a for a, b in rounds]), 3),
                )


async def threads(scratch):
    for n, n_threads in [(1, 2), (2, 1)]:
        async with instances(args.binary, scratch, n, threads=n_threads) as fleet:
            ports = [instance.port for instance in fleet]
            for n_clients in (1, 8):
                rates = [await tokens_per_second(ports, n_clients, f"{n} {n_clients} {i}") for i in range(args.rounds)]
                memory = sum(instance.resident_kb() for instance in fleet) // 1024
                report(
                    "threads",
                    instances=n,
                    threads=n_threads,
                    clients=n_clients,
                    tok_s=round(median(rates), 1),
                    resident_mb=memory,
                )


async def losses(scratch):
    checks = [check for check in test_fleet.CHECKS if check.__name__ not in ("check_routes", "check_headers")]
    async with instances(args.binary, scratch) as fleet:
        for kind in chosen_balancers():
            async with balanced(kind, scratch, fleet) as balancer:
                await settled(balancer)
                for check in checks:
                    name = check.__name__.removeprefix("check_").replace("_", " ")
                    try:
                        result = await check(balancer, fleet)
                    except AssertionError as error:
                        result = f"FAILED: {error}"
                    report("losses", balancer=kind.__name__, what=name, result=result)


PARTS = {"overhead": overhead, "throughput": throughput, "threads": threads, "losses": losses}


def processor():
    found = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown"


async def main():
    version = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(version, capture_output=True, text=True, check=False).stdout.strip()
    # Other programs that compute at the same time make the figures worse, and uneven.
    report("machine", processor=processor(), cores=N_CORES, commit=commit, load_before=round(os.getloadavg()[0], 1))
    for name in args.part or PARTS:
        with tempfile.TemporaryDirectory() as scratch:
            await PARTS[name](pathlib.Path(scratch))


asyncio.run(main())
