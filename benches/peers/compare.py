"""Run the same GGUF file through this project and its peers, alternating; print medians and ratios.

    cargo build --release
    python3 benches/peers/compare.py --model model.gguf --rounds 3

The peers are installed from the Python package index into an environment of their own, target/peers.
llama-cpp-python is compiled with clang-16 if that is installed: gcc 12 miscompiles its AMX code.
A peer that cannot run the file is reported and skipped.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
OURS = "predict-otron-9000"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="a GGUF file")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--tokens", type=int, default=64)
parser.add_argument("--streams", default="4,8,16,32", help="numbers of concurrent sequences, for llama.cpp and this project")
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--peers", default="llama.cpp,openvino,mistral.rs")
parser.add_argument("--python", help="a Python that has the peers, instead of target/peers")
args = parser.parse_args()
peers = [peer for peer in args.peers.split(",") if peer]


def environment():
    """Returns the Python of the environment with the peers, creating it if needed."""
    folder = ROOT / "target" / "peers"
    python = folder / "bin" / "python"
    wanted = (HERE / "requirements.txt").read_text()
    installed = folder / "requirements.txt"
    if not installed.exists() or installed.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        variables = dict(os.environ)
        if shutil.which("clang-16"):
            variables |= {"CC": "clang-16", "CXX": "clang++-16"}
        else:
            print("clang-16 is not installed: llama.cpp is compiled with the default compiler", file=sys.stderr)
        command = [python, "-m", "pip", "install", "-r", HERE / "requirements.txt"]
        subprocess.run(command, env=variables, check=True, stdout=sys.stderr)
        shutil.copy(HERE / "requirements.txt", installed)
    return python


def measure_ours():
    command = [ROOT / "target" / "release" / OURS, "bench", "--json", "--model", args.model]
    command += ["-p", str(args.prompt), "-n", str(args.tokens), "--streams", args.streams or "0"]
    command += ["--depths", str(args.prompt), "--threads", str(args.threads)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    figures = {"prefill": report["prefill"][0]["tok_s"]}
    for row in report["decode"]:
        alone = row["streams"] == 1 and row["depth"] == args.prompt
        figures["decode" if alone else f"decode, {row['streams']} streams"] = row["tok_s"]
    return figures


def measure_peer(python, peer):
    command = [python, HERE / "measure.py", peer, args.model, "--prompt", str(args.prompt)]
    command += ["--tokens", str(args.tokens), "--streams", args.streams, "--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


python = args.python or (environment() if peers else None)
results = {}
for _ in range(args.rounds):
    results.setdefault(OURS, []).append(measure_ours())
    for peer in list(peers):
        try:
            results.setdefault(peer, []).append(measure_peer(python, peer))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{peer}: {error}", file=sys.stderr)
            peers.remove(peer)

medians = {
    system: {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}
    for system, runs in results.items()
    if runs
}
print(f"{pathlib.Path(args.model).name}: tokens per second (ours / theirs), medians of {args.rounds} rounds\n")
print(f"| | {' | '.join(medians)} |")
print(f"| --- |{' --- |' * len(medians)}")
for figure, ours in medians[OURS].items():
    cells = [f"{ours:,.0f}"]
    for system in list(medians)[1:]:
        theirs = medians[system].get(figure)
        cells.append(f"{theirs:,.0f} ({ours / theirs:.1f} x)" if theirs else "")
    print(f"| {figure} | {' | '.join(cells)} |")
