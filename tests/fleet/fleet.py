"""Three instances of the server on ports of their own, and the balancers that run in front of them."""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

from client import once

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"

# Seconds that a process has to begin to serve; the first start of the server may have to download the models.
START_SECONDS = 120


def free_ports(n):
    """Ports that nobody listens on now. They are below those that the system gives to outgoing connections, one of
    which could otherwise take the port of an instance that is being restarted."""
    sockets = []
    for port in range(20000 + os.getpid() % 8000, 32000):
        listener = socket.socket()
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            continue
        sockets.append(listener)
        if len(sockets) == n:
            break
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


async def until(what, condition, seconds):
    """Waits until `condition`, which is awaited, is true."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} took longer than {seconds} s")
        await asyncio.sleep(0.05)


class Process:
    """A process whose output goes to a file."""

    def __init__(self, name, command, log):
        self.name, self.command, self.log = name, [str(part) for part in command], log
        self.process = None

    def spawn(self):
        with open(self.log, "ab") as file:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def signal(self, number):
        self.process.send_signal(number)

    async def ended(self, seconds):
        """Waits for the end; returns the exit status."""

        async def condition():
            return self.process.poll() is not None

        await until(f"the end of {self.name}", condition, seconds)
        return self.process.returncode

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log_tail(self):
        return self.log.read_text(errors="replace")[-2000:]


class Instance(Process):
    """One server."""

    def __init__(self, binary, port, log, threads=1, kv_memory="256M"):
        # --heartbeat is what deploy/nginx.conf asks for; it makes no difference to responses that take less than 10 s.
        command = [binary, "--port", port, "--threads", threads, "--kv-memory", kv_memory, "--heartbeat", "10s"]
        super().__init__(f"the instance on port {port}", command, log)
        self.port = port

    async def start(self):
        self.spawn()
        await self.ready()

    async def ready(self):
        async def condition():
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended: {self.log_tail()}")
            return (await once(self.port, "GET", "/readyz", timeout=2)).status == 200

        await until(f"the start of {self.name}", condition, START_SECONDS)

    async def restart(self):
        """Ends it as an operator would, and starts it again."""
        self.signal(signal.SIGTERM)
        status = await self.ended(60)
        if status != 0:
            raise SystemExit(f"{self.name} ended with status {status} on SIGTERM: {self.log_tail()}")
        await self.start()

    async def metrics(self):
        """The sum over the labels of each metric."""
        text = (await once(self.port, "GET", "/metrics")).body.decode()
        sums = {}
        for name, value in re.findall(r"^([a-z_:]+)(?:\{.*\})? (\S+)$", text, re.M):
            sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def resident_kb(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


class Balancer(Process):
    """A balancer in front of the instances."""

    # Seconds that it may take to notice that an instance hangs.
    takeout = 0.0
    # Whether it repeats requests on another instance that may have changed what is stored on the first one.
    repeats_stored = False

    def __init__(self, command, scratch, port):
        super().__init__(type(self).__name__, command, scratch / f"{type(self).__name__}.log")
        self.port = port

    async def start(self):
        self.spawn()

        async def condition():
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended: {self.log_tail()}")
            return await self.serves()

        await until(f"the start of {self.name}", condition, START_SECONDS)

    async def serves(self):
        return (await once(self.port, "GET", "/readyz", timeout=2)).status == 200

    async def knows(self, instances):
        """Whether it sends requests to all instances."""
        return True


def configured(name, scratch, ports, **replaced):
    """A copy of a file of deploy/ with ports of this machine; `replaced` are other texts to exchange."""
    text = (ROOT / "deploy" / name).read_text()
    for old, new in {**dict(zip([8080, 8081, 8082, 8083, 8404], ports)), **replaced}.items():
        old = f"127.0.0.1:{old}" if isinstance(old, int) else old
        new = f"127.0.0.1:{new}" if isinstance(new, int) else new
        if old not in text and not old.endswith("8404"):
            raise SystemExit(f"deploy/{name} does not have {old}")
        text = text.replace(old, new)
    path = scratch / name
    path.write_text(text)
    return path


class HAProxy(Balancer):
    # A second failed check after a second, each with a timeout of a second.
    takeout = 5.0

    def __init__(self, scratch, instances):
        port, self.state_port = free_ports(2)
        ports = [port, *[instance.port for instance in instances], self.state_port]
        path = configured("haproxy.cfg", scratch, ports)
        super().__init__([os.environ.get("HAPROXY", "haproxy"), "-db", "-f", path], scratch, port)

    async def knows(self, instances):
        state = (await once(self.state_port, "GET", "/;csv")).body.decode()
        rows = [line.split(",") for line in state.splitlines() if line.startswith("instances,")]
        return sum(row[17] == "UP" for row in rows if row[1] != "BACKEND") == len(instances)


class Nginx(Balancer):
    # Checks are requests: the first ones after an instance hangs wait for proxy_read_timeout, here instead of 30 s.
    read_timeout = 4
    takeout = 5.0

    def __init__(self, scratch, instances):
        [port] = free_ports(1)
        ports = [port, *[instance.port for instance in instances]]
        quick = {"proxy_read_timeout 30s": f"proxy_read_timeout {self.read_timeout}s"}
        path = configured("nginx.conf", scratch, ports, **quick)
        place = f"daemon off; pid {scratch}/nginx.pid;"
        command = [os.environ.get("NGINX", "nginx"), "-p", scratch, "-c", path, "-g", place]
        super().__init__(command, scratch, port)

    def kill(self):
        # The master ends its workers.
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


class SMG(Balancer):
    takeout = 6.0
    repeats_stored = True

    def __init__(self, scratch, instances):
        port, metrics_port = free_ports(2)
        workers = []
        for instance in instances:
            workers.append({"id": f"chat-{instance.port}", "url": f"http://127.0.0.1:{instance.port}"})
            other = {"id": f"text-{instance.port}", "url": f"http://localhost:{instance.port}"}
            workers.append({**other, "model_id": EMBEDDING_MODEL})
        manifest = scratch / "workers.json"
        manifest.write_text(json.dumps({"version": 1, "workers": workers}))
        # deploy/smg.md has the command in its first block of code.
        text = (ROOT / "deploy" / "smg.md").read_text()
        options = re.search(r"^smg launch (.*?)^```", text, re.M | re.S)[1].replace("\\\n", " ").split()
        places = {
            "--port": str(port),
            "--prometheus-port": str(metrics_port),
            "--discovery-file": str(manifest),
        }
        for name, value in places.items():
            options[options.index(name) + 1] = value
        super().__init__([os.environ.get("SMG", "smg"), "launch", *options], scratch, port)
        self.n_workers = len(workers)

    async def serves(self):
        answer = await once(self.port, "GET", "/readiness", timeout=2)
        return answer.status == 200 and answer.json()["healthy_workers"] == self.n_workers

    async def knows(self, instances):
        return await self.serves()


BALANCERS = [HAProxy, Nginx, SMG]


@contextlib.asynccontextmanager
async def instances(binary, scratch, n=3, **options):
    """Instances that run as long as the block. The first one downloads the models if they are not on disk."""
    found = [Instance(binary, port, scratch / f"instance-{port}.log", **options) for port in free_ports(n)]
    try:
        for instance in found:
            await instance.start()
        yield found
    finally:
        for instance in found:
            if instance.process is not None and instance.process.poll() is None:
                # One that is stopped cannot end.
                instance.signal(signal.SIGCONT)
            instance.kill()


@contextlib.asynccontextmanager
async def balanced(kind, scratch, fleet):
    """A balancer that runs as long as the block."""
    balancer = kind(scratch, fleet)
    try:
        await balancer.start()
        yield balancer
    finally:
        balancer.kill()
