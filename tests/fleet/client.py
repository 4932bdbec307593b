"""A client that knows how a response ended: what came when, and whether it was complete."""

import asyncio
import dataclasses
import json
import time


@dataclasses.dataclass
class Outcome:
    """A response as its client saw it."""

    status: int | None = None
    headers: dict = dataclasses.field(default_factory=dict)
    body: bytes = b""
    # When each token came, in seconds from the start of the request.
    stamps: list = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    # Whether HTTP says that the body is complete.
    is_whole: bool = False
    error: str = ""
    is_stream: bool = False

    @property
    def started(self):
        return self.status is not None

    def json(self):
        return json.loads(self.body)

    def events(self):
        lines = self.body.split(b"\n")
        return [line[len(b"data: ") :] for line in lines if line.startswith(b"data: ")]

    def usage(self):
        if not self.is_stream:
            return self.json()["usage"]
        found = [event["usage"] for event in map(json.loads, self.events()[:-1]) if event.get("usage")]
        return found[-1]

    @property
    def is_good(self):
        """Whether it is a complete response without an error."""
        if self.status != 200 or not self.is_whole:
            return False
        if self.is_stream:
            return self.body.rstrip().endswith(b"data: [DONE]") and b'"finish_reason":"' in self.body
        return b'"error"' not in self.body[:10]

    @property
    def ends_clearly(self):
        """Whether a client can tell a failure: by its status, a missing end of the body, or an error in the stream."""
        if self.is_good or not self.started or self.status != 200 or not self.is_whole:
            return True
        return any(event.startswith(b'{"error"') for event in self.events())

    def describe(self):
        kind = "stream" if self.is_stream else "response"
        end = "whole" if self.is_whole else "cut"
        return f"{kind}: status {self.status}, {end} after {self.seconds:.1f} s, {self.error} {self.body[-200:]!r}"


class Connection:
    """A keep-alive connection of one client, opened again whenever it has been closed."""

    def __init__(self, port):
        self.port = port
        self.reader = self.writer = None

    def close(self):
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    async def request(self, method, path, body=None, headers=(), timeout=120.0):
        data = b"" if body is None else json.dumps(body).encode()
        outcome = Outcome(is_stream=bool(body and body.get("stream")))
        started = time.perf_counter()
        try:
            await asyncio.wait_for(self._exchange(outcome, started, method, path, data, dict(headers)), timeout)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as error:
            outcome.error = f"{type(error).__name__} {error}".strip()
            self.close()
        outcome.seconds = time.perf_counter() - started
        return outcome

    async def _exchange(self, outcome, started, method, path, data, headers):
        # What OpenAI's clients do, too: a connection that the other side has closed is not used again.
        if self.reader is None or self.reader.at_eof():
            self.close()
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        head = {
            "host": f"127.0.0.1:{self.port}",
            "content-type": "application/json",
            "content-length": len(data),
            **headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data)
        line = await self.reader.readline()
        if not line:
            raise ConnectionResetError("closed before the response")
        status = int(line.split()[1])
        while (line := await self.reader.readline()) not in (b"\r\n", b""):
            name, value = line.decode().split(":", 1)
            outcome.headers[name.lower()] = value.strip()
        if not line:
            raise ConnectionResetError("closed within the head")
        outcome.status = status
        if outcome.headers.get("transfer-encoding") == "chunked":
            await self._chunks(outcome, started)
        elif "content-length" in outcome.headers:
            outcome.body = await self.reader.readexactly(int(outcome.headers["content-length"]))
            outcome.is_whole = True
        else:
            # The end of the connection is the end of the body: nobody can say whether it is whole.
            outcome.body = await self.reader.read()
            outcome.is_whole = True
            self.close()
        if outcome.headers.get("connection", "").lower() == "close":
            self.close()

    async def _chunks(self, outcome, started):
        while True:
            line = await self.reader.readline()
            if not line:
                raise ConnectionResetError("closed between chunks")
            size = int(line.split(b";")[0], 16)
            chunk = await self.reader.readexactly(size)
            if await self.reader.readexactly(2) != b"\r\n":
                raise ValueError("a chunk without end")
            outcome.body += chunk
            if size == 0:
                outcome.is_whole = True
                return
            now = time.perf_counter() - started
            outcome.stamps += [now] * chunk.count(b'"delta":{"content":"')


async def once(port, method, path, body=None, headers=(), timeout=120.0):
    """A request on a connection of its own."""
    connection = Connection(port)
    try:
        return await connection.request(method, path, body, headers, timeout)
    finally:
        connection.close()


def chat(content, max_tokens=24, stream=False, system=None, **fields):
    messages = [{"role": "system", "content": system}] if system else []
    body = {
        "model": "default",
        "messages": [*messages, {"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        **fields,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


CHAT = "/v1/chat/completions"
