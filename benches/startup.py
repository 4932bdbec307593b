"""Start the server several times, with its models on disk, and print medians: the time until it listens, until the
chat model is loaded and until the first chat is answered, the load time, and resident and peak memory.

Arguments after the binary are passed to the server:

    python3 benches/startup.py target/release/predict-otron-9000 --model my.gguf
"""

import json
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

RUNS = 7
binary = sys.argv[1] if len(sys.argv) > 1 else "target/release/predict-otron-9000"
figures = {}


def note(name, value):
    figures.setdefault(name, []).append(value)


def wait_for(server, pattern):
    for line in server.stderr:
        found = re.search(pattern, line)
        if found:
            return found
    sys.exit(f"the server ended before it logged {pattern!r}")


def note_memory(server, when):
    with open(f"/proc/{server.pid}/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
    note(f"resident_mib_{when}", int(sizes["VmRSS"].split()[0]) / 1024)
    note(f"peak_mib_{when}", int(sizes["VmHWM"].split()[0]) / 1024)


for _ in range(RUNS):
    started = time.perf_counter()
    command = [binary, "--port", "0", "--offline", *sys.argv[2:]]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = wait_for(server, r"listening on (http://\S+)").group(1)
        note("listening_ms", (time.perf_counter() - started) * 1000)
        note("load_ms", int(wait_for(server, r"chat model loaded.* load_ms=(\d+)").group(1)))
        note("loaded_ms", (time.perf_counter() - started) * 1000)
        note_memory(server, "loaded")
        # Further log lines must not fill the pipe.
        threading.Thread(target=server.stderr.read, daemon=True).start()
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        request = urllib.request.Request(
            address + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).read()
        note("first_answer_ms", (time.perf_counter() - started) * 1000)
        note_memory(server, "answered")
    finally:
        # SIGINT: unlike SIGTERM it has no drain delay.
        server.send_signal(2)
        server.wait()
print(json.dumps({"runs": RUNS, **{name: round(statistics.median(values)) for name, values in figures.items()}}))
