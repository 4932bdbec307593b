"""Checks compose.yaml: it follows the Compose specification, and its services are confined as the comments promise.

Usage: compose.py, in an environment with compose-spec and PyYAML. Prints one line.
"""

import re
from pathlib import Path

import compose_spec
import yaml

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
DRAIN_S, REQUESTS_S = 5, 30


def main():
    # Variables have their defaults, as they have for docker compose.
    text = re.sub(r"\$\{[A-Z]+:-([^}]*)\}", r"\1", (DEPLOY / "compose.yaml").read_text())
    # Unknown names and values of a wrong kind are errors, and so are secrets, networks and volumes that are not there.
    specification = compose_spec.PyCompose.from_yaml(text)
    specification.validate()
    specification.to_spec()
    compose = yaml.safe_load(text)
    services = compose["services"]
    for name, service in services.items():
        assert service["read_only"] is True, f"{name}: the root file system is writable"
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service, f"{name}: capabilities"
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged") and "network_mode" not in service, name
        for key in ("mem_limit", "pids_limit", "healthcheck", "stop_grace_period", "restart"):
            assert key in service, f"{name} has no {key}"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: port {port} is open to other machines"
        for secret in service.get("secrets", []):
            assert secret in compose["secrets"], f"{name}: no secret {secret}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source} does not exist"
                assert volume.endswith(":ro"), f"{name}: {source} is writable"
            else:
                assert source in compose["volumes"], f"{name}: no volume {source}"
        for variable, value in service.get("environment", {}).items():
            if value and value.startswith("/run/secrets/"):
                assert value.removeprefix("/run/secrets/") in service["secrets"], f"{name}: {variable}"
    server = services["server"]
    assert "profiles" not in server and all(s["profiles"] == ["monitoring"] for n, s in services.items() if n != "server")
    grace = int(re.fullmatch(r"(\d+)s", server["stop_grace_period"])[1])
    assert grace >= DRAIN_S + REQUESTS_S + 5, "the server is killed before its requests can finish"
    options = (REPOSITORY / "docs/OPTIONS.md").read_text()
    for variable in server["environment"]:
        assert f"`{variable}`" in options, f"the server knows no {variable}"
    build = server["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).exists()
    targets = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"][0]
    assert targets["static_configs"][0]["targets"] == ["server:8080"], "Prometheus reads another service"
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    print(f"{', '.join(services)}: read-only, without capabilities, with limits and probes; {grace} s to stop")


main()
