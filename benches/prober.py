"""Asks a server the same thing at a steady rate and prints what the answers were and how long they took, as JSON.

    python3 benches/prober.py PORT SECONDS PAUSE PATH [BYTES OF A CHAT'S BODY]

A process of its own, because the clients of a load test would delay each other's measurements.
"""

import json
import select
import socket
import sys
import time


def chat(path, n_bytes):
    """A chat of one token with a body of at least this size."""
    body = json.dumps({"messages": [{"role": "user", "content": "a " * (n_bytes // 2)}], "max_tokens": 1}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def exchange(port, data):
    """The status of the answer, and the seconds until its first byte. An answer may come before all is sent."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.setblocking(False)
        started, sent = time.perf_counter(), 0
        while True:
            unsent = [connection] if sent < len(data) else []
            readable, writable, _ = select.select([connection], unsent, [], 30)
            if readable:
                first = connection.recv(64)
                seconds = time.perf_counter() - started
                return (int(first.split()[1]) if first else 0), seconds
            if not writable:
                return 0, time.perf_counter() - started
            sent += connection.send(data[sent : sent + 65536])


def main():
    port, seconds, pause, path = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    get = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
    data = chat(path, int(sys.argv[5])) if len(sys.argv) > 5 else get
    answers, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        try:
            answers.append(exchange(port, data))
        except OSError:
            answers.append((0, 0.0))
        time.sleep(pause)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
