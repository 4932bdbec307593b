"""Runs the rows of requests.py and folders.py against the server, and says what broke.

    python3 harness.py BINARY SCRATCH [--only PART] [--part requests|folders] [--verbose]

After each attack: the process lives, its memory is back within 100 MB of before, a chat of one token under another
key is answered within 2 s, and `/livez` within 50 ms (p99 of 20).
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import apis
import folders
import requests
from client import CHAT, CLOSED, NEIGHBOR, UNFINISHED, Stop, Target, chat_body, get, request

MEMORY = 2 << 30
# The usual limit of a shell or a service, which the server may raise.
OPEN_FILES = 1024

MAX_GROWTH_MB = 100
MAX_CHAT_SECONDS = 2.0
MAX_PROBE_SECONDS = 0.05
N_PROBES = 20
# Errors quote what they are about, cut to a readable length.
MAX_ERROR_BYTES = 8 << 10
# How long memory may take to come back.
MEMORY_PATIENCE = 5.0
# How long the server may take to notice that the attackers are gone.
SETTLE_SECONDS = 0.5

# How long an attack may last.
MAX_ATTACK_SECONDS = 40.0

FOLDER_SECONDS = 30.0

FORK = multiprocessing.get_context("fork")

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Slow(str):
    """A sentence about what took too long. It counts when it happens three times: other programs delay things too."""


def limited():
    """The limits of the server's process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Process:
    """A server with limits; its log is a file."""

    def __init__(self, command, log, cwd=None, env=None):
        self.log = log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, preexec_fn=limited, cwd=cwd, env=env
            )

    def log_text(self):
        return self.log.read_text(errors="replace")

    def port(self, seconds):
        """The port that the server listens on, or None if it ends or does not listen in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := re.search(r"listening on https?://127\.0\.0\.1:(\d+)", self.log_text()):
                return int(found[1])
            if self.end() is not None:
                return None
            time.sleep(0.02)
        return None

    def end(self):
        return self.process.poll()

    def wait(self, seconds):
        """Waits for the end; returns the exit status or None."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def memory_mb(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        # A process that has just died has none.
        return int(found[1]) // 1024 if found else 0

    def kill(self):
        self.process.kill()
        self.process.wait()


def described_end(status):
    if status is None:
        return "still runs"
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class Server:
    """The server that requests attack; started again when an attack has broken it."""

    def __init__(self, binary, scratch, name, options):
        self.command = [str(binary), "--port", "0", *options]
        self.log = scratch / f"{name}.log"
        self.process = None

    def start(self):
        if self.process is not None:
            return
        self.process = Process(self.command, self.log)
        port = self.process.port(120)
        if port is None:
            sys.exit(f"the server did not start: {self.log_tail()}")
        self.target = Target(port)
        deadline = time.monotonic() + 120
        while self.target.exchange(get("/readyz")).status != 200:
            if time.monotonic() > deadline or self.process.end() is not None:
                sys.exit(f"the server did not become ready: {self.log_tail()}")
            time.sleep(0.05)
        # Whatever is loaded or compiled by the first request of its kind.
        for _ in range(3):
            self.chat()
        self.target.exchange(request("/v1/embeddings", {"input": "warm up"}, key=NEIGHBOR))

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process = None

    def chat(self):
        """A chat of one token under another key: its answer and the seconds it took."""
        content = f"{random.random()}: say hello"
        started = time.monotonic()
        # Far more patience than allowed, so that the message can say how bad it is.
        target = Target(self.target.port, patience=10)
        answer = target.exchange(request(CHAT, chat_body(content), key=NEIGHBOR))
        return answer, time.monotonic() - started

    def probe_seconds(self):
        """The p99 of `/livez`."""
        seconds = []
        for _ in range(N_PROBES):
            started = time.monotonic()
            answer = Target(self.target.port, patience=2).exchange(get("/livez", key=None))
            if answer.status != 200:
                return float("inf")
            seconds.append(time.monotonic() - started)
        return sorted(seconds)[int(0.99 * N_PROBES)]

    def log_tail(self):
        return self.log.read_text(errors="replace")[-600:]

    def broken(self, memory_before):
        """What is broken now, as sentences."""
        if (end := self.process.end()) is not None:
            return [f"the server {described_end(end)}: {self.last_line()}"]
        failures = []
        probe = self.probe_seconds()
        if probe > MAX_PROBE_SECONDS:
            failures.append(Slow(f"/livez took {1e3 * probe:.0f} ms"))
        answer, seconds = self.chat()
        if answer.status != 200:
            failures.append(f"a neighbor's chat got {answer.status}")
        elif seconds > MAX_CHAT_SECONDS:
            failures.append(Slow(f"a neighbor's chat took {seconds:.1f} s"))
        deadline = time.monotonic() + MEMORY_PATIENCE
        while (growth := self.process.memory_mb() - memory_before) > MAX_GROWTH_MB and time.monotonic() < deadline:
            time.sleep(0.1)
        if growth > MAX_GROWTH_MB:
            failures.append(f"memory grew by {growth} MB")
        if (end := self.process.end()) is not None:
            failures.append(f"the server {described_end(end)}: {self.last_line()}")
        return failures

    def last_line(self):
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][-200:] if lines else "no log"


def envelope_problem(answer, is_text=False):
    """What is wrong with an error's form, if anything: an object, or a text if `is_text`."""
    if isinstance(answer.status, str) or answer.status < 400:
        return None
    if b"panicked" in answer.body or b"/root/" in answer.body or b"src/" in answer.body:
        return f"the answer {answer.status} tells about the server's insides: {answer.body[:120]}"
    if answer.status == 429 and not answer.headers.get("retry-after", "").isdigit():
        return "a 429 has no retry-after"
    if not answer.body:
        return None
    if len(answer.body) > MAX_ERROR_BYTES:
        return f"an error of {len(answer.body) >> 10} kB"
    try:
        error = answer.json()["error"]
        if is_text and isinstance(error, str) and error:
            return None
        return None if error["message"] and error["type"] else f"an error without message: {answer.body[:120]}"
    except (ValueError, KeyError, TypeError):
        return f"the answer {answer.status} is no error object: {answer.body[:120]}"


def is_orderly(answer):
    """Whether there is an answer, and no fault of the server's in it."""
    return answer.status not in (UNFINISHED, CLOSED) and (answer.status < 500 or answer.status == 503)


def unexpected(row, answers):
    """Answers that the row does not expect, as sentences."""
    failures = {}
    for answer in answers:
        if row.expect is not None and answer.status not in row.expect:
            expected = ", ".join(map(str, sorted(row.expect, key=str)))
            failures[f"got {answer.status}, expected {expected}: {answer.body[:100]!r}"] = None
        elif row.expect is None and not is_orderly(answer):
            failures[f"got {answer.status}: {answer.body[:100]!r}"] = None
        elif problem := envelope_problem(answer, row.error_is_text):
            failures[problem] = None
    return list(failures)[:2]


class Attack:
    """The row's clients, in a process of their own: what they do must not delay the measurements."""

    def __init__(self, row, target):
        self.row, self.target = row, target
        self.stop = target.stop = Stop()
        self.receiver, self.sender = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self.run, daemon=True)
        self.process.start()
        self.sender.close()

    def run(self):
        self.stop.forked()
        answers, lock = [], threading.Lock()

        def client():
            with contextlib.suppress(OSError):
                found = self.row.attack(self.target)
                with lock:
                    # Only errors are looked at.
                    answers.extend(dataclasses.replace(answer, body=answer.body[: 1 << 18]) for answer in found)

        threads = [threading.Thread(target=client, daemon=True) for _ in range(self.row.clients)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + MAX_ATTACK_SECONDS
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
        with lock:
            self.sender.send(answers)

    def answers(self):
        """Waits for the end of the attack."""
        found = self.receiver.recv() if self.receiver.poll(MAX_ATTACK_SECONDS + 5) else []
        self.process.kill()
        self.process.join()
        self.receiver.close()
        return found


def run_request(row, server):
    """Runs an attack; returns what it broke."""
    server.start()
    before = server.process.memory_mb()
    target = Target(server.target.port, row.patience, row.source)
    failures = []
    attack = Attack(row, target)
    if row.meanwhile:
        time.sleep(row.meanwhile)
        # Memory counts when the attack is over.
        failures += [type(what)(f"meanwhile {what}") for what in server.broken(1 << 30)]
        attack.stop.set()
    answers = attack.answers()
    if not row.meanwhile:
        attack.stop.set()
    if not answers or any(answer.status in (UNFINISHED, CLOSED) for answer in answers):
        time.sleep(SETTLE_SECONDS)
    failures += unexpected(row, answers)
    broken = server.broken(before)
    if broken or any("meanwhile" in failure for failure in failures):
        server.stop()
    return failures + broken


def run_folder(binary, scratch, number, row):
    """Starts the server with a hostile model; returns what broke."""
    folder = scratch / f"folder-{number}"
    model = folder / "model"
    model.mkdir(parents=True)
    path = row.write(model) or model
    arguments = ["--port", "0", "--offline", *row.options(path)]
    log = folder / "log"
    process = Process([str(binary), *arguments], log, cwd=folder, env={**os.environ, **row.env})
    try:
        failures = outcome(row, process, path)
    finally:
        process.kill()
    text = process.log_text()
    # A panic of a library that became an error is one.
    if "panicked at src/" in text:
        failures.append(f"it panicked: {text[text.index('panicked at src/') :][:200]!r}")
    if row.forbidden and (folder / row.forbidden).exists():
        failures.append(f"it wrote {row.forbidden}")
    folders.remove(folder)
    return failures


def outcome(row, process, path):
    """Waits until the server ends or serves; returns what broke."""
    started = time.monotonic()
    port = process.port(FOLDER_SECONDS)
    target = Target(port, patience=12) if port else None
    while port and process.end() is None and target.exchange(get("/readyz")).status != 200:
        if time.monotonic() - started > FOLDER_SECONDS:
            return [f"it is not ready after {FOLDER_SECONDS:.0f} s"]
        time.sleep(0.05)
    if process.end() is None and port is None:
        return [f"it does not listen after {FOLDER_SECONDS:.0f} s"]
    if process.end() is None:
        return served(row, process, target, path)
    status = process.end()
    lines = [line for line in process.log_text().splitlines() if line.startswith("error: ")]
    message = lines[-1] if lines else process.log_text()[-200:]
    if status <= 0 or not lines:
        return [f"it {described_end(status)}: {message!r}"]
    if row.expect == folders.SERVES:
        return [f"it does not serve: {message}"]
    if row.expect and row.expect not in message:
        return [f"the message does not say {row.expect!r}: {message}"]
    if len(message) > 2000:
        return [f"the message has {len(message)} characters"]
    return []


def served(row, process, target, path):
    """Uses a server that was started with a hostile model."""
    if row.after_ready:
        row.after_ready(path)
    failures = [] if row.expect in (None, folders.SERVES) else [f"it serves, expected {row.expect!r}"]
    for data in row.requests():
        started = time.monotonic()
        answer = target.exchange(data)
        if answer.status in (UNFINISHED, CLOSED):
            failures.append(f"an answer is {answer.status} after {time.monotonic() - started:.0f} s")
        elif problem := envelope_problem(answer):
            failures.append(problem)
        elif row.expect == folders.SERVES and answer.status >= 500 and not row.after_ready:
            failures.append(f"got {answer.status}: {answer.body[:100]!r}")
        elif answer.status == 200 and b"NaN" in answer.body:
            failures.append("an answer contains NaN")
    if (end := process.end()) is not None:
        failures.append(f"it {described_end(end)}: {process.log_text()[-200:]!r}")
    elif target.exchange(get("/livez")).status != 200:
        failures.append("/livez does not answer any more")
    return failures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("scratch", type=pathlib.Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--part", choices=["requests", "folders"])
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    started, n_failed, n_rows = time.monotonic(), 0, 0

    def report(kind, row, failures, seconds):
        nonlocal n_failed, n_rows
        n_rows += 1
        n_failed += bool(failures)
        if failures:
            print(f"FAILED {kind} `{row.name}`: {'; '.join(failures)}", flush=True)
        elif args.verbose:
            print(f"ok {kind} `{row.name}` ({seconds:.1f} s)", flush=True)

    def chosen(rows):
        names = [row.name for row in rows]
        assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]
        return [row for row in rows if not args.only or any(part in row.name for part in args.only)]

    if args.part != "folders":
        tiny = args.scratch / "tiny"
        tiny.mkdir(exist_ok=True)
        folders.llama(tiny)
        servers = {
            # The default models, with their real vocabularies.
            "keys": Server(args.binary, args.scratch, "server", ["--api-key", "sk-attacker", "--api-key", NEIGHBOR]),
            "open": Server(args.binary, args.scratch, "open", ["--model", str(tiny)]),
        }
        for row in chosen([*requests.ROWS, *apis.ROWS]):
            row_started = time.monotonic()
            for _ in range(3):
                failures = run_request(row, servers[row.server])
                if not failures or not all(isinstance(what, Slow) for what in failures):
                    break
            report("request", row, failures, time.monotonic() - row_started)
        for server in servers.values():
            server.stop()
        print(f"requests: {n_rows} rows in {time.monotonic() - started:.0f} s", flush=True)

    if args.part != "requests":
        before, n_before = time.monotonic(), n_rows
        rows = list(enumerate(chosen(folders.ROWS)))

        def run(numbered):
            number, row = numbered
            row_started = time.monotonic()
            return row, run_folder(args.binary, args.scratch, number, row), time.monotonic() - row_started

        with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2 + 1)) as pool:
            for row, failures, seconds in pool.map(run, rows):
                report("folder", row, failures, seconds)
        print(f"folders: {n_rows - n_before} rows in {time.monotonic() - before:.0f} s", flush=True)

    print(f"{n_failed} of {n_rows} rows failed")
    sys.exit(1 if n_failed else 0)


if __name__ == "__main__":
    main()
