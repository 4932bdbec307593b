"""Runs the server in the image's root file system, without a container engine: read-only, as another user, in
namespaces of its own and under a memory limit, with the two default models.

Usage: rootfs.py BINARY CACHE SCRATCH. CACHE is a folder that `pull --cache-dir` has filled.
Prints one line. Exit codes: 0 passed, 3 skipped, anything else failed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

LIMIT_BYTES = 512 << 20
IMAGE_BYTES = 60_000_000
USER = 65532
KEY = "secret-of-the-test"

# Runs as root in new namespaces, mounts what container engines mount, makes the root read-only and becomes the server.
START = """
set -e
mount --bind "$1" "$1"
mount --bind "$2" "$1/models"
mount -t proc proc "$1/proc"
mount -t tmpfs -o nosuid,noexec,mode=755 tmpfs "$1/dev"
for device in null zero full random urandom; do
  touch "$1/dev/$device"
  mount --bind "/dev/$device" "$1/dev/$device"
done
mount -o remount,ro,nosuid,noexec "$1/dev"
mount -o remount,bind,ro,nosuid,nodev "$1"
exec setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid chroot --userspec=65532:65532 "$1" /usr/bin/predict-otron-9000
"""


def skip(reason):
    print(reason)
    sys.exit(3)


def n_bytes(folder):
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


class MemoryCgroup:
    """A control group with a memory limit, of version 1 or 2."""

    def __init__(self):
        version_1 = Path("/sys/fs/cgroup/memory")
        self.version = 1 if version_1.is_dir() else 2
        parent = version_1 if self.version == 1 else Path("/sys/fs/cgroup")
        self.folder = parent / f"predict-otron-test-{os.getpid()}"
        if self.version == 2:
            (parent / "cgroup.subtree_control").write_text("+memory")
        self.folder.mkdir()
        limit = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        (self.folder / limit).write_text(str(LIMIT_BYTES))

    def join(self):
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self):
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        return int((self.folder / name).read_text())

    def n_kills(self):
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        rows = dict(line.split() for line in (self.folder / name).read_text().splitlines())
        return int(rows["oom_kill"])

    def remove(self):
        # The kernel needs a moment after the last process has ended.
        for _ in range(50):
            try:
                return self.folder.rmdir()
            except OSError:
                time.sleep(0.1)


def call(port, path, body=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    request.add_header("authorization", f"Bearer {KEY}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response) if body is not None else response.status


def wait_until_ready(port, server):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return call(port, "/readyz")
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None:
                raise SystemExit(f"the server ended with exit code {server.returncode} before it was ready")
            time.sleep(0.2)
    raise SystemExit("/readyz did not answer 200 within 60 s")


def child_of(pid):
    """The only child of a process: of unshare, it is the server, process 1 of its namespace."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def main():
    binary, cache, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if os.geteuid() != 0:
        skip("namespaces, mounts and control groups need root")
    missing = [tool for tool in ("unshare", "setpriv", "chroot", "strip", "ldd") if shutil.which(tool) is None]
    if missing:
        skip(f"not installed: {', '.join(missing)}")

    bundle = Path(__file__).parents[2] / "deploy/bundle.sh"
    subprocess.run([bundle, binary, scratch], check=True)
    root, models = scratch / "root", scratch / "models"
    size = n_bytes(root)
    if size > IMAGE_BYTES:
        raise SystemExit(f"the root file system has {size / 1e6:.1f} MB, more than {IMAGE_BYTES / 1e6:.0f}")
    # Container engines make these, too.
    for name in ("proc", "dev", "models"):
        (root / name).mkdir()
    shutil.copytree(cache, models, dirs_exist_ok=True)
    for path in [models, *models.rglob("*")]:
        os.chown(path, USER, USER)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # The environment of the image, and what its comments tell users to set.
    environment = {
        "PREDICT_OTRON_HOST": "0.0.0.0",
        "PREDICT_OTRON_PORT": str(port),
        "PREDICT_OTRON_CACHE_DIR": "/models",
        "PREDICT_OTRON_OFFLINE": "true",
        "PREDICT_OTRON_API_KEY": KEY,
        "PATH": os.environ["PATH"],
    }
    command = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-c", START, "start"]
    command += [str(root), str(models)]
    log = (scratch / "rootfs.log").open("w+")

    refusal = subprocess.run(
        command,
        env={name: value for name, value in environment.items() if name != "PREDICT_OTRON_API_KEY"},
        stderr=subprocess.PIPE,
        timeout=30,
        text=True,
    )
    if refusal.returncode == 0 or "api-key" not in refusal.stderr:
        raise SystemExit(f"without a key the server must refuse to start: {refusal.stderr}")

    try:
        cgroup = MemoryCgroup()
    except OSError as error:
        cgroup = None
        limit = f"no memory limit, since control groups cannot be written ({error.strerror})"
    server = subprocess.Popen(command, env=environment, stderr=log, preexec_fn=cgroup and cgroup.join)
    try:
        began = time.monotonic()
        wait_until_ready(port, server)
        ready_s = time.monotonic() - began
        process = child_of(server.pid)
        status = Path(f"/proc/{process}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        assert set(fields["Uid"].split()) == {str(USER)}, fields["Uid"]
        # Beyond the bounding set, which chroot needs, no_new_privs keeps the process from getting any.
        assert int(fields["CapPrm"], 16) == 0 and int(fields["NoNewPrivs"]) == 1, "the server has privileges"
        assert "ro," in next(
            line for line in Path(f"/proc/{process}/mounts").read_text().splitlines() if line.split()[1] == "/"
        ).split()[3] + ",", "the root is writable"

        health = subprocess.run(
            ["nsenter", "--target", str(process), "--mount", "--pid", "--root", "--wd=/", "--setuid", str(USER)]
            + ["--setgid", str(USER), "/usr/bin/predict-otron-9000", "health"],
            env=environment,
            capture_output=True,
            text=True,
        )
        if health.returncode == 0:
            probe = "`health` answers"
        elif "unexpected argument" in health.stderr or "unrecognized subcommand" in health.stderr:
            probe = "`health` skipped: the binary has no such command"
        else:
            raise SystemExit(f"`health` ended with {health.returncode}: {health.stderr}")

        messages = [{"role": "user", "content": "What is the capital of France?"}]
        chat = call(port, "/v1/chat/completions", {"model": "default", "messages": messages, "temperature": 0})
        answer = chat["choices"][0]["message"]["content"]
        assert "Paris" in answer, answer
        # A grammar is tried in a process of its own, which the root file system must allow.
        choice = {"model": "default", "messages": messages, "guided_choice": ["Paris", "Rome"]}
        answer = call(port, "/v1/chat/completions", choice)["choices"][0]["message"]["content"]
        assert answer in ("Paris", "Rome"), answer
        vector = call(port, "/v1/embeddings", {"model": "default", "input": "Say hello."})["data"][0]["embedding"]
        assert len(vector) == 384, len(vector)

        os.kill(process, signal.SIGTERM)
        # unshare ends with its child's code.
        code = server.wait(timeout=40)
        assert code == 0, f"exit code {code} on SIGTERM"
        if cgroup is not None:
            assert cgroup.n_kills() == 0, "the kernel killed a process for lack of memory"
            peak = cgroup.peak_bytes() / (1 << 20)
            limit = f"peak {peak:.0f} of {LIMIT_BYTES >> 20} MiB (cgroup v{cgroup.version})"
    except BaseException:
        log.seek(0)
        print(log.read(), file=sys.stderr)
        raise
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
        if cgroup is not None:
            cgroup.remove()
    log.seek(0)
    warnings = [line for line in log.read().splitlines() if " WARN " in line or " ERROR " in line]
    assert not warnings, warnings
    print(
        f"{size / 1e6:.1f} MB; read-only, user {USER}, no capabilities; refuses to start without a key; ready in "
        f"{ready_s:.1f} s; chat, grammar and embedding answer; {limit}; {probe}"
    )


main()
