"""Start the server several times, with its models on disk, and print the medians of: time until it
listens, time until the first chat is answered, and memory then.

    python3 benches/startup.py target/release/predict-otron-9000
"""

import json
import statistics
import subprocess
import sys
import time
import urllib.request

RUNS = 7
binary = sys.argv[1] if len(sys.argv) > 1 else "target/release/predict-otron-9000"
listening, answered, memory = [], [], []
for _ in range(RUNS):
    started = time.perf_counter()
    server = subprocess.Popen([binary, "--port", "0", "--offline"], stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if "listening on http://" in line:
                address = line.split("listening on ")[1].split()[0]
                break
        else:
            sys.exit("the server ended before it listened")
        listening.append(time.perf_counter() - started)
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        request = urllib.request.Request(
            address + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).read()
        answered.append(time.perf_counter() - started)
        with open(f"/proc/{server.pid}/status") as status:
            memory.append(next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS")))
    finally:
        server.terminate()
        server.wait()
print(
    json.dumps(
        {
            "runs": RUNS,
            "listening_ms": round(statistics.median(listening) * 1e3),
            "first_answer_ms": round(statistics.median(answered) * 1e3),
            "memory_mib": round(statistics.median(memory)),
        }
    )
)
