"""Checks that responses sampled for a JSON schema parse and validate against it.

Several hundred random schemas, at temperature 1, several requests at once beside unconstrained ones; the jsonschema
library is the judge. Usage: BASE_URL=http://127.0.0.1:8080/v1 structured.py [number of schemas]
"""

import json
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from jsonschema import Draft202012Validator
from openai import OpenAI

N_SCHEMAS = int(sys.argv[1]) if len(sys.argv) > 1 else 300
AT_ONCE = 20
# One in this many requests is accompanied by an unconstrained one.
FREE_EVERY = 5
ATTEMPTS = 3

PATTERNS = ["^[a-z]{2,8}$", "^[A-Z]{3}-[0-9]{1,4}$", "^(red|green|blue)( (light|dark))?$", "^#[0-9a-f]{6}$"]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email"]
TREE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer", "minimum": 0, "maximum": 99},
        "children": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
    },
    "required": ["value"],
    "additionalProperties": False,
}
LEAF = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}, {"$ref": "#/$defs/tree"}]}


def fields(draw, names, schemas, always=()):
    required = [name for name in names if name in always or draw.random() < 0.75]
    return {
        "type": "object",
        "properties": dict(zip(names, schemas)),
        "required": required,
        "additionalProperties": False,
    }


def schema(draw, depth, defs):
    """Returns a random schema, at most `depth` levels deep, which may refer to `defs`."""

    def least_and_most(most):
        least = draw.randrange(most)
        return least, least + draw.randrange(most)

    def integer():
        least, most = least_and_most(500)
        return {"type": "integer", "minimum": least - 250, "maximum": most}

    def number():
        return {"type": "number", "exclusiveMinimum": 0, "maximum": draw.randrange(1, 50)}

    def string():
        return {"type": "string", "maxLength": draw.randrange(5, 40)}

    def array():
        least, most = least_and_most(3)
        return {"type": "array", "items": schema(draw, depth - 1, defs), "minItems": least, "maxItems": most}

    def tuple_():
        items = [schema(draw, depth - 1, defs) for _ in range(2)]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": 2}

    def object_():
        names = draw.sample(["name", "größe", "a b", "x", "items", "\"quoted\""], draw.randrange(1, 5))
        return fields(draw, names, [schema(draw, depth - 1, defs) for _ in names])

    def union():
        return {"anyOf": [schema(draw, depth - 1, defs) for _ in range(draw.randrange(2, 4))]}

    def variants():
        kinds = ["circle", "square"]
        of = lambda kind: fields(draw, ["kind", "size"], [{"const": kind}, number()], always=["kind"])
        return {"oneOf": [of(kind) for kind in kinds]}

    def values():
        return {"enum": draw.sample(["a", "b c", 3, None, True, {"x": [1]}, "\n"], draw.randrange(2, 5))}

    leaves = [
        string, integer, number, values,
        lambda: {"type": "string", "pattern": draw.choice(PATTERNS)},
        # An email address has no length limit of its own.
        lambda: {"type": "string", "format": draw.choice(FORMATS), "maxLength": 60},
        lambda: {"type": draw.choice(["boolean", "null"])},
        lambda: {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
        lambda: {"const": draw.choice(["fixed", "the \"one\"\n", 1.5])},
        lambda: {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 20},
    ]
    if defs:
        leaves.append(lambda: {"$ref": f"#/$defs/{draw.choice(defs)}"})
    inner = [array, tuple_, object_, union, variants] if depth > 0 else []
    return draw.choice(inner + inner + leaves if inner else leaves)()


def whole_schema(draw):
    defs = draw.choice([[], ["item"], ["item", "tree"]])
    names = draw.sample(["first", "second", "third", "list of all"], draw.randrange(1, 4))
    whole = fields(draw, names, [schema(draw, 3, defs) for _ in names], always=names[:1])
    if defs:
        whole["$defs"] = {"item": schema(draw, 1, []), "tree": TREE, "leaf": LEAF}
    return whole


def main():
    client = OpenAI(base_url=os.environ["BASE_URL"], api_key="none", max_retries=10, timeout=300)
    model = client.models.list().data[0].id
    draw = random.Random(7)
    schemas = [whole_schema(draw) for _ in range(N_SCHEMAS)]

    def one(idx):
        if idx % FREE_EVERY == 0:
            messages = [{"role": "user", "content": "Tell me a story."}]
            free = client.chat.completions.create(model=model, messages=messages, max_tokens=40, seed=idx)
            assert free.usage.completion_tokens > 0
        message = {"role": "user", "content": f"Invent an example, number {idx}, and write it in JSON."}
        form = {"name": "example", "strict": True, "schema": schemas[idx]}
        # A grammar does not make a small model end an unbounded tree; a response without an end is drawn again.
        for attempt in range(ATTEMPTS):
            answer = client.chat.completions.create(
                model=model, messages=[message], temperature=1, seed=idx + 1000 * attempt, max_tokens=1000,
                response_format={"type": "json_schema", "json_schema": form},
            )
            choice = answer.choices[0]
            if choice.finish_reason == "stop":
                break
        if choice.finish_reason != "stop":
            assert "$ref" in json.dumps(schemas[idx]), (idx, schemas[idx], answer)
            return answer.usage.completion_tokens, attempt, True
        value = json.loads(choice.message.content)
        validator = Draft202012Validator(schemas[idx], format_checker=Draft202012Validator.FORMAT_CHECKER)
        errors = [error.message for error in validator.iter_errors(value)]
        assert not errors, (idx, schemas[idx], value, errors)
        return answer.usage.completion_tokens, attempt, False

    start = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = list(pool.map(one, range(N_SCHEMAS)))
    n_tokens, n_again, n_endless = (sum(column) for column in zip(*done))
    seconds = time.monotonic() - start
    assert n_endless <= N_SCHEMAS // 50, f"{n_endless} of {N_SCHEMAS} schemas got no complete response"
    print(f"{N_SCHEMAS} schemas: {N_SCHEMAS - n_endless} answers, all valid; {n_tokens} tokens in {seconds:.0f} s; "
          f"{n_again} drawn again, {n_endless} given up (unbounded trees)")


if __name__ == "__main__":
    main()
