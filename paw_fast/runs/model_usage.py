"""Writes the part of a model card that shows how to use the model: with transformers, vLLM and paw-fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paw_fast.runs.markdown import fence
from paw_fast.runs.run_data import Run
from paw_fast.runs.secrets import mask_text


def usage(run: Run, repo_id: str, prompt: Mapping[str, Any], own_code: bool) -> list[str]:
    """Returns the paragraphs.

    Args:
        run: the run.
        repo_id: name of the repository, in the code.
        prompt: content of example_prompt.json: `message`, a first message of the environment, and `stop`, texts that
            end an action. May be empty.
        own_code: whether the model comes with Python code.
    """
    message = prompt.get("message") or "(a prompt of the environment)"
    layout, history = run.setting("layout"), run.setting("env", "history")
    turns = (
        "Each answer and the observation after it are appended to the conversation."
        if layout == "trajectory"
        else f"Each turn is a prompt of its own, with the last {history} turns in its text."
    )
    trust = ", trust_remote_code=True" if own_code else ""
    template = mask_text(str(run.setting("env", "template")))
    env = mask_text(str(run.setting("env", "name")))
    return [
        f"The model expects the prompts of its environment (template `{template}`, layout `{layout}`). {turns} The "
        "message below is the first of a training task.",
        "With transformers:",
        fence("python", _transformers(run, repo_id, str(message), _stop(prompt), trust)),
        "With vLLM, with the same `name` and `message`, or as a server:",
        fence("python", _vllm(run, _stop(prompt), trust)),
        fence("bash", f"vllm serve {repo_id}{' --trust-remote-code' if own_code else ''}"),
        "With paw-fast, on tasks of the environment. `settings.toml` holds the settings below, with your own "
        "paths in place of `...`:",
        fence(
            "bash",
            f"hf download {repo_id} --local-dir model\npaw-fast eval model --env {env} --preset settings.toml",
        ),
    ]


def _stop(prompt: Mapping[str, Any]) -> list[str]:
    return [str(one) for one in prompt.get("stop") or ()]


def _sampling(run: Run) -> tuple[Any, Any]:
    """The longest action in tokens, and the temperature of evaluations."""
    return run.setting("rollout", "max_action_tokens") or 512, run.setting("rollout", "eval_temperature") or 0.4


def _transformers(run: Run, repo_id: str, message: str, stop: list[str], trust: str) -> str:
    limit, temperature = _sampling(run)
    stops = f", stop_strings={stop!r}, tokenizer=tokenizer" if stop else ""
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'name = "{repo_id}"\n'
        f"tokenizer = AutoTokenizer.from_pretrained(name{trust})\n"
        f'model = AutoModelForCausalLM.from_pretrained(name, dtype="auto"{trust})\n'
        f"message = {literal(message)}\n"
        'chat = [{"role": "user", "content": message}]\n'
        "inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, "
        'return_tensors="pt")\n'
        f"output = model.generate(\n    **inputs, max_new_tokens={limit}, do_sample=True, temperature={temperature}, "
        f"top_k=0{stops}\n)\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )


def _vllm(run: Run, stop: list[str], trust: str) -> str:
    limit, temperature = _sampling(run)
    stops = f", stop={stop!r}, include_stop_str_in_output=True" if stop else ""
    return (
        "from vllm import LLM, SamplingParams\n\n"
        f"llm = LLM(model=name{trust})\n"
        f"sampling = SamplingParams(max_tokens={limit}, temperature={temperature}{stops})\n"
        'print(llm.chat([{"role": "user", "content": message}], sampling)[0].outputs[0].text)'
    )


def literal(text: str) -> str:
    """Returns a text as Python source, a line for each of its lines.

    >>> print(literal("one\\ntwo"))
    (
        'one\\n'
        'two'
    )
    """
    lines = text.splitlines(keepends=True) or [""]
    return repr(text) if len(lines) == 1 else "(\n" + "\n".join(f"    {line!r}" for line in lines) + "\n)"
