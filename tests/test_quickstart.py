"""examples/quickstart.ipynb: a copy with small settings is executed, and the outputs that are committed are its own."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from paw_fast.runs.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
MISSING = [name for name in ("nbclient", "ipykernel", "nbformat") if importlib.util.find_spec(name) is None]

SMALL = """
sizes |= {"steps": 2, "eval_every": 1, "eval_tasks": 3, "eval_transitions": 4}
sizes["env"] |= {"num_train": 24, "num_unseen": 8, "max_steps": 3}
sizes["rollout"] |= {"groups": 2, "group_size": 2}
sizes["warm_start"] |= {"episodes": 16, "layers": 1, "vocab_size": 400}
"""
"""Appended to the cell of the sizes."""

REPORT = """
import json
print(json.dumps({
    "run_dir": str(result.run_dir), "finished": result.finished, "success": result.success,
    "before": before.as_json(), "after": after.as_json(), "accuracy": after.world_model.accuracy,
    "checkpoint": str(result.checkpoint), "command": command, "episode": episode, "first": observation.text,
    "prompt": prompt["input_ids"][0].tolist(),
}))
"""
"""A last cell, which tells the values of the notebook's variables."""


def load(path=NOTEBOOK):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text(cell):
    return "".join("".join(out["text"]) for out in cell["outputs"] if out.get("name") == "stdout")


def images(cell):
    return [out["data"] for out in cell["outputs"] if "image/png" in out.get("data", {})]


def the_cell(notebook, needle):
    """The one code cell with `needle` in it."""
    (found,) = [cell for cell in code(notebook) if needle in source(cell)]
    return found


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after it ran in an empty folder with an empty cache, and what its last cell tells."""
    if MISSING:
        pytest.skip(f"needs the extra test: no {', '.join(MISSING)}")
    import nbformat
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("quickstart")
    shutil.copy(NOTEBOOK, folder)
    notebook = nbformat.read(folder / NOTEBOOK.name, as_version=4)
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    the_cell(notebook, "sizes = {")["source"] += SMALL
    notebook.cells.append(nbformat.v4.new_code_cell(REPORT))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "XDG_CACHE_HOME", "IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("ALFWORLD_DATA", "MPLBACKEND", "PYTHONPATH"):
            patch.delenv(name, raising=False)
        client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
        client.execute()
    return notebook, json.loads(text(notebook.cells[-1])), folder


pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:RuntimeWarning", "ignore:.*TCP.*")


def test_it_trains_where_it_stands(executed):
    notebook, told, folder = executed
    run_dir = folder / told["run_dir"]
    assert run_dir.parent == folder / "runs"
    assert told["finished"]
    assert [row["step"] for row in read_metrics(run_dir)] == [0, 1, 2]
    assert told["checkpoint"].endswith("checkpoints/step_000002")
    assert told["success"] == json.loads((run_dir / "summary.json").read_text())["final_success"]
    assert list((folder / "xdg_cache_home" / "paw-fast").iterdir())
    assert told["run_dir"] in text(the_cell(notebook, "print(result.run_dir)"))


def test_the_live_curve_is_one_figure_that_follows_the_run(executed):
    (shown,) = images(the_cell(executed[0], "train(config)"))
    assert re.fullmatch(r"step 2: success of training episodes \d+ %, of evaluation tasks \d+ %", shown["text/plain"])
    assert len(shown["image/png"]) > 5000


def test_the_metrics_are_plotted(executed):
    (shown,) = images(the_cell(executed[0], "plt.subplots"))
    assert len(shown["image/png"]) > 5000


def test_the_episode_is_one_of_the_last_step(executed):
    notebook, told, folder = executed
    written = (folder / told["run_dir"] / "episodes" / "step_000002.txt").read_text()
    assert written.startswith(told["episode"])
    assert told["episode"].count("=== ") == 1
    assert 1 <= len(re.findall(r"^\[\d\] > ", told["episode"], flags=re.M)) <= 3
    assert told["episode"] in text(the_cell(notebook, "episode = "))


def test_the_evaluation_repeats_the_run(executed):
    """The figures before and after training are those that the run measured."""
    _, told, folder = executed
    summary = json.loads((folder / told["run_dir"] / "summary.json").read_text())
    assert told["before"] == summary["warm_start_eval"]
    assert told["after"] == summary["final_eval"]
    assert 0 < told["accuracy"] < 1


def test_the_checkpoint_gets_the_prompt_of_training(executed):
    """The chat template of transformers gives the token ids with which episodes begin."""
    from transformers import AutoTokenizer

    from paw_fast.rollout.chat_format import ChatFormat

    notebook, told, folder = executed
    shown = text(the_cell(notebook, "AutoModelForCausalLM"))
    assert shown.startswith(told["first"])
    assert "Your task is to: " in told["first"]
    assert shown.rstrip("\n").endswith(f"> {told['command']}".rstrip("\n"))
    tokenizer = AutoTokenizer.from_pretrained(folder / told["checkpoint"])
    assert told["prompt"] == ChatFormat(tokenizer).first(told["first"])


def test_the_committed_outputs_are_real_and_small():
    """Executed once from top to bottom without an error, with all outputs; the numbers agree among themselves."""
    notebook = load()
    assert NOTEBOOK.stat().st_size < 150_000
    cells = code(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [out for cell in cells for out in cell["outputs"]]
    assert not [out for out in outputs if out["output_type"] == "error"]
    assert not [line for out in outputs for line in out.get("text", []) if "Warning" in line or "Traceback" in line]
    assert not [out for out in outputs if re.search(r"/(home|work|tmp|root|Users)/", json.dumps(out.get("text", "")))]
    assert "jupyter execute --inplace examples/quickstart.ipynb" in source(notebook["cells"][0])

    sizes: dict = {}
    exec(source(the_cell(notebook, "sizes = {")), sizes)
    sizes = sizes["sizes"]
    (curve,) = images(the_cell(notebook, "train(config)"))
    assert "".join(curve["text/plain"]).startswith(f"step {sizes['steps']}: success")
    assert images(the_cell(notebook, "plt.subplots"))
    assert f"step_{sizes['steps']:06d}.txt" in text(the_cell(notebook, "episode = "))
    after = text(the_cell(notebook, "print(result.run_dir)")).split("after: ")[1].strip()
    won, total = map(int, re.search(r"after: (\d+) of (\d+) games", text(the_cell(notebook, "evaluate("))).groups())
    assert total == sizes["eval_tasks"]
    assert f"{won / total:.0%}" == after


def test_its_links_lead_somewhere():
    cells = [source(cell) for cell in load()["cells"] if cell["cell_type"] == "markdown"]
    links = [link for cell in cells for link in re.findall(r"\]\(([^)\s]+)\)", cell)]
    local = [link for link in links if not link.startswith("http")]
    assert len(local) >= 4
    assert [link for link in local if not (NOTEBOOK.parent / link).resolve().is_file()] == []


def test_python_is_that_of_the_tests(executed):
    """The kernel is that of this environment, not one that is installed elsewhere."""
    assert executed[0].metadata["language_info"]["version"] == ".".join(map(str, sys.version_info[:3]))
