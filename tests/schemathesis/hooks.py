"""Turns generated requests into ones that the model can answer.

A schema cannot express that token ids are bounded by the vocabulary, or that one field requires another. Without
this, requests that violate only such rules would all be refused before they reach a model. Requests that violate
the schema are left as they are.
"""

import schemathesis

N_VOCAB = 256
CONTEXT = 512


def is_int(value, least, most=2**63 - 1):
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value, least, most):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def ids(value):
    """Returns token ids, or lists of them, reduced to the vocabulary; None if the value is neither."""
    if not isinstance(value, list) or not value:
        return None
    if all(is_int(item, 0) for item in value):
        return [item % N_VOCAB for item in value[:64]]
    lists = [ids(item) for item in value]
    return lists if None not in lists else None


def is_call(value):
    """Whether the value is a tool call by the schema."""
    function = value.get("function") if isinstance(value, dict) else None
    texts = [value.get("id"), function.get("name"), function.get("arguments")] if isinstance(function, dict) else [None]
    return all(isinstance(text, str) for text in texts) and value.get("type") == "function"


def mend_message(message):
    if not isinstance(message, dict):
        return
    if message.get("content", ...) in (None, ...):
        message["content"] = "x"
    # Each call needs its result, and each result its call.
    if isinstance(message.get("tool_calls"), list) and all(map(is_call, message["tool_calls"])):
        message["tool_calls"] = None
    if message.get("role") == "tool":
        message["role"] = "user"


def mend_generation(body):
    if is_int(body.get("top_logprobs"), 0, 20) and body.get("logprobs") in (None, False):
        body["logprobs"] = True
    if isinstance(body.get("stream_options"), dict) and body.get("stream") in (None, False):
        body["stream"] = True
    if is_int(body.get("min_tokens"), 0):
        body["min_tokens"] %= 2
    if is_int(body.get("truncate_prompt_tokens"), 1):
        body["truncate_prompt_tokens"] = 1 + body["truncate_prompt_tokens"] % (CONTEXT // 2)
    if all(is_number(body.get(name), 0.01, 10) for name in ("repeat_penalty", "repetition_penalty")):
        body["repetition_penalty"] = body["repeat_penalty"]
    # Other values need a model whose template knows them.
    if body.get("reasoning_effort") in ("minimal", "low", "medium", "high", "xhigh"):
        body["reasoning_effort"] = "none"
    mend_tools(body)
    mend_grammar(body)
    bias = body.get("logit_bias")
    if isinstance(bias, dict) and all(is_number(value, -100, 100) for value in bias.values()):
        body["logit_bias"] = {str(idx): value for idx, value in enumerate(bias.values())}
    stops = body.get("stop_token_ids")
    if isinstance(stops, list) and len(stops) <= 64:
        body["stop_token_ids"] = ids(stops) or stops


def mend_tools(body):
    """Gives functions distinct names and schemas that can be enforced."""
    tools = body.get("tools")
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    functions = [function for function in functions if isinstance(function, dict)]
    for idx, function in enumerate(functions):
        if isinstance(function.get("name"), str) and 0 < len(function["name"]) <= 64 and function["name"].isalnum():
            function["name"] = f"{function['name'][:60]}{idx}"
        if isinstance(function.get("parameters"), dict):
            function["parameters"] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    choice = body.get("tool_choice")
    if isinstance(choice, (dict, str)) and (isinstance(choice, dict) or not functions):
        body["tool_choice"] = "auto" if choice in ("none", "auto", "required") or "function" in choice else choice


def mend_grammar(body):
    """Leaves one grammar at most, and one that can be enforced."""
    if isinstance(body.get("guided_json"), (dict, str)):
        body["guided_json"] = {"type": "integer"}
    if isinstance(body.get("guided_regex"), str):
        body["guided_regex"] = "[0-9]+"
    if isinstance(body.get("grammar"), str):
        body["grammar"] = "start: /[a-z]+/"
    form = body.get("response_format")
    if isinstance(form, dict) and isinstance(form.get("json_schema"), dict):
        if isinstance(form["json_schema"].get("schema"), dict):
            form["json_schema"]["schema"] = {"type": "object"}
    names = ["response_format", "guided_json", "guided_regex", "guided_choice", "grammar"]
    asked = [name for name in names if body.get(name) is not None]
    for name in asked[1:]:
        body[name] = None
    if "grammar" in asked[:1] and body.get("tools"):
        body["grammar"] = None


def mend_completion(body):
    # The model has no fill-in-the-middle tokens.
    if isinstance(body.get("suffix"), str):
        body["suffix"] = None
    if is_int(body.get("best_of"), 1, 8) and (body.get("n") is None or is_int(body["n"], 1, 8)):
        body["best_of"] = None
    if body.get("echo") is True and is_int(body.get("logprobs"), 0, 5):
        body["echo"] = None
    if isinstance(body.get("prompt"), list):
        body["prompt"] = (ids(body["prompt"]) or body["prompt"])[:4]


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    # One in eight model names is left alone and gets its 404.
    if isinstance(body.get("model"), str) and len(body["model"]) % 8 != 7:
        body["model"] = "default"
    path = context.operation.path
    if path.endswith("completions"):
        mend_generation(body)
    if path == "/v1/completions":
        mend_completion(body)
    if path == "/tokenize" and isinstance(body.get("prompt"), str) and isinstance(body.get("messages"), list):
        body["prompt"] = None
    # The model has no named prompts.
    if isinstance(body.get("prompt_name"), str):
        body["prompt_name"] = None
    for message in body["messages"] if isinstance(body.get("messages"), list) else []:
        mend_message(message)
    if isinstance(body.get("input"), list):
        body["input"] = ids(body["input"]) or body["input"]
    if isinstance(body.get("tokens"), list):
        body["tokens"] = ids(body["tokens"]) or body["tokens"]
    # Vectors of models that were not trained for it are shortened only with `force_dimensions`.
    if is_int(body.get("dimensions"), 1):
        body["dimensions"] = 1 + body["dimensions"] % 384
        if body.get("force_dimensions") in (None, False):
            body["force_dimensions"] = True
    return body
