"""The order of the package, read from its imports: data flows one way, heavy things are imported in one place."""

import ast
import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "paw_fast"

STAGES = {"trajectories", "advantages", "world_model", "packing", "losses"}
"""Each takes records and gives records; none knows another."""

WIRING = {"train", "pipeline", "update", "warm_start", "world_model_quality", "eval_command"}
"""The loop, its halves and the measurement: the only modules that put stages together."""

LAYERS = [
    {"__init__", "types", "files", "foreign", "scores", "stopping"},
    {"config", "env_config", "console", "parsing"},
    {"kernels"},
    {"metrics", "figures", "report", "runs", "checkpoint", "rng", "passages", "doctor", "doctor_data", "attention",
     "tiny", "critic", "policy", "forward_check", "pretrained", "optim", "retrieval", "envs", "tasks", "rollout",
     "weight_sync", "mismatch", "timeline", "resuming", *STAGES},
    {"update", "warm_start", "evaluate", "world_model_quality"},
    {"train", "pipeline", "eval_command"},
    {"cli", "__main__"},
]  # fmt: skip
"""From the bottom up: a module imports its own layer and those below."""

NO_TORCH = {
    "types",
    "config",
    "env_config",
    "files",
    "foreign",
    "stopping",
    "parsing",
    "console",
    "metrics",
    "figures",
    "report",
    "runs",
    "envs",
    "tasks",
}
"""Not even through another module of the package: configs and environments load without it."""

NO_TORCH_AT_IMPORT = {"cli", "doctor", "doctor_data"}
"""Only inside functions, so that `--help` is quick and a broken torch can be reported."""


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name; `eager` when importing the importer imports it."""

    name: str
    line: int
    eager: bool


def modules() -> dict[str, Path]:
    """Every module of the package by its name inside it: `types`, `rollout.agent`, `envs` (its __init__)."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


MODULES = modules()


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(module: str) -> list[Import]:
    """What a module imports, inside functions too; imports for type checkers alone do not count."""
    path = MODULES[module]
    package = ["paw_fast", *module.split(".")] if path.name == "__init__.py" else ["paw_fast", *module.split(".")[:-1]]
    if module == "__init__":
        package = ["paw_fast"]
    found = []

    def visit(node: ast.AST, eager: bool) -> None:
        if is_type_checking(node):
            for child in node.orelse:
                visit(child, eager)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, node.module] if node.module else base)
            found.append(Import(source, node.lineno, eager))
            # `from paw_fast import losses` imports the module losses.
            inner = {name.removeprefix("paw_fast."): name for name in (f"{source}.{one.name}" for one in node.names)}
            found.extend(Import(full, node.lineno, eager) for short, full in inner.items() if short in MODULES)
        inside = eager and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


IMPORTS = {module: imports_of(module) for module in MODULES}


def own(name: str) -> str | None:
    """`paw_fast.rollout.agent` -> `rollout.agent`; None for other packages."""
    if name == "paw_fast":
        return "__init__"
    return name.removeprefix("paw_fast.") if name.startswith("paw_fast.") else None


def room(module: str) -> str:
    """`rollout.agent` -> `rollout`: what the rules speak of."""
    return module.split(".")[0]


def where(module: str, line: int) -> str:
    return f"{MODULES[module].relative_to(ROOT)}:{line}"


def eager_closure(module: str) -> dict[str, str]:
    """All that importing the module imports, each with the chain of modules that leads there."""
    reached, queue = {module: module}, [module]
    while queue:
        current = queue.pop()
        for one in IMPORTS.get(current, ()):
            inner = own(one.name)
            target = one.name if inner is None else inner
            if one.eager and target not in reached:
                reached[target] = f"{reached[current]} -> {target}"
                queue.append(target)
    return reached


def test_every_module_has_a_layer():
    rooms = {room(module) for module in MODULES}
    assert rooms - set().union(*LAYERS) == set(), "give the new module its place in LAYERS"


def test_imports_go_down():
    rank = {name: level for level, names in enumerate(LAYERS) for name in names}
    wrong = [
        f"{where(module, one.line)} imports {one.name}, which stands above it"
        for module in MODULES
        for one in IMPORTS[module]
        if (target := own(one.name)) is not None and rank[room(target)] > rank[room(module)]
    ]
    assert wrong == []


def test_stages_do_not_know_each_other():
    wrong = []
    for module in MODULES:
        for one in IMPORTS[module]:
            target = own(one.name)
            stage = room(target) if target else ""
            if stage in STAGES and stage != room(module) and room(module) not in WIRING:
                wrong.append(f"{where(module, one.line)} imports the stage {stage}: only {sorted(WIRING)} may")
    assert wrong == []


@pytest.mark.parametrize("name", sorted(NO_TORCH))
def test_no_torch_at_all(name):
    for module in (one for one in MODULES if room(one) == name):
        direct = [where(module, one.line) for one in IMPORTS[module] if room(one.name) in ("torch", "transformers")]
        assert direct == []
        chains = {key: chain for key, chain in eager_closure(module).items() if room(key) in ("torch", "transformers")}
        assert chains == {}


@pytest.mark.parametrize("name", sorted(NO_TORCH_AT_IMPORT))
def test_no_torch_at_import(name):
    reached = eager_closure(name)
    assert {key: chain for key, chain in reached.items() if room(key) in ("torch", "transformers")} == {}


def test_the_extension_is_imported_in_one_place():
    wrong = [
        where(module, one.line)
        for module in MODULES
        for one in IMPORTS[module]
        if one.name.split(".")[-1].startswith("_native") and module != "kernels.native"
    ]
    assert wrong == []
    others = [path for module, path in MODULES.items() if module != "kernels.native"]
    assert [str(path) for path in others if "import _native" in path.read_text(encoding="utf-8")] == []


def test_vllm_is_imported_where_generation_is():
    wrong = [
        where(module, one.line)
        for module in MODULES
        for one in IMPORTS[module]
        if room(one.name) == "vllm" and room(module) not in ("rollout", "weight_sync")
    ]
    assert wrong == []


def test_optional_packages_are_imported_when_they_are_needed():
    optional = {
        "vllm",
        "alfworld",
        "textworld",
        "wandb",
        "ray",
        "bm25s",
        "spacy",
        "rapidfuzz",
        "fastapi",
        "gguf",
        "uvicorn",
        "httpx",
        "Stemmer",
        "faiss",
    }
    workers = {"envs.alfworld.reference_worker", "envs.alfworld.reference_speed"}  # run where the extra is installed
    wrong = [
        where(module, one.line)
        for module in set(MODULES) - workers
        for one in IMPORTS[module]
        if one.eager and room(one.name) in optional
    ]
    assert wrong == []
    reached = eager_closure("cli")
    assert {key for key in reached if room(key) in optional} == set()


def test_no_import_cycles():
    for module in MODULES:
        for one in IMPORTS[module]:
            target = own(one.name)
            if one.eager and target in MODULES and target != module and room(target) != room(module):
                assert module not in eager_closure(target), f"{module} and {target} import each other"


# ---------------------------------------------------------------------------------------------------- sizes


def sources() -> list[Path]:
    folders = [(PACKAGE, ("py",)), (ROOT / "bench", ("py",)), (ROOT / "csrc", ("h", "cpp", "cu", "cuh"))]
    return [path for folder, kinds in folders for kind in kinds for path in sorted(folder.rglob(f"*.{kind}"))]


def test_files_have_at_most_400_lines():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if (lines := path.read_text(encoding="utf-8").count("\n")) > 400
    }
    assert long == {}, "a room is missing: move a part into a module of its own"


def test_functions_have_at_most_80_lines():
    long = {}
    for path in (one for one in sources() if one.suffix == ".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > 80:
                    long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = lines
    assert long == {}, "a function is missing: give a part a name"


# ------------------------------------------------------------------------------- the reader of imports itself


def test_what_counts_as_an_import(monkeypatch, tmp_path):
    (tmp_path / "m.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "import a.b\n"
        "from . import losses\n"
        "from ..types import x\n"
        "if TYPE_CHECKING:\n    import hidden\nelse:\n    import shown\n"
        "try:\n    import tried\nexcept ImportError:\n    pass\n"
        "def f():\n    import lazy\n"
        "class C:\n    import inside\n"
    )
    monkeypatch.setitem(MODULES, "kernels.m", tmp_path / "m.py")
    monkeypatch.setitem(MODULES, "kernels.losses", tmp_path / "losses.py")
    found = {one.name: one.eager for one in imports_of("kernels.m")}
    assert found == {
        "typing": True, "a.b": True, "paw_fast.kernels": True, "paw_fast.kernels.losses": True,
        "paw_fast.types": True, "shown": True, "tried": True, "lazy": False, "inside": True,
    }  # fmt: skip


def test_layers_name_each_module_once():
    assert all(not a & b for a, b in itertools.combinations(LAYERS, 2))
    assert LAYERS[3] >= STAGES
