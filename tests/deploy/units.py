"""Scores the systemd unit's sandbox, then boots systemd in a container with the unit and the default models.

Usage: units.py BINARY CACHE SCRATCH [LIBRARY OF ONNX RUNTIME]. Prints one line. Exit codes: 0 passed, 3 skipped.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

MAX_EXPOSURE = 2.0
NAME = "predict-otron-9000"
TARGET = """[Unit]
Description=The test
Requires=basic.target dbus.service deploy-test.service
After=basic.target
AllowIsolate=yes
"""
SERVICE = """[Unit]
Requires=basic.target dbus.service
After=basic.target dbus.service
[Service]
Type=oneshot
ExecStart=/bin/bash /mnt/guest.sh {arguments}
StandardOutput=file:/mnt/result
StandardError=file:/mnt/errors
ExecStopPost=/bin/systemctl poweroff --force
"""


def main():
    binary, cache, scratch = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    here = Path(__file__).parent
    units = here.parents[1] / "deploy/systemd"
    if shutil.which("systemd-analyze") is None:
        print("systemd is not installed")
        sys.exit(3)
    # Units are named by their files, and ExecStart must exist.
    copies = scratch / "units"
    shutil.copytree(units, copies)
    command = f"ExecStart={binary}\n"
    service = copies / f"{NAME}.service"
    service.write_text(re.sub(r"ExecStart=.*\n", command, re.sub(r"Documentation=.*\n", "", service.read_text())))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", service, copies / f"{NAME}.socket"],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{copies}:"},
        capture_output=True,
        text=True,
    )
    complaints = [line for line in result.stderr.splitlines() if NAME in line]
    assert result.returncode == 0 and not complaints, result.stderr
    report = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", units / f"{NAME}.service"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    exposure = float(re.search(r"exposure level .*: ([0-9.]+)", report)[1])
    assert exposure <= MAX_EXPOSURE, report
    summary = f"exposure {exposure} (at most {MAX_EXPOSURE})"

    if os.geteuid() != 0 or shutil.which("systemd-nspawn") is None:
        print(f"{summary}; not booted, since systemd-nspawn is not installed or this is not root")
        sys.exit(3)
    share = scratch / "share"
    share.mkdir()
    shutil.copy(here / "guest.sh", share)
    models = scratch / "models"
    shutil.copytree(cache, models)
    (share / "api-keys").write_text("secret-of-the-test\n")
    (share / "api-keys").chmod(0o600)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    notify = b"NOTIFY_SOCKET" in binary.read_bytes()
    drop_in = "[Service]\nEnvironment=PREDICT_OTRON_OFFLINE=true\n"
    onnx = ""
    if len(sys.argv) > 4:
        onnx = "onnx"
        shutil.copy(sys.argv[4], share / "libonnxruntime.so")
        shutil.copytree(here.parent / "data/bert-onnx", share / "bert-onnx")
        shutil.copy(here.parent / "data/tiny-encoders/bert/config.json", share / "bert-onnx")
    if not notify:
        drop_in += f"Type=exec\nEnvironment=PREDICT_OTRON_PORT={port}\n"
        # systemd gives the listening socket to a process that would listen itself.
        (share / "socket.conf").write_text("[Socket]\nListenStream=\nListenStream=%t/unused.socket\nNoDelay=no\n")
    else:
        (share / "socket.conf").write_text(f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n")
    (share / "service.conf").write_text(drop_in)
    arguments = f"{port} {'notify' if notify else 'exec'} {onnx}"
    (share / "deploy-test.service").write_text(SERVICE.format(arguments=arguments))
    (share / "deploy-test.target").write_text(TARGET)
    system = "/etc/systemd/system"
    binds = {
        binary: f"/usr/local/bin/{NAME}",
        units / f"{NAME}.service": f"{system}/{NAME}.service",
        units / f"{NAME}.socket": f"{system}/{NAME}.socket",
        share / "service.conf": f"{system}/{NAME}.service.d/test.conf",
        share / "socket.conf": f"{system}/{NAME}.socket.d/test.conf",
        share / "deploy-test.service": f"{system}/deploy-test.service",
        share / "deploy-test.target": f"{system}/deploy-test.target",
        share / "api-keys": f"/etc/{NAME}/api-keys",
    }
    # This machine's own file system, which nothing in the guest can change. systemd-nspawn takes it only under another
    # name.
    (scratch / "host").mkdir()
    boot = ["unshare", "--mount", "sh", "-c", 'mount --bind / "$1" && shift && exec "$@"', "sh", scratch / "host"]
    boot += ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={scratch / 'host'}"]
    boot += ["--volatile=overlay", "--boot"]
    boot += ["--machine", f"deploy-test-{os.getpid()}", "--console=pipe", "--link-journal=no", "--resolv-conf=off"]
    boot += ["--timezone=off", f"--bind={share}:/mnt", f"--bind={models}:/var/cache/private/{NAME}"]
    boot += [f"--bind-ro={source}:{target}" for source, target in binds.items()]
    boot += ["systemd.unit=deploy-test.target", "systemd.log_target=console"]
    with (scratch / "boot.log").open("w") as log:
        try:
            subprocess.run(boot, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=120)
        except subprocess.TimeoutExpired:
            pass
    result = share / "result"
    if not result.exists():
        print(f"{summary}; not booted: systemd-nspawn cannot start systemd here")
        print((scratch / "boot.log").read_text(), file=sys.stderr)
        sys.exit(3)
    text = result.read_text()
    if not text.endswith("passed\n"):
        raise SystemExit(text + (share / "errors").read_text())
    answers = "chat, grammar and embedding answer" + (", ONNX Runtime, too" if onnx else "")
    rest = "ready by sd_notify, 0 requests failed during a restart" if notify else (
        "readiness and socket activation skipped: the binary has no sd_notify"
    )
    print(f"{summary}; in a booted systemd: key from the credential; {answers}; {rest}")


main()
