"""What the endpoint picker of Kubernetes' Gateway API inference extension, and those of vLLM's and llm-d's routers, read
from a model server: metrics with vLLM's names, and headers that are none of its business."""

import re

from client import CHAT, chat, once

# From the extension's model server protocol, the column of vLLM.
GAUGES = ["vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:cache_config_info"]

# Set by the picker, by gateways, and by clients of gateways.
HEADERS = {
    "x-gateway-destination-endpoint": "127.0.0.1:1",
    "x-gateway-destination-endpoint-served": "127.0.0.1:1",
    "x-gateway-model-name": "another-model",
    "x-gateway-model-name-rewrite": "another-model",
    "x-gateway-inference-objective": "critical",
    "x-gateway-inference-fairness-id": "tenant",
    "x-prefiller-host-port": "127.0.0.1:1",
    "x-data-parallel-host-port": "127.0.0.1:1",
    "x-envoy-expected-rq-timeout-ms": "300000",
    "x-forwarded-for": "10.0.0.1",
    "x-forwarded-proto": "https",
    "x-request-id": "from-the-gateway",
}


def samples(text, name):
    """The labels and the value of each sample of a metric."""
    found = []
    for labels, value in re.findall(rf"^{re.escape(name)}(?:\{{(.*)\}})? (\S+)$", text, re.M):
        found.append((dict(re.findall(r'([a-z_]+)="([^"]*)"', labels)), float(value)))
    return found


async def check_metrics(instance):
    await once(instance.port, "POST", CHAT, chat("Hi", 4))
    answer = await once(instance.port, "GET", "/metrics")
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain"), answer.headers
    text = answer.body.decode()
    for name in GAUGES:
        assert f"# TYPE {name} gauge\n" in text, f"{name} is no gauge"
        # The picker takes one value of each, that of the model.
        [(labels, value)] = samples(text, name)
        assert labels.get("model_name"), f"{name} does not name its model"
        assert value >= 0, f"{name} is {value}"
    [(_, usage)] = samples(text, "vllm:kv_cache_usage_perc")
    assert usage <= 1, f"the KV cache is used by {usage}"
    [(labels, value)] = samples(text, "vllm:cache_config_info")
    assert value == 1 and int(labels["block_size"]) > 0 and int(labels["num_gpu_blocks"]) > 0, labels
    return f"{', '.join(GAUGES)}; blocks of {labels['block_size']} tokens, {labels['num_gpu_blocks']} of them"


async def check_headers(port):
    plain = await once(port, "POST", CHAT, chat("Count to five.", 16))
    marked = await once(port, "POST", CHAT, chat("Count to five.", 16), HEADERS)
    assert plain.is_good and marked.is_good, marked.describe()
    texts = [outcome.json()["choices"][0]["message"]["content"] for outcome in (plain, marked)]
    assert texts[0] == texts[1], f"headers change the response: {texts}"
    ignored = marked.headers.get("x-ignored-params", "")
    assert ignored == plain.headers.get("x-ignored-params", ""), f"headers taken for parameters: {ignored}"
    return f"{len(HEADERS)} headers change nothing"
