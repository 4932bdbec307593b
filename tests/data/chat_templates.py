"""Renders every case of chat_templates.json with transformers and stores the texts, or the errors, in the file.

Run after adding a template or a case: `pip install transformers jinja2 && python chat_templates.py`.
"""

import datetime
import json
import pathlib

from transformers.utils import chat_template_utils

PATH = pathlib.Path(__file__).with_suffix(".json")


def render(reference, template, case):
    compiled = chat_template_utils._compile_jinja_template(template)
    now = datetime.datetime.fromisoformat(reference["strftime_now"])
    return compiled.render(
        messages=case["messages"],
        tools=case.get("tools"),
        documents=case.get("documents"),
        add_generation_prompt=case["add_generation_prompt"],
        bos_token=reference["bos_token"],
        eos_token=reference["eos_token"],
        strftime_now=now.strftime,
        **case.get("options", {}),
    )


reference = json.loads(PATH.read_text())
for entry in reference["templates"].values():
    for case in entry["cases"]:
        case.pop("rendered", None)
        case.pop("error", None)
        try:
            case["rendered"] = render(reference, entry["template"], case)
        except Exception as error:
            case["error"] = str(error)
PATH.write_text(json.dumps(reference, ensure_ascii=False, indent=1) + "\n")
