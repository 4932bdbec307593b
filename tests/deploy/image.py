"""Builds the image with buildah, from `scratch` and the binary instead of the build stage, and checks what it says.

Usage: image.py BINARY SCRATCH. Needs no registry. Prints one line. Exit codes: 0 passed, 3 skipped.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

IMAGE_BYTES = 60_000_000


def main():
    binary, scratch = sys.argv[1], Path(sys.argv[2])
    if os.geteuid() != 0 or shutil.which("buildah") is None:
        print("buildah is not installed, or this is not root")
        sys.exit(3)
    repository = Path(__file__).parents[2]
    # Named as the build stage, this context takes its place.
    context = scratch / "build"
    subprocess.run([repository / "deploy/bundle.sh", binary, context / "bundle"], check=True)
    storage = ["--storage-driver", "vfs", "--root", scratch / "storage", "--runroot", scratch / "run"]

    def buildah(*arguments):
        command = ["buildah", *storage, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=repository).stdout

    # Docker's format, since the OCI's has no HEALTHCHECK. The architecture is only a label here.
    build = ["bud", "--format", "docker", "--isolation", "chroot", "--build-context", f"build={context}"]
    for architecture in ("arm64", "amd64"):
        arguments = ["--build-arg", f"TARGETARCH={architecture}", "--platform", f"linux/{architecture}"]
        buildah(*build, *arguments, "-t", architecture, "-f", "deploy/Dockerfile", ".")
    description = json.loads(buildah("inspect", "--type", "image", "amd64"))
    config = description["Docker"]["config"]
    expected = {
        "User": "65532:65532",
        "Entrypoint": ["/usr/bin/predict-otron-9000"],
        "StopSignal": "SIGTERM",
        "Volumes": {"/models": {}},
        "ExposedPorts": {"8080/tcp": {}},
    }
    for key, value in expected.items():
        assert config[key] == value, f"{key} is {config[key]}, not {value}"
    assert config["Healthcheck"]["Test"] == ["CMD", "/usr/bin/predict-otron-9000", "health"], config["Healthcheck"]
    assert not any("NO_AUTH" in variable for variable in config["Env"]), "the image switches authentication off"
    size = json.loads(buildah("images", "--json", "amd64"))[0]
    bundle = context / "bundle/root"
    n_bytes = sum(path.lstat().st_size for path in bundle.rglob("*") if path.is_file())
    assert n_bytes <= IMAGE_BYTES, f"{n_bytes / 1e6:.1f} MB"
    container = buildah("from", "--pull-never", "amd64").strip()
    root = Path(buildah("mount", container).strip())
    owner = (root / "models").stat()
    assert (owner.st_uid, owner.st_gid) == (65532, 65532), "/models belongs to another user, so no model can be saved"
    # Nothing but the bundle is in the image: no shell, no package manager.
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    bundled = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    assert files == bundled, set(files) ^ set(bundled)
    print(f"{size['size']}, {len(files)} files; user, volume, signal and probe as written; the build stage did not run")


try:
    main()
except subprocess.CalledProcessError as error:
    raise SystemExit(f"{error}\n{error.stderr}")
