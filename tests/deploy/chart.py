"""Checks the Helm chart: `helm lint`, renderings against Kubernetes' schemas, and what the renderings must contain.

Usage: chart.py HELM, in an environment with kubernetes-validate; or chart.py --update, which writes the flags of
docs/OPTIONS.md into values.schema.json. Prints one line.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "deploy/helm/predict-otron-9000"
SCHEMA = CHART / "values.schema.json"
# The oldest version that Chart.yaml allows and that the schemas know, and the newest that they know.
VERSIONS = ("1.27", "1.30", "1.33", "1.37")
KEYS = ["--set", "auth.existingSecret=keys"]
# Flags that other values of the chart set.
OWN = {"config", "host", "port", "api-key", "api-key-file", "no-auth", "tls-cert", "tls-key", "cache-dir", "offline"}
OWN |= {"model", "embedding-model", "rerank-model"}

RENDERINGS = {
    "the defaults": KEYS,
    "everything": KEYS
    + ["--set", "tls.existingSecret=tls", "--set", "autoscaling.enabled=true", "--set", "serviceMonitor.enabled=true"]
    + ["--set", "autoscaling.targetCPUUtilizationPercentage=80", "--set", "models={a,hf:b/c}"]
    + ["--set", "embeddingModel=e", "--set", "rerankModel=r", "--set", "service.type=LoadBalancer"]
    + ["--set", "imagePullSecrets[0].name=pull", "--set", "priorityClassName=high", "--set", "podLabels.a=b"]
    + ["--set", "options.max-queue=300000000", "--set", "options.no-speculation=true", "--set", "nodeSelector.a=b"]
    + ["--set", "networkPolicy.from[0].namespaceSelector.matchLabels.a=b", "--set", "podAnnotations.a=b"]
    + ["--set", "options.alias={x=y,z=y}", "--set", "extraEnv[0].name=HF_TOKEN", "--set", "extraEnv[0].value=t"]
    + ["--set", "persistence.storageClass=fast", "--set", "tolerations[0].operator=Exists"]
    + ["--set", "serviceAccount.annotations.a=b", "--set", "image.digest=sha256:" + "0" * 64],
    "no keys": ["--set", "auth.disabled=true"],
    "no keys, a shared volume": ["--set", "auth.disabled=true", "--set", "persistence.existingClaim=models"]
    + ["--set", "persistence.readOnly=true", "--set", "offline=true", "--set", "replicaCount=3"],
    "no volume, nothing optional": KEYS
    + ["--set", "persistence.enabled=false", "--set", "networkPolicy.enabled=false", "--set", "preStopSleepSeconds=0"]
    + ["--set", "podDisruptionBudget.enabled=false", "--set", "serviceAccount.create=false"]
    + ["--set", "topologySpread.enabled=false"],
}

# Values that must be refused, and a part of the message.
REFUSED = [
    ([], "auth.existingSecret"),
    ([*KEYS, "--set", "auth.disabled=true"], "exclude each other"),
    ([*KEYS, "--set", "replicas=2"], "replicas"),
    ([*KEYS, "--set", "image.tga=1"], "tga"),
    ([*KEYS, "--set", "options.max-queu=1"], "max-queu"),
    ([*KEYS, "--set", "options.no-auth=true"], "no-auth"),
    ([*KEYS, "--set", "terminationGracePeriodSeconds=30"], "terminationGracePeriodSeconds"),
    ([*KEYS, "--set", "probes.readinessPeriodSeconds=10"], "readinessPeriodSeconds"),
    ([*KEYS, "--set", "persistence.size=large"], "size"),
]


def flags():
    """The flags of `serve`, without those that the chart sets itself."""
    section = (REPOSITORY / "docs/OPTIONS.md").read_text().split("\n## `serve`\n")[1].split("\n## ")[0]
    return sorted(set(re.findall(r"^\| `--([a-z0-9-]+)` \|", section, re.MULTILINE)) - OWN)


def update():
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["options"]["propertyNames"]["enum"] = flags()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")


def main(helm):
    import kubernetes_validate
    import yaml

    schema = json.loads(SCHEMA.read_text())
    known = schema["properties"]["options"]["propertyNames"]["enum"]
    assert known == flags(), "the flags of serve have changed: run tests/deploy/chart.py --update"
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    undescribed = set(schema["properties"]) ^ set(values) ^ {"global"}
    assert not undescribed, f"in values.yaml or its schema, but not in both: {undescribed}"

    def run(*arguments):
        return subprocess.run([helm, *arguments], capture_output=True, text=True)

    def render(arguments, version):
        result = run("template", "release", CHART, "--namespace", "models", "--kube-version", version, *arguments)
        assert result.returncode == 0, result.stderr
        return [document for document in yaml.safe_load_all(result.stdout) if document]

    for arguments in RENDERINGS.values():
        lint = run("lint", "--strict", CHART, *arguments)
        assert lint.returncode == 0, lint.stdout + lint.stderr
    for arguments, part in REFUSED:
        result = run("template", "release", CHART, *arguments)
        assert result.returncode != 0 and part in result.stderr, (arguments, result.stderr)

    n_objects = 0
    for name, arguments in RENDERINGS.items():
        for version in VERSIONS:
            for document in render(arguments, version):
                if document["kind"] == "ServiceMonitor":
                    continue  # A custom resource: Kubernetes' own schemas do not describe it.
                kubernetes_validate.validate(document, version, strict=True)
                n_objects += 1
        check(name, {(d["kind"], d["metadata"]["name"]): d for d in render(arguments, "1.35")})
    print(
        f"helm {run('version', '--short').stdout.strip()}: lint of {len(RENDERINGS)} renderings, {n_objects} objects "
        f"valid for Kubernetes {', '.join(VERSIONS)}, {len(REFUSED)} wrong values refused"
    )


def check(name, objects):
    """What holds for each rendering, whatever the values."""
    full = "release-predict-otron-9000"
    stateful_set = objects["StatefulSet", full]["spec"]
    labels = stateful_set["template"]["metadata"]["labels"]
    for kind in ("Service", "NetworkPolicy", "PodDisruptionBudget"):
        if (kind, full) in objects:
            spec = objects[kind, full]["spec"]
            selector = spec.get("podSelector", spec.get("selector"))
            selector = selector.get("matchLabels", selector)
            assert selector.items() <= labels.items(), f"{name}: {kind} selects no pod"
    assert ("Service", stateful_set["serviceName"]) in objects, name
    for kind, owner in (("StatefulSet", full), ("Pod", f"{full}-test")):
        pod = objects[kind, owner]["spec"]
        pod = pod.get("template", {"spec": pod})["spec"]
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True and context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name
    pod = stateful_set["template"]["spec"]
    server = pod["containers"][0]
    variables = [variable["name"] for variable in server["env"]]
    assert len(variables) == len(set(variables)), f"{name}: a variable is set twice"
    assert server["startupProbe"]["httpGet"]["path"] == server["readinessProbe"]["httpGet"]["path"] == "/readyz", name
    assert server["livenessProbe"]["httpGet"]["path"] == "/livez", name
    # Until readiness has failed, the server still answers: for 5 s after SIGTERM.
    readiness = server["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < 5, name
    # The pod's sleep, the server's drain and what its requests may take.
    sleep = server.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] >= sleep + 5 + 30 + 5, name
    mounts = {mount["name"] for mount in server["volumeMounts"]}
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    volumes |= {claim["metadata"]["name"] for claim in stateful_set.get("volumeClaimTemplates", [])}
    assert mounts == volumes, f"{name}: {mounts ^ volumes} is not mounted or no volume"
    has_keys = "PREDICT_OTRON_API_KEY_FILE" in variables
    assert has_keys != ("PREDICT_OTRON_NO_AUTH" in variables), name
    if name == "everything":
        values = {variable["name"]: variable.get("value") for variable in server["env"]}
        assert values["PREDICT_OTRON_MODEL"] == "a,hf:b/c" and values["PREDICT_OTRON_ALIAS"] == "x=y,z=y", values
        assert values["PREDICT_OTRON_MAX_QUEUE"] == "300000000" and values["PREDICT_OTRON_NO_SPECULATION"] == "true"
        autoscaler = objects["HorizontalPodAutoscaler", full]["spec"]
        assert autoscaler["scaleTargetRef"]["name"] == full and "replicas" not in stateful_set
        adapter = (REPOSITORY / "deploy/prometheus/adapter.yaml").read_text()
        assert f"as: {autoscaler['metrics'][0]['pods']['metric']['name']}\n" in adapter
        monitor = objects["ServiceMonitor", full]["spec"]
        services = [d["metadata"]["labels"] for (kind, _), d in objects.items() if kind == "Service"]
        read = [s for s in services if "app.kubernetes.io/component" not in s]
        assert len(read) == 1 and monitor["selector"]["matchLabels"].items() <= read[0].items()


if sys.argv[1] == "--update":
    update()
else:
    main(sys.argv[1])
