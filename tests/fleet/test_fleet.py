"""Checks of a fleet: three instances behind HAProxy, nginx and SMG. See `run`.

    python3 test_fleet.py BINARY SCRATCH [--only PART] [--balancer NAME]
"""

import argparse
import asyncio
import json
import os
import pathlib
import signal
import statistics
import time

import contract
from client import CHAT, Connection, chat, once
from fleet import BALANCERS, EMBEDDING_MODEL, SMG, balanced, instances, until
from load import load, words

# The long form restarts instances under more requests.
LONG = os.environ.get("FLEET_LONG") == "1"
N_ROLLING = 500 if LONG else 150

MIN_AFFINITY = 0.8
N_TENANTS = 8


def gaps(stamps):
    return [b - a for a, b in zip(stamps, stamps[1:])]


def clumped(outcome):
    """The share of tokens that came together with the one before."""
    between = gaps(outcome.stamps)
    return sum(gap < 0.1 * statistics.median(between) for gap in between) / len(between)


async def check_routes(balancer, fleet):
    """Chat, embeddings, reranking and errors through the balancer are what an instance answers."""
    answer = await once(balancer.port, "POST", CHAT, chat("Say hello."))
    assert answer.is_good and answer.json()["usage"]["completion_tokens"] == 24, answer.describe()
    texts = {"model": EMBEDDING_MODEL, "input": ["a", "b"]}
    embedded = [(await once(port, "POST", "/v1/embeddings", texts)) for port in (balancer.port, fleet[0].port)]
    vectors = [outcome.json()["data"][1]["embedding"] for outcome in embedded]
    # SMG writes the numbers anew.
    assert all(abs(a - b) < 1e-6 for a, b in zip(*vectors)), "other vectors through the balancer"
    documents = ["Berlin is in Germany.", "Paris is the capital.", "Cats sleep."]
    ranking = {"model": EMBEDDING_MODEL, "query": "What is the capital of France?", "documents": documents}
    for route in ["/rerank", "/v1/rerank"]:
        ranked = await once(balancer.port, "POST", route, ranking)
        assert ranked.is_good, f"{route}: {ranked.describe()}"
        assert ranked.json()["results"][0]["index"] == 1, f"{route}: {ranked.body}"
    refused = await once(balancer.port, "POST", CHAT, chat("Hi", temperature=-1))
    assert refused.status == 400 and refused.json()["error"], refused.describe()
    return "chat, embeddings, reranking, errors"


async def check_headers(balancer, _fleet):
    """Headers of the Gateway API's inference extension are passed on or dropped, and nothing else."""
    return await contract.check_headers(balancer.port)


async def check_stream(balancer, fleet):
    """Tokens come one by one: no more of them arrive together than straight from an instance."""
    shares = []
    for port in (fleet[0].port, balancer.port):
        outcomes = [await once(port, "POST", CHAT, chat(f"{i}: tell a story", 64, stream=True)) for i in range(3)]
        assert all(outcome.is_good for outcome in outcomes), outcomes[0].describe()
        assert all(len(outcome.stamps) > 48 for outcome in outcomes), "tokens are missing"
        shares.append(statistics.median(clumped(outcome) for outcome in outcomes))
    direct, through = shares
    # Other programs on the same cores make clumps, too: 5 to 17 % were seen without a balancer. One that collects small
    # packets makes most tokens come in clumps.
    assert through <= direct + 0.3, f"{through:.0%} of the tokens come in clumps, {direct:.0%} straight from an instance"
    return f"{through:.0%} of tokens in clumps, {direct:.0%} without a balancer"


async def check_disconnect(balancer, fleet):
    """A client that hangs up cancels its request on the instance, whether it is streamed or not."""
    for stream in (False, True):
        body = chat("Tell a long story.", 4000, stream=stream)
        given_up = await once(balancer.port, "POST", CHAT, body, timeout=1.0)
        assert not given_up.is_good, "4000 tokens within a second"
        started = time.monotonic()

        async def is_idle():
            counts = [(await instance.metrics())["vllm:num_requests_running"] for instance in fleet]
            return sum(counts) == 0

        await until("the end of a request whose client has gone", is_idle, 3)
        seconds = time.monotonic() - started
    return f"cancelled within {seconds:.1f} s"


async def check_affinity(balancer, fleet):
    """Most requests go to the instance that has their prompt in its cache."""
    before = [await instance.metrics() for instance in fleet]
    prefixes = [words(f"{balancer.name} {tenant}", 600) for tenant in range(N_TENANTS)]
    questions = [(tenant, i) for i in range(6) for tenant in range(N_TENANTS)]
    landed, cached, n_cold = 0, 0, 0
    queue = iter(questions)
    known = set()

    async def client():
        nonlocal landed, cached, n_cold
        connection = Connection(balancer.port)
        for tenant, i in queue:
            # Some tenants have keys, some name a session; they are tenants of the server without a key, too.
            name = "x-session-id" if tenant % 2 else "authorization"
            value = f"session-{balancer.name}-{tenant}" if tenant % 2 else f"Bearer key-{balancer.name}-{tenant}"
            body = chat(f"Question {i}: what is it about?", 4, system=prefixes[tenant])
            is_cold = tenant not in known
            known.add(tenant)
            outcome = await connection.request("POST", CHAT, body, {name: value})
            assert outcome.is_good, outcome.describe()
            usage = outcome.usage()
            hit = usage["prompt_tokens_details"]["cached_tokens"]
            cached += hit
            n_cold += is_cold
            landed += not is_cold and hit > 0.8 * usage["prompt_tokens"]
            if is_cold and i == 0:
                # The next request of this tenant comes when its prompt is in a cache.
                continue
        connection.close()

    await asyncio.gather(*[client() for _ in range(3)])
    share = landed / (len(questions) - n_cold)
    after = [await instance.metrics() for instance in fleet]

    def grown(name):
        return [b.get(name, 0) - a.get(name, 0) for a, b in zip(before, after)]

    by_metrics = sum(grown("predict_otron_prefix_cache_tokens_total"))
    assert by_metrics == cached, f"instances counted {by_metrics} cached tokens, clients {cached}"
    counts = [int(count) for count in grown("predict_otron_request_seconds_count")]
    assert share >= MIN_AFFINITY, f"{share:.0%} of the requests found their prefix; requests by instance: {counts}"
    assert sum(count > 0 for count in counts) > 1, f"all requests went to one instance: {counts}"
    return f"{share:.0%} of requests find their prefix; by instance {counts}"


def unclear(outcomes):
    return [outcome.describe() for outcome in outcomes if not outcome.ends_clearly]


async def cut_streams(balancer, fleet):
    """Kills the instance with most of nine streams; returns it, and the streams that it took with it."""
    bodies = [chat(f"{i}: tell a story", 250, stream=True) for i in range(9)]
    streams = asyncio.gather(*[once(balancer.port, "POST", CHAT, body) for body in bodies])
    await asyncio.sleep(1.5)
    running = [(await instance.metrics())["vllm:num_requests_running"] for instance in fleet]
    victim = fleet[running.index(max(running))]
    victim.signal(signal.SIGKILL)
    outcomes = await streams
    assert not unclear(outcomes), f"a cut stream looks complete: {unclear(outcomes)}"
    cut = [outcome for outcome in outcomes if not outcome.is_good]
    assert len(cut) <= max(running), f"{len(cut)} streams failed, {max(running):.0f} were on the dead instance"
    # Those that had no token yet may have been repeated elsewhere.
    assert cut, "no stream was cut, although its instance was killed"
    return victim, cut


async def check_kill(balancer, fleet):
    """When an instance dies, only streams that had begun there fail, and their clients can tell."""
    victim, cut = await cut_streams(balancer, fleet)
    await victim.start()
    await until("the return of the killed instance", lambda: balancer.knows(fleet), 30)
    async with load(balancer.port, 9, max_tokens=48) as running:
        await running.at_least(20)
        victim.signal(signal.SIGKILL)
        n_before = len(running.outcomes)
        await victim.ended(10)
        await asyncio.sleep(1)
        await running.at_least(n_before + 40)
    failed = running.failed()
    await victim.start()
    await until("the return of the killed instance", lambda: balancer.knows(fleet), 30)
    assert not unclear(running.outcomes), f"a cut stream looks complete: {unclear(running.outcomes)}"
    lost = [outcome.describe() for outcome in failed if not outcome.started or outcome.status != 200]
    assert not lost, f"{len(lost)} of {len(running.outcomes)} requests failed that had not started: {lost[:3]}"
    assert all(outcome.is_stream for outcome in failed), [outcome.describe() for outcome in failed]
    n_cut = len(cut) + len(failed)
    return f"0 of {len(running.outcomes)} requests lost, {n_cut} streams cut with a clear end ({cut[0].error or 'error event'})"


async def check_stored(balancer, fleet):
    """A request that may have changed what is stored is not repeated when its instance dies: its client gets an error."""
    if balancer.repeats_stored:
        return "not checked: it repeats all requests"
    body = {"model": "default", "max_output_tokens": 250}
    requests = [{**body, "input": f"{i}: tell a story"} for i in range(6)]
    responses = asyncio.gather(*[once(balancer.port, "POST", "/v1/responses", request) for request in requests])
    await asyncio.sleep(1)
    running = [int((await instance.metrics())["vllm:num_requests_running"]) for instance in fleet]
    victim = fleet[running.index(max(running))]
    victim.signal(signal.SIGKILL)
    outcomes = await responses
    await victim.start()
    await until("the return of the killed instance", lambda: balancer.knows(fleet), 30)
    failed = [outcome for outcome in outcomes if not outcome.is_good]
    assert len(failed) == max(running), f"{len(failed)} of {max(running)} on the dead instance failed"
    statuses = {outcome.status for outcome in failed}
    assert statuses == {502}, f"got {statuses}"
    return f"{len(failed)} of {len(failed)} on the dead instance got status 502"


async def check_rolling_restart(balancer, fleet):
    """All instances are restarted one by one under load, and no request fails."""
    started = time.monotonic()
    async with load(balancer.port, 6, pause=0.3) as running:
        while True:
            for instance in fleet:
                await instance.restart()
                await until("the return of a restarted instance", lambda: balancer.knows(fleet), 30)
            if len(running.outcomes) >= N_ROLLING or not LONG:
                break
        await running.at_least(N_ROLLING)
    failed = [outcome.describe() for outcome in running.failed()]
    assert not failed, f"{len(failed)} of {len(running.outcomes)} requests failed: {failed[:3]}"
    return f"0 of {len(running.outcomes)} requests failed in {time.monotonic() - started:.0f} s"


async def check_hang(balancer, fleet):
    """An instance that hangs is taken out."""
    victim = fleet[2]
    victim.signal(signal.SIGSTOP)
    try:
        # What finds out that the instance hangs where there are no active checks; it may wait.
        probes = [
            once(balancer.port, "POST", CHAT, chat("Hi", 2), {"x-session-id": f"probe-{i}"}, timeout=60) for i in range(12)
        ]
        probing = asyncio.gather(*probes)
        await asyncio.sleep(balancer.takeout)
        slowest = 0.0
        for i in range(30):
            answer = await once(balancer.port, "POST", CHAT, chat(f"{i}", 2), {"x-session-id": f"hang-{i}"}, timeout=20)
            assert answer.is_good, f"request {i}: {answer.describe()}"
            slowest = max(slowest, answer.seconds)
        # nginx tries the instance again with a request from time to time, which waits for its time limit.
        assert slowest < balancer.takeout + 2, f"a request took {slowest:.1f} s"
    finally:
        victim.signal(signal.SIGCONT)
    outcomes = await probing
    await until("the return of the stopped instance", lambda: balancer.knows(fleet), 30)
    n_good = sum(outcome.is_good for outcome in outcomes)
    return f"slowest of 30 requests {slowest:.2f} s; {n_good} of {len(outcomes)} from before answered"


CHECKS = [
    check_routes,
    check_headers,
    check_stream,
    check_disconnect,
    check_affinity,
    check_kill,
    check_stored,
    check_rolling_restart,
    check_hang,
]


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("scratch", type=pathlib.Path)
    parser.add_argument("--only", action="append", default=[], help="checks with this in their name")
    parser.add_argument("--balancer", action="append", default=[], help="HAProxy, Nginx or SMG")
    args = parser.parse_args()
    n_failed = 0

    async def run(what, check):
        nonlocal n_failed
        started = time.monotonic()
        try:
            result = f"ok: {await check}"
        except (AssertionError, SystemExit, json.JSONDecodeError, KeyError) as error:
            n_failed += 1
            result = f"FAILED: {error if error.args else type(error).__name__}"
        print(f"{what}: {result} ({time.monotonic() - started:.1f} s)", flush=True)

    def is_chosen(check):
        return not args.only or any(part in check.__name__ for part in args.only)

    async with instances(args.binary, args.scratch) as fleet:
        if is_chosen(contract.check_metrics):
            await run("an instance, metrics", contract.check_metrics(fleet[0]))
        for kind in BALANCERS:
            if args.balancer and kind.__name__ not in args.balancer:
                continue
            async with balanced(kind, args.scratch, fleet) as balancer:
                for check in filter(is_chosen, CHECKS):
                    name = check.__name__.removeprefix("check_").replace("_", " ")
                    await run(f"{kind.__name__}, {name}", check(balancer, fleet))
    print(f"{n_failed} checks failed")
    return n_failed


if __name__ == "__main__":
    raise SystemExit(1 if asyncio.run(main()) else 0)
