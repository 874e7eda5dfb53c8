"""`paw-fast compare`: its options, and one whole comparison with real training runs of the smallest size."""

import json
import re

import pytest
from small_runs import SETTINGS

from paw_fast.cli import main
from paw_fast.cli.compare import CompareOptions, read_seeds, take_options
from paw_fast.errors import UserError
from paw_fast.runs.run_dir import load_config
from paw_fast.runs.task_record import read_tasks


def test_own_options_are_taken_and_the_rest_is_of_train():
    options, rest = take_options(
        ["--env", "webshop", "--seeds", "4", "5", "--arms=rl,echo", "--steps", "3", "--warm-starts", "shared"]
    )
    assert options == CompareOptions(arms="rl,echo", seeds="4,5", warm_starts="shared")
    assert rest == ["--env", "webshop", "--steps", "3"]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1", [0]), ("5", [0, 1, 2, 3, 4]), ("5,", [5]), ("3,1", [3, 1]), ("10-12,0", [10, 11, 12, 0])],
)
def test_seeds(text, seeds):
    assert read_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "x", "-1", "1,1", "3-1", "1-9999999999", "1.5", str(2**64) + ","])
def test_seeds_that_are_refused(text):
    with pytest.raises(UserError, match="expected how many"):
        read_seeds(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "3"], "--seed is no option of paw-fast compare: --seeds says which"),
        (["--run-dir", "x"], "--run-dir is no option of paw-fast compare: .* --out"),
        (["--resume", "x"], "the same command continues"),
        (["--push-to-hub", "me/x"], "upload one of the runs"),
        (["--print-config"], "OUT/settings"),
        (["--arms", "rl,nothing"], "unknown arm 'nothing'"),
        (["--arms", ""], "--arms"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--effect", "0"], "--effect is 0"),
        (["--warm-starts", "none"], "--warm-starts is 'none', expected one of per-seed, shared"),
        (["--paw.taus", "0.1"], "unknown option --paw.taus; did you mean --paw.tau"),
        (["--steps", "x"], "--steps is 'x', expected an integer"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main.run(["compare", "--preset", "smoke", *options])
    assert list(tmp_path.iterdir()) == []


def test_help_names_options_and_arms(capsys):
    assert main.run(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in ("arms", "seeds", "out", "jobs", "warm-starts", "effect"))
    assert re.search(r"\n  echo +Related method ECHO \(arXiv 2605.24517\)", text)


def compared(capfd, out, *options):
    """Runs a comparison of the smallest size; returns what it printed, and its report."""
    settings = [*SETTINGS, "--steps", "1", "--arms", "rl,paw", "--jobs", "2", "--out", str(out)]
    assert main.run(["compare", *settings, *options]) == 0
    return " ".join(capfd.readouterr().err.split()), json.loads((out / "report.json").read_text())


def check_paired(out, seed):
    configs = [load_config(out / arm / f"s{seed}") for arm in ("rl", "paw")]
    assert [config.paw.enabled for config in configs] == [False, True]
    tasks = [read_tasks(out / arm / f"s{seed}") for arm in ("rl", "paw")]
    assert tasks[0] == tasks[1]
    assert (len(tasks[0][1][0]), tasks[0][1][1]) == (2, 4)


@pytest.mark.usefixtures("own_cache")
def test_a_comparison_from_the_command_to_its_report(model, tmp_path, capfd):
    """Two arms, one seed, one step: real runs in processes of their own, then the same command again."""
    out = tmp_path / "out"
    options = ["--model", str(model), "--seeds", "1"]
    text, found = compared(capfd, out, *options)
    assert "rl, seed 0: started" in text
    assert f"report: {out / 'report.html'}" in text
    assert "one seed cannot tell the arms from the luck of a run" in text
    check_paired(out, 0)
    assert found["arms"]["paw"]["seeds"] == [0]
    assert found["arms"]["rl"]["tokens"][0] > 0
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/s*/**/*") if path.is_file()}
    compared(capfd, out, *options)
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/s*/**/*") if path.is_file()}
    other = ["3" if one == "2" and SETTINGS[i - 1] == "--eval-tasks" else one for i, one in enumerate(SETTINGS)]
    with pytest.raises(UserError, match=r"was begun with --eval-tasks 2 for the arm rl, now 3"):
        main.run(["compare", *other, "--steps", "1", "--arms", "rl,paw", "--out", str(out), *options])


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_each_seed_has_a_warm_start_that_its_arms_share(tmp_path, capfd):
    out = tmp_path / "out"
    text, found = compared(capfd, out, "--seeds", "2", "--warm-start.episodes", "12", "--warm-start.epochs", "1")
    assert re.search(r"paw (and rl cannot be told apart|ends)", text)
    weights = {
        (arm, seed): (out / arm / f"s{seed}" / "warm_start" / "model.safetensors").read_bytes()
        for arm in ("rl", "paw") for seed in (0, 1)
    }  # fmt: skip
    for seed in (0, 1):
        check_paired(out, seed)
        assert weights["rl", seed] == weights["paw", seed]
    assert weights["rl", 0] != weights["rl", 1]
    assert found["pairs"][0]["success"]["num_seeds"] == 2
