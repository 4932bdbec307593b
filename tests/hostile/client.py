"""An HTTP/1.1 client that sends any bytes and may misbehave in any way."""

import json
import os
import select
import socket
import struct
import time
from dataclasses import dataclass, field

# The attacker's key, and the one of those who must not notice.
ATTACKER, NEIGHBOR = "sk-attacker", "sk-neighbor"

# Answers that are none: the server closed the connection, or had not answered within the client's patience.
CLOSED, UNFINISHED = "closed", "unfinished"


@dataclass
class Answer:
    """A response, or in `status` why there is none."""

    status: int | str
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0

    def json(self):
        return json.loads(self.body)


class Stop:
    """Tells the process of an attack to end; made before the process is forked."""

    def __init__(self):
        self.reader, self.writer = os.pipe()

    def forked(self):
        """To be called in the new process, so that only the old one holds the writing end."""
        os.close(self.writer)

    def set(self):
        """Closes the writing end, which makes the reading end readable, and leaves nothing behind."""
        os.close(self.writer)
        os.close(self.reader)

    def is_set(self):
        return self.wait(0)

    def wait(self, seconds):
        poll = select.poll()
        poll.register(self.reader, select.POLLIN | select.POLLHUP)
        return bool(poll.poll(1000 * seconds))


@dataclass
class Target:
    """A server under attack."""

    port: int
    # How long clients wait for an answer.
    patience: float = 8.0
    # Address that clients come from.
    source: str = "127.0.0.1"
    # Set when the attack is to end.
    stop: Stop | None = None

    def connect(self, timeout=None):
        """A connection. While the server accepts none, as at its cap, this waits for `timeout`."""
        connection = socket.create_connection(
            ("127.0.0.1", self.port), timeout or self.patience, source_address=(self.source, 0)
        )
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def exchange(self, data):
        """Sends bytes and returns the first answer."""
        deadline = time.monotonic() + self.patience
        try:
            with self.connect() as connection:
                send(connection, data)
                return read_answer(connection, deadline)
        except TimeoutError:
            return Answer(UNFINISHED)
        except OSError:
            return Answer(CLOSED)


def send(connection, data):
    """Sends bytes. A server may answer and close before it has all of them."""
    try:
        connection.sendall(data)
    except TimeoutError:
        raise
    except OSError:
        pass


def reset(connection):
    """Closes a connection by a reset, without the usual exchange of packets."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def head(method, path, headers=(), key=ATTACKER, host="localhost"):
    """The head of a request, without its last line if `headers` is None."""
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"host: {host}"] if host is not None else []
    lines += [f"authorization: Bearer {key}"] if key is not None else []
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def request(path, body, headers=(), key=ATTACKER, host="localhost", method="POST"):
    """A request with a body, which is JSON unless it is bytes."""
    body = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    defaults = {"content-type": "application/json", "content-length": len(body)}
    named = {name for name, _ in headers}
    headers = [*((name, value) for name, value in defaults.items() if name not in named), *headers]
    return head(method, path, headers, key, host) + body


def read_answer(connection, deadline):
    """Reads a whole response."""
    started = time.monotonic()
    data = bytearray()

    def more():
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        received = connection.recv(1 << 16)
        data.extend(received)
        return bool(received)

    status, headers = CLOSED, {}
    try:
        # Skip answers of `100 Continue`.
        while status in (CLOSED, 100):
            while (end := data.find(b"\r\n\r\n")) < 0:
                if not more():
                    return Answer(CLOSED, seconds=time.monotonic() - started)
            first, *lines = data[:end].decode("latin-1").split("\r\n")
            status = int(first.split()[1])
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            del data[: end + 4]
        if "content-length" in headers:
            length = int(headers["content-length"])
            while len(data) < length and more():
                pass
            # What follows answers another request.
            del data[length:]
        elif "chunked" in headers.get("transfer-encoding", ""):
            while not data.endswith(b"0\r\n\r\n") and more():
                pass
        return Answer(status, headers, bytes(data), time.monotonic() - started)
    except TimeoutError:
        return Answer(UNFINISHED, headers, bytes(data), time.monotonic() - started)
    except OSError:
        return Answer(status, headers, bytes(data), time.monotonic() - started)


def get(path, key=ATTACKER):
    """A request without a body."""
    return head("GET", path, [("connection", "close")], key)


CHAT = "/v1/chat/completions"


def chat_body(content="hi", **fields):
    """A chat of one message and one token."""
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 1, **fields}
