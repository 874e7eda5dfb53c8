"""Mistakes typed on the command line: one line that says what is wrong, exit status 2, at once, and nothing is left."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from paw_fast.config import load_preset, to_toml

LIMIT_S = 5
"""No mistake may take longer; most take a few hundredths of a second."""
NOTES = ("preset ", "run directory ", "settings for ")
"""What may be said before the mistake is found."""
FILES = {
    "not_toml.toml": "steps = \n",
    "latin.toml": b"# \xe9\n",
    "huge.toml": f"seed = {'9' * 5000}\n",
    "large.toml": f"[optim]\nlearning_rate = {10**400}\n",
    "deep.toml": f"seed = {'[' * 5000}\n",
    "key.toml": "[paw]\nalpa = 0.5\n",
    "type.toml": "steps = 'many'\n",
    "table.toml": "paw = 3\n",
    "nan.toml": "[rollout]\ntemperature = nan\n",
    "nul.toml": 'run_dir = "a\\u0000b"\n',
    "algo.toml": "[algo]\nname = 'grpo'\nstep_weight = 3.0\n",
    "env.toml": "[env]\nname = 'webshop'\nsize = 'full'\n",
    "critic.toml": "[critic]\nlam = 0.5\n",
    "base.toml": "base = 'tinny'\n",
    "tapo.toml": "base = 'tapo'\n",
    "both.toml": "[warm_start]\nslips = 0.1\nmistake_prob = 0.2\n",
    "no_env.py": "class Game: pass\n",
    "bad_env.py": "1 / 0\n",
    "bad_game.tw-pddl": "{",
    "model/README": "no weights here",
    "damaged/config.json": "{",
    "begun/config.toml": to_toml(load_preset("tiny")),
    "full/notes.txt": "mine",
    "smollm2-135x/README": "",
}

TINY = ["train", "--preset", "tiny", "--env.num-train", "20", "--env.num-unseen", "4"]
MISTAKES = [
    # commands
    (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    (["--preset", "tiny"], "unknown command '--preset'"),
    (["recipes", "x"], "recipes takes no options, got x"),
    (["retriever", "sreve"], "did you mean 'serve'?"),
    # options
    ([*TINY, "--stepz", "3"], "unknown option --stepz; did you mean --steps?"),
    ([*TINY, "--lrr", "3"], "unknown option --lrr; did you mean --lr?"),
    ([*TINY, "--max-steps", "3"], "--steps sets the number of training steps, --env.max-steps the longest"),
    ([*TINY, "--beta", "0.1"], "the weight of the KL divergence is --algo.kl-coef"),
    ([*TINY, "--gamma", "0.1"], "GiGPO's discount of each step is --algo.gamma"),
    ([*TINY, "--epochs", "3"], "training is counted in --steps"),
    ([*TINY, "--bf16"], "say --model.dtype bfloat16"),
    ([*TINY, "--x"], "unknown option --x; see paw-fast train --help"),
    ([*TINY, "-s", "3"], "unknown option -s"),
    ([*TINY, "steps=3"], "'steps=3' is no option of paw-fast train"),
    ([*TINY, "--steps"], "--steps needs a value"),
    ([*TINY, "--steps", "--seed", "3"], "--steps needs a value"),
    ([*TINY, "--steps", "abc"], "--steps is 'abc', expected an integer"),
    ([*TINY, "--steps", "1e3"], "--steps is '1e3', expected an integer"),
    ([*TINY, "--lr", "1e-4x"], "--optim.learning-rate is '1e-4x', expected a number"),
    ([*TINY, "--layout", "windows"], "--layout is 'windows', expected one of window, trajectory"),
    ([*TINY, "--profile=maybe"], "--profile is a switch and takes no value, got 'maybe'"),
    ([*TINY, "--preset", "smollm2"], "--preset is given 2 times: tiny, smollm2"),
    ([*TINY, "--help", "nothing"], "--help nothing: no such group of settings; there are all, run"),
    ([*TINY, "--run-dir="], "--run-dir is empty, expected a path"),
    # numbers
    ([*TINY, "--seed", "-1"], "--seed is -1, expected 0 or more"),
    ([*TINY, "--seed", str(2**64)], f"--seed is {2**64}, expected at most {2**63 - 1}"),
    ([*TINY, "--seed", "9" * 5000], "expected an integer"),
    ([*TINY, "--rollout.slots", str(10**9)], "--rollout.slots is 1000000000, expected at most 65536"),
    ([*TINY, "--lr", "nan"], "--optim.learning-rate is nan, expected a finite number"),
    ([*TINY, "--lr", "-inf"], "--optim.learning-rate is -inf, expected a finite number"),
    ([*TINY, "--lr", "10"], "--optim.learning-rate is 10.0, expected a number in (0, 1]"),
    ([*TINY, "--temperature", "0"], "--rollout.temperature is 0.0, expected a number in [0.0001, 1000]"),
    ([*TINY, "--paw.alpha", "1.5"], "--paw.alpha is 1.5, expected a number in (0, 1]"),
    ([*TINY, "--kl-coef", "-1"], "--algo.kl-coef is -1.0, expected 0 or more"),
    ([*TINY, "--group-size", "1"], "--rollout.group-size is 1, expected 2 or more with --algo grpo"),
    ([*TINY, "--env.num-train", str(10**12)], "--env.num-train is 1000000000000, expected at most"),
    ([*TINY, "--warm-start.episodes", "0"], "--warm-start.episodes is 0, expected 1 or more"),
    ([*TINY, "--rollout.hang-timeout-s", "1e30"], "--rollout.hang-timeout-s is 1e+30, expected a number in (0, 1e+08]"),
    ([*TINY, "--rollout.max-action-tokens", "2048"], "is 2048, expected less than the 2048 of --rollout.max-seq"),
    ([*TINY, "--algo.minibatches", "1000"], "--algo.minibatches is 1000, expected at most the 64 episodes of a step"),
    # names and combinations
    (["train", "--preset", "tinny"], "--preset tinny: no such recipe; did you mean 'tiny'?"),
    (["train", "--preset", "no.toml"], "cannot read the config no.toml: No such file"),
    ([*TINY, "--env", "alfwrld"], "--env alfwrld: no such environment; did you mean alfworld?"),
    ([*TINY, "--env", "no_env:Game"], "--env no_env:Game: Game lacks the method tasks and reset and step"),
    ([*TINY, "--env", "bad_env:Game"], "importing bad_env failed: ZeroDivisionError"),
    ([*TINY, "--algo", "grppo"], "--algo grppo: no such algorithm; did you mean grpo?"),
    ([*TINY, "--algo.step-weight", "3"], "--algo.step-weight is a setting of gigpo, and --algo is grpo"),
    ([*TINY, "--env.goals", "human"], "--env.goals is a setting of webshop, and --env is alfworld"),
    ([*TINY, "--critic.lam", "0.9"], "a setting of algorithms that need a critic, and --algo is grpo"),
    ([*TINY, "--env.template", "nope"], "nope"),
    ([*TINY, "--pipeline", "async"], "--pipeline is async, expected --rollout.placement process"),
    ([*TINY, "--model.dtype", "float16"], "train in bfloat16 or float32"),
    ([*TINY, "--model.device", "gpu"], "--model.device gpu: not a device; use cpu, cuda or cuda:1"),
    ([*TINY, "--rollout.chat-date", "today"], "--rollout.chat-date is today, expected a date as in"),
    ([*TINY, "--env.data", "nowhere"], "no ALFWorld data at"),
    ([*TINY, "--eval-split", "valid"], "alfworld has no split 'valid'"),
    # models
    ([*TINY, "--model", "./nowhere"], "--model ./nowhere: no such folder"),
    ([*TINY, "--model", "model"], "--model model: the folder has no config.json"),
    ([*TINY, "--model", "./damaged"], "--model ./damaged: config.json cannot be read"),
    ([*TINY, "--model", "smollm2-135n"], "did you mean smollm2-135m?"),
    ([*TINY, "--model", "Qwen/Qwen2.5-1.5B-Instrukt"], "did you mean Qwen/Qwen2.5-1.5B-Instruct?"),
    ([*TINY, "--model", "not a name"], "--model not a name: no such folder"),
    # files
    ([*TINY, "--config", "nowhere.toml"], "cannot read the config nowhere.toml: No such file"),
    ([*TINY, "--config", "begun"], "config begun: Is a directory: give the file in it, begun/config.toml"),
    ([*TINY, "--config", "not_toml.toml"], "not_toml.toml is not valid TOML"),
    ([*TINY, "--config", "latin.toml"], "latin.toml is not valid TOML"),
    ([*TINY, "--config", "huge.toml"], "huge.toml is not valid TOML"),
    ([*TINY, "--config", "deep.toml"], "deep.toml is not valid TOML"),
    ([*TINY, "--config", "large.toml"], "learning_rate is an integer that is too large for a number"),
    ([*TINY, "--config", "key.toml"], "key.toml: paw: unknown key 'alpa'; did you mean 'alpha'?"),
    ([*TINY, "--config", "type.toml"], "type.toml: steps is 'many', expected an integer"),
    ([*TINY, "--config", "table.toml"], "table.toml: paw is 3, expected a table"),
    ([*TINY, "--config", "nan.toml"], "--rollout.temperature is nan, expected a finite number"),
    ([*TINY, "--config", "nul.toml"], "nul.toml: run_dir holds a NUL character"),
    ([*TINY, "--config", "algo.toml"], "algo: step_weight is a setting of gigpo and has no effect with grpo"),
    (["train", "--config", "env.toml"], "env.toml: env: size is a setting of alfworld and has no effect with webshop"),
    ([*TINY, "--config", "critic.toml"], "critic.toml: critic.lam is a setting of algorithms that need a critic"),
    (["train", "--config", "base.toml"], "base.toml: base is 'tinny', expected a recipe"),
    (["train", "--preset", "tiny", "--config", "tapo.toml"], "tapo.toml begins with base = 'tapo'; leave one"),
    ([*TINY, "--config", "both.toml"], "slips is the old name of warm_start.mistake_prob, and both are given"),
    # run directories
    ([*TINY, "--run-dir", "begun"], "begun already contains a run: resume it with --resume"),
    ([*TINY, "--run-dir", "full/notes.txt"], "cannot create the run directory at full/notes.txt"),
    ([*TINY, "--run-dir", "x" * 300], "File name too long"),
    (["train", "--resume", "nowhere"], "nowhere"),
    (["train", "--resume", "full"], "full"),
    (["train", "--resume", "begun", "--seed", "3"], "--seed 3: begun was begun with 0"),
    (["train", "--resume", "begun", "--algo", "ppo"], "--algo ppo: begun was begun with grpo"),
    (["train", "--resume", "begun", "--preset", "tiny"], "--preset and --resume: a run is resumed with its own"),
    (["train", "--resume"], "--resume needs a value"),
    # other commands
    (["eval"], "paw-fast eval needs"),
    (["eval", "nowhere"], "no checkpoint at nowhere"),
    (["eval", "begun"], "no checkpoint in begun yet"),
    (["eval", "begun", "--tasks", "0"], "--tasks is 0, expected 1 or more"),
    (["eval", "begun", "--temperature", "nan"], "--temperature is nan, expected a finite number"),
    (["eval", "begun", "--tsks", "3"], "unknown option --tsks; did you mean --tasks?"),
    (["play", "--env", "foo"], "--env foo: no such environment"),
    (["play", "--task", "-1"], "--task is -1, expected 0 or more"),
    (["play", "--game", "nowhere.tw-pddl"], "nowhere.tw-pddl"),
    (["play", "--game", "bad_game.tw-pddl"], "bad_game.tw-pddl"),
    (["play", "--env", "webshop", "--game", "x"], "--game: tasks of webshop have no files"),
    (["report"], "paw-fast report needs one or more RUNS"),
    (["report", "nowhere"], "nowhere"),
    (["report", "begun", "--episodes", "-1"], "--episodes is -1, expected 0 or more"),
    (["doctor", "--jsn"], "unknown option --jsn; did you mean --json?"),
    (["retriever", "index"], "paw-fast retriever index needs --corpus"),
    (["retriever", "index", "--corpus", "nowhere.jsonl"], "no corpus at nowhere.jsonl"),
    (["retriever", "index", "--corpus", "x", "--kind", "dnse"], "--kind is 'dnse', expected one of bm25, dense"),
    (["retriever", "serve", "--corpus", "x", "--port", "99999"], "--port is 99999, expected at most 65535"),
    (["retriever", "serve", "--corpus", "x", "--topk", "0"], "--topk is 0, expected 1 or more"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mistakes")
    for name, content in FILES.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def contents(folder):
    """Every name below a folder with a hash of its content."""
    return {
        str(path.relative_to(folder)): path.is_dir() or hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if "__pycache__" not in path.parts
    }  # fmt: skip


def ask(server, folder, tmp_path_factory, args, limit_s=LIMIT_S, memory=None):
    cache = tmp_path_factory.getbasetemp() / "mistakes-cache"
    env = {"XDG_CACHE_HOME": str(cache)}
    request = {"args": args, "folder": str(folder), "env": env, "limit_s": limit_s, "memory": memory}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@pytest.mark.parametrize(("args", "words"), MISTAKES, ids=[" ".join(args)[:70] for args, _ in MISTAKES])
def test_a_mistake_is_one_line_and_changes_nothing(server, folder, tmp_path_factory, args, words):
    before = contents(folder)
    got = ask(server, folder, tmp_path_factory, args)
    lines = [line for line in got["err"].splitlines() if not line.startswith(NOTES)]
    assert got["status"] == 2, got
    assert len(lines) == 1, got["err"]
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert got["out"] == ""
    assert contents(folder) == before


def test_memory_that_runs_out_is_one_line_and_nothing_is_left(server, folder, tmp_path_factory):
    """A real limit of the process: it has some 300 MB left for a model of 70 million parameters."""
    before = contents(folder)
    used = int(Path(f"/proc/{server.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    args = [
        *TINY, "--warm-start.episodes", "8", "--warm-start.layers", "1000", "--run-dir", "full",
        "--env.num-train", "20", "--seed", "1",
    ]  # fmt: skip
    got = ask(server, folder, tmp_path_factory, args, limit_s=60, memory=used + 300 * 2**20)
    lines = [line for line in got["err"].splitlines() if line.startswith("error:")]
    assert got["status"] == 2, got
    assert len(lines) == 1, got["err"]
    assert "out of memory on the CPU" in lines[0]
    assert "halve --rollout.slots (now 64) or --token-budget (now 8192)" in lines[0]
    assert "Traceback" not in got["err"]
    assert contents(folder) == before


def test_there_are_enough_of_them():
    assert len(MISTAKES) == len({tuple(args) for args, _ in MISTAKES}) >= 100
