"""Runs lm-eval's `local-completions` against a server, and compares it with transformers on the same weights.

Usage: check.py BASE_URL MODEL_FOLDER SCRATCH_FOLDER

The tasks are made from the repository's own documents: in one, a sentence is continued by its own end or by that of
three others (multiple choice); in the other, paragraphs have a perplexity. Both are run with the server's tokenizer, with
prompts as token ids and as texts, and by transformers in float32. The mean log likelihood of the tokens of every
continuation may differ by 0.001, and so may the figures.
"""

import json
import pathlib
import sys

import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

BASE_URL, MODEL, SCRATCH = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
ROOT = pathlib.Path(__file__).resolve().parents[2]
MAX_DIFFERENCE = 1e-3
# The context of the tiny model has 512 tokens, one of which lm-eval lets the server generate.
MAX_LENGTH = 511


def sentences():
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    prose = " ".join(line for line in text.splitlines() if line[:1].isalpha())
    found = [part.strip() + "." for part in prose.split(". ")]
    return [sentence for sentence in found if 60 < len(sentence) < 180 and "`" not in sentence]


def write_tasks(folder):
    """Writes both tasks, and returns their names."""
    texts = sentences()[:24]
    halves = [(text[: text.index(" ", len(text) // 2)], text[text.index(" ", len(text) // 2) :]) for text in texts]
    choices = []
    for idx, (start, end) in enumerate(halves):
        ends = [halves[(idx + n) % len(halves)][1] for n in (1, 2, 3)]
        ends.insert(idx % 4, end)
        choices.append({"query": start, "choices": ends, "gold": idx % 4})
    # Longer ones would be cut into windows, which both models of lm-eval do differently.
    paragraphs = [{"text": " ".join(texts[n : n + 3])[: MAX_LENGTH - 10]} for n in range(0, len(texts), 3)]
    common = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1}}
    tasks = {
        "ends": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
        "paragraphs": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": metric} for metric in ("word_perplexity", "bits_per_byte")],
        },
    }
    for (name, task), rows in zip(tasks.items(), (choices, paragraphs)):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"dataset_kwargs": {"data_files": {"test": str(data)}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **files, **task}))
    return list(tasks)


def evaluate(model, arguments, names):
    """The mean log likelihood of the tokens of every request, which are bytes, and the figures of each task."""
    results = simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=names,
        task_manager=TaskManager(include_path=str(SCRATCH), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    values = {}
    for name in names:
        samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
        for sample in samples:
            for idx, response in enumerate(sample["resps"]):
                value = response[0]
                total = float(value[0] if isinstance(value, (list, tuple)) else value)
                *_, text = sample["arguments"][idx]
                values[name, sample["doc_id"], idx] = total / len(text.encode())
    figures = {
        (name, metric): value
        for name in names
        for metric, value in results["results"][name].items()
        if isinstance(value, float)
    }
    return values, figures


def main():
    names = write_tasks(SCRATCH)
    expected, expected_figures = evaluate(
        "hf", {"pretrained": str(MODEL), "dtype": "float32", "device": "cpu", "max_length": MAX_LENGTH}, names
    )
    server = {"model": "default", "base_url": f"{BASE_URL}/completions", "max_length": MAX_LENGTH + 1}
    kinds = {
        "token ids of the server": {"tokenizer_backend": "remote"},
        "token ids of the server, eight prompts at once": {"tokenizer_backend": "remote", "batch_size": 8},
        "texts, counted by the server": {"tokenizer_backend": "remote", "tokenized_requests": False},
        "texts, counted by a local tokenizer": {"tokenizer": str(MODEL), "tokenized_requests": False},
    }
    failed = False
    for kind, arguments in kinds.items():
        values, figures = evaluate("local-completions", {**server, **arguments}, names)
        assert values.keys() == expected.keys(), f"{kind}: other requests than transformers"
        worst = max(abs(values[key] - expected[key]) for key in expected)
        worst_figure = max(abs(1 - figures[key] / expected_figures[key]) for key in expected_figures if expected_figures[key])
        print(f"{kind}: {len(values)} log likelihoods, at most {worst:.6f} off; figures at most {worst_figure:.2%} off")
        failed |= worst > MAX_DIFFERENCE or worst_figure > MAX_DIFFERENCE
    print({f"{name}.{metric}": round(value, 4) for (name, metric), value in expected_figures.items()})
    sys.exit(failed)


main()
