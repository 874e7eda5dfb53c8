"""The cache of warm starts: what is shared, what is not, damage, and that a hit is bit for bit what is built."""

import dataclasses
import os
import signal
from contextlib import closing

import pytest

from paw_fast.config import load_preset
from paw_fast.rollout.factory import make_env
from paw_fast.runs import stop_signals
from paw_fast.runs.atomic_files import build_folder
from paw_fast.sft import warm_start as warm_start_module
from paw_fast.sft import warm_start_cache
from paw_fast.sft.warm_start import warm_start


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "paw-fast" / "warm_start"


def config(seed=0, size="small", **settings):
    base = load_preset("tiny")
    small = {"episodes": 12, "epochs": 1, "layers": 1, "vocab_size": 300, "batch_tokens": 4000, **settings}
    return dataclasses.replace(
        base, seed=seed, warm_start=dataclasses.replace(base.warm_start, **small),
        env=dataclasses.replace(base.env, num_train=12, num_unseen=6, max_steps=60, size=size),
    )  # fmt: skip


def build(folder, settings):
    with closing(make_env(settings.env)) as env:
        warm_start(env, settings, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def entries(cache_folder):
    return sorted(path.name for path in cache_folder.iterdir() if path.is_dir())


def test_seeds_share_a_warm_start_and_it_is_what_is_built_without_the_cache(tmp_path, capsys, cache_folder):
    first = build(tmp_path / "a" / "warm_start", config())
    assert "from the cache" not in capsys.readouterr().err
    second = build(tmp_path / "b" / "warm_start", config(seed=7))
    assert "from the cache" in capsys.readouterr().err
    assert len(entries(cache_folder)) == 1
    without = build(tmp_path / "c" / "warm_start", config(seed=3, cache=False))
    assert "from the cache" not in capsys.readouterr().err
    assert first == second == without
    assert {"model.safetensors", "tokenizer.json", "passages.json", "done"} <= set(first)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["warm_start"]  # no progress is left behind
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "b" / "warm_start").iterdir()}
    assert len(modes) == 1

    (entry,) = (cache_folder / name for name in entries(cache_folder))
    weights = entry / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    capsys.readouterr()
    assert build(tmp_path / "d" / "warm_start", config()) == first
    said = capsys.readouterr().err.replace("\n", " ")
    assert "is damaged: model/model.safetensors has changed (its checksum differs); building it again" in said
    assert build(tmp_path / "e" / "warm_start", config()) == first
    assert "from the cache" in capsys.readouterr().err

    assert build(tmp_path / "f" / "warm_start", config(mistake_prob=0.4)) != first
    assert len(entries(cache_folder)) == 2


def test_a_stop_keeps_the_progress_and_the_same_model_results(tmp_path, capsys):
    settings = config(cache=False, batch_tokens=500)
    whole = build(tmp_path / "a" / "warm_start", settings)
    with stop_signals.handled(lambda text: None), pytest.MonkeyPatch.context() as patch:
        signals_after(patch, 3)
        with pytest.raises(stop_signals.Interrupted):
            build(tmp_path / "b" / "warm_start", settings)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["warm_start_progress.pt"]
    assert build(tmp_path / "b" / "warm_start", settings) == whole
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["warm_start"]


def signals_after(patch, steps):
    """Sends a real SIGINT during the optimizer step of this number."""
    done, original = [], warm_start_module.backward

    def backward(*args):
        done.append(1)
        if len(done) == steps:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    patch.setattr(warm_start_module, "backward", backward)


def test_the_key_covers_what_decides_the_model():
    class Expert:
        token_pattern, early_answer_share = "", 0.0

    def key(settings, demos=("demo",), tasks=1):
        return warm_start_cache.key_of(warm_start_cache.settings_of(settings, demos, tasks, Expert()))

    base = config()
    optim = dataclasses.replace(base, optim=dataclasses.replace(base.optim, learning_rate=0.5), steps=3)
    assert key(base) == key(config(seed=5)) == key(config(cache=False)) == key(optim)
    others = [
        key(base, ("other",)), key(base, tasks=2), key(config(layers=2)),
        key(dataclasses.replace(base, layout="window")),
        key(dataclasses.replace(base, warm_start=dataclasses.replace(base.warm_start, seed=1))),
        key(dataclasses.replace(base, token_budget=99)),
        key(dataclasses.replace(base, rollout=dataclasses.replace(base.rollout, max_sequence_tokens=99))),
    ]  # fmt: skip
    assert len({key(base), *others}) == 8


def test_the_template_file_is_part_of_the_key(tmp_path):
    class Expert:
        token_pattern, early_answer_share = "", 0.0

    path = tmp_path / "mine.toml"
    base = config()
    settings = dataclasses.replace(base, env=dataclasses.replace(base.env, template=str(path)))
    found = []
    for text in ("a = 1", "a = 2"):
        path.write_text(text)
        found.append(warm_start_cache.settings_of(settings, (), 0, Expert())["template"])
    assert found[0] != found[1]


def test_entries_that_were_not_used_for_longest_are_removed(tmp_path, cache_folder, monkeypatch):
    monkeypatch.setattr(warm_start_cache, "MAX_ENTRIES", 2)
    model = tmp_path / "model"
    build_folder(model, lambda hidden: (hidden / "done").write_text("x"))
    for number, name in enumerate("abc"):
        entry = cache_folder / name
        warm_start_cache.put(entry, model, {})
        os.utime(entry, (1000 + number, 1000 + number))
        if name == "b":
            assert warm_start_cache.take(cache_folder / "a", tmp_path / "run" / "warm_start")  # now the newest
    assert entries(cache_folder) == ["a", "c"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, capsys, cache_folder):
    model = tmp_path / "model"
    build_folder(model, lambda hidden: (hidden / "done").write_text("x"))
    cache_folder.parent.mkdir(parents=True)
    cache_folder.write_text("in the way")
    warm_start_cache.put(cache_folder / "a", model, {})
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.startswith("warning: cannot write the warm start to the cache at")
