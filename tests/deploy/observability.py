"""Checks the dashboard and the alerts: each metric they name is exported, each expression parses, and Prometheus gets
values from a running server for those that need no rare event.

Usage: observability.py BINARY CACHE SCRATCH. Prints one line. Exit codes: 0 passed, 3 skipped.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
KEY = "secret-of-the-test"
# Of Prometheus and of Kubernetes, not of the server.
FOREIGN = {"up"}
# Events that a healthy server with one chat and one embedding never sees.
RARE = re.compile(r"_(shed|cancelled|joined|restarts|closed|failures|dropped|misses)_|_hits_total|_response_|_mask_|_grammar_")
METRIC = re.compile(r"\b(?:predict_otron_\w+|vllm:\w+)")


def exported():
    """Kinds by name, from the table in the server's source."""
    source = (REPOSITORY / "src/telemetry.rs").read_text()
    rows = re.findall(r"^    (Counter|Gauge|Histogram)(?:Family)? \w+ = \"([^\"]+)\"", source, re.MULTILINE)
    return {name: kind for kind, name in rows}


def dashboard_expressions():
    dashboard = json.loads((DEPLOY / "grafana/predict-otron-9000.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)), "two panels have the same id"
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], re.fullmatch(r"label_values\((.+), \w+\)", variable["definition"])[1]


def plain(expression):
    """The expression with Grafana's variables filled in."""
    return expression.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def call(url, body=None):
    request = urllib.request.Request(url, data=body and json.dumps(body).encode())
    request.add_header("authorization", f"Bearer {KEY}")
    if body:
        request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def wait_for(url):
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{url} does not answer within 60 s")


def main():
    binary, cache, scratch = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    kinds = exported()
    assert len(kinds) > 30, "the table of metrics in src/telemetry.rs is not where this test looks for it"
    expressions = list(dashboard_expressions())
    rules = (DEPLOY / "prometheus/alerts.yaml").read_text()
    # The line of an expression, or the lines of a block; annotations name metrics, too.
    texts = [(title, expression) for title, expression in expressions] + [("alerts", rules)]
    texts.append(("adapter", (DEPLOY / "prometheus/adapter.yaml").read_text().replace("vllm_num", "")))
    used = set()
    for title, text in texts:
        for name in METRIC.findall(text):
            base = name
            if base not in kinds:
                base = re.sub(r"_(bucket|sum|count)$", "", name)
                assert kinds.get(base) == "Histogram", f"{title}: the server exports no {name}"
            elif kinds[name] == "Counter" and title != "alerts":
                assert re.search(rf"(rate|increase|resets)\({re.escape(name)}", text), f"{title}: raw counter {name}"
            used.add(base)
    if shutil.which("promtool") is None:
        print(f"{len(used)} metrics are exported; promtool, of Debian's package prometheus, is not installed")
        sys.exit(3)

    # A recording rule for each expression: promtool parses them all.
    parsed = scratch / "dashboard.yaml"
    recorded = [{"record": f"panel_{i}", "expr": plain(expression)} for i, (_, expression) in enumerate(expressions)]
    parsed.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))
    for command in (
        ["check", "rules", parsed, DEPLOY / "prometheus/alerts.yaml"],
        ["test", "rules", DEPLOY / "prometheus/alerts_test.yaml"],
        ["check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yaml"],
    ):
        result = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    n_alerts = len(re.findall(r"^      - alert:", rules, re.MULTILINE))
    tested = (DEPLOY / "prometheus/alerts_test.yaml").read_text()
    untested = [name for name in re.findall(r"- alert: (\w+)", rules) if f"alertname: {name}" not in tested]
    assert not untested, f"alerts without a test: {untested}"

    # The real thing: Prometheus reads a server by the example's configuration, and answers the dashboard.
    port, metrics_port = free_port(), free_port()
    config = (DEPLOY / "prometheus/prometheus.yaml").read_text()
    for old, new in (
        ("server:8080", f"127.0.0.1:{port}"),
        ("15s", "1s"),
        ("/run/secrets/metrics-key", str(scratch / "key")),
        ("/etc/prometheus/alerts.yaml", str(DEPLOY / "prometheus/alerts.yaml")),
    ):
        assert old in config, old
        config = config.replace(old, new)
    (scratch / "prometheus.yaml").write_text(config)
    (scratch / "key").write_text(KEY)
    environment = {
        **os.environ,
        "PREDICT_OTRON_PORT": str(port),
        "PREDICT_OTRON_API_KEY": KEY,
        "PREDICT_OTRON_CACHE_DIR": cache,
        "PREDICT_OTRON_OFFLINE": "true",
    }
    prometheus = ["prometheus", f"--config.file={scratch / 'prometheus.yaml'}", f"--storage.tsdb.path={scratch / 'tsdb'}"]
    prometheus.append(f"--web.listen-address=127.0.0.1:{metrics_port}")
    log = (scratch / "observability.log").open("w")
    processes = [subprocess.Popen([binary], env=environment, stderr=log)]
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/readyz")
        processes.append(subprocess.Popen(prometheus, stderr=log))
        wait_for(f"http://127.0.0.1:{metrics_port}/-/ready")
        until = time.monotonic() + 6
        n_requests = 0
        while time.monotonic() < until:
            messages = [{"role": "user", "content": f"Count to {n_requests}."}]
            call(f"{url}/v1/chat/completions", {"model": "default", "messages": messages, "max_tokens": 8})
            call(f"{url}/v1/embeddings", {"model": "default", "input": f"text {n_requests}"})
            n_requests += 1
            time.sleep(0.2)
        time.sleep(2)
        silent = []
        for title, expression in expressions:
            query = urllib.parse.urlencode({"query": plain(expression)})
            answer = call(f"http://127.0.0.1:{metrics_port}/api/v1/query?{query}")
            assert answer["status"] == "success", (title, answer)
            if not answer["data"]["result"] and not RARE.search(expression):
                silent.append((title, expression))
        assert not silent, f"no values for {silent}"
        firing = call(f"http://127.0.0.1:{metrics_port}/api/v1/alerts")["data"]["alerts"]
        assert not firing, f"alerts about a healthy server: {firing}"
    finally:
        for process in processes:
            process.kill()
            process.wait()
    print(
        f"{len(used)} of {len(kinds)} metrics used, all exported; promtool: {len(expressions)} expressions of the "
        f"dashboard parse, {n_alerts} alerts tested; Prometheus answers them from a running server"
    )


main()
