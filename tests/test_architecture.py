"""Checks the order of the package by its imports: data flows one way, heavy packages are imported in one place."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "paw_fast"

MAY_IMPORT = {
    "__init__": "",
    "__main__": "cli",
    "errors": "",
    "extras": "",
    "registry": "errors",
    "types": "errors",
    "config": "errors registry",
    "kernels": "errors",
    "runs": "config errors extras types",
    "envs": "config errors extras registry runs types",
    "models": "config errors extras runs",
    "planning": "config errors models registry runs",
    "algorithms": "config errors kernels registry types",
    "rollout": "config envs errors extras models runs types",
    "learner": "algorithms config errors kernels models runs types",
    "integrations": "algorithms config envs errors extras kernels models registry rollout types",
    "sft": "config envs errors kernels learner models rollout runs types",
    "evaluation": "algorithms config envs errors learner models rollout runs types",
    "distributed": "algorithms config errors evaluation learner models rollout runs types",
    "compare": "__init__ config errors runs",
    "orchestrator": "algorithms config errors learner rollout types",
    "trainer": "algorithms config distributed envs errors evaluation extras learner models orchestrator rollout runs "
    "sft types",
    "cli": "algorithms compare config distributed envs errors extras evaluation integrations learner models planning "
    "registry rollout runs sft trainer types",
    "api": "cli config errors evaluation models rollout runs trainer",
}
"""For each folder or module of the package, what it may import, in the order in which they are built."""

NO_TORCH = {"errors", "extras", "types", "registry", "config", "envs"}
"""Folders that load without torch, also through another module of the package."""

NO_TORCH_AT_IMPORT = {
    "cli.main", "cli.options", "cli.settings", "cli.help", "cli.failures",
    "cli.doctor", "cli.panel", "cli.plan", "cli.play", "cli.push", "cli.report", "cli.retriever", "cli.serve_env",
    "planning.check", "cli.compare", "compare.arms", "compare.plan", "compare.report", "compare.schedule",
    "distributed.launch", "runs.atomic_files",
    "runs.console", "runs.episodes_page", "runs.figures", "runs.live_curve", "runs.metrics", "runs.model_card",
    "runs.report",
    "runs.run_dir", "runs.stop_signals",
}  # fmt: skip
"""Modules that import torch inside functions only, so that `--help` is quick and a broken torch can be reported."""


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


def imports_of(module: str, types: bool = False) -> list[Import]:
    """What a module imports, inside functions too; imports for type checkers alone count only with `types`."""
    path = MODULES[module]
    package = ["paw_fast", *module.split(".")] if path.name == "__init__.py" else ["paw_fast", *module.split(".")[:-1]]
    if module == "__init__":
        package = ["paw_fast"]
    found = []

    def visit(node: ast.AST, eager: bool) -> None:
        if is_type_checking(node) and not types:
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
TYPE_IMPORTS = {module: imports_of(module, types=True) for module in MODULES}


def own(name: str) -> str | None:
    """`paw_fast.rollout.agent_loop` -> `rollout.agent`; None for other packages."""
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


def test_folders_import_what_their_line_says():
    rooms = {room(module) for module in MODULES}
    assert rooms - set(MAY_IMPORT) == set(), "give the new folder its line in MAY_IMPORT"
    wrong = [
        f"{where(module, one.line)} imports {target}"
        for module in MODULES
        for one in IMPORTS[module]
        if (target := own(one.name)) is not None
        and room(target) not in ("__init__", room(module), *MAY_IMPORT[room(module)].split())
    ]
    assert wrong == [], "see MAY_IMPORT"


def test_no_line_allows_an_import_upward():
    names = list(MAY_IMPORT)
    upward = [
        f"{name} may import {other}, which stands below it in MAY_IMPORT"
        for name, others in MAY_IMPORT.items()
        for other in others.split()
        if names.index(other) >= names.index(name) and name != "__main__"
    ]
    assert upward == []


@pytest.mark.parametrize("name", sorted(NO_TORCH))
def test_no_torch_at_all(name):
    for module in (one for one in MODULES if room(one) == name):
        direct = [where(module, one.line) for one in IMPORTS[module] if room(one.name) in ("torch", "transformers")]
        assert direct == [] or module == "envs.search_qa.retrieval.dense"  # encodes passages, where that is asked for
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
        if room(one.name) == "vllm" and room(module) != "rollout"
    ]
    assert wrong == []


def test_optional_packages_are_imported_when_they_are_needed():
    optional = {
        "vllm",
        "alfworld",
        "textworld",
        "gymnasium",
        "minigrid",
        "scienceworld",
        "py4j",
        "wandb",
        "trackio",
        "IPython",
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
        "trl",
        "datasets",
        "openenv",
        "verifiers",
        "verl",
    }
    workers = {"envs.alfworld.textworld.worker", "envs.alfworld.textworld.caching"}  # run where the extra is installed
    workers |= {module for module in MODULES if room(module) == "integrations"}  # imported by users of TRL
    wrong = [
        where(module, one.line)
        for module in set(MODULES) - workers
        for one in IMPORTS[module]
        if one.eager and room(one.name) in optional
    ]
    assert wrong == []
    reached = eager_closure("cli.main")
    assert {key for key in reached if room(key) in optional} == set()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components of more than one node)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_no_import_circles():
    """Between modules, also inside a folder, imports inside functions and for type checkers included."""
    graph = {}
    for module in MODULES:
        found = IMPORTS[module] + (TYPE_IMPORTS[module] if module != "__init__" else [])  # its names are loaded late
        named = {target for one in found if (target := own(one.name)) in MODULES}
        # `from paw_fast.kernels import native` names the package too: it depends on the module alone.
        graph[module] = {
            one for one in named if one != module and not any(other.startswith(f"{one}.") for other in named)
        } - {module.rpartition(".")[0]}
    assert circles(graph) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]


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
