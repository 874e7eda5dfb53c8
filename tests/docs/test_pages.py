"""Checks that the pages are up to date: links, paths of files, the generated parts, the site's navigation."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from docs.snippets import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
SOURCES = ("paw_fast", "bench", "csrc", "tests", ".ci")


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.M | re.S)


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.M):
        slug = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", slug))
    return found


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_lead_somewhere(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"https?://|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_files_that_are_named_exist(page):
    if page.name == "CHANGELOG.md":
        return  # what was, not what is
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:paw_fast|tests|bench|csrc|docs|examples|\.ci)/[^`\s*<>]+)`", text)
    wrong = [one for one in named if not (ROOT / one.split("::")[0]).exists()]
    assert wrong == []


def test_pages_that_the_code_names_exist():
    wrong = []
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in (".py", ".toml", ".h", ".cpp", ".cu", ".cuh", ".sh") and path.name != "run":
                continue
            found = re.findall(r"\bdocs/[\w/]+\.md", path.read_text(encoding="utf-8"))
            wrong += [f"{path.relative_to(ROOT)}: {page}" for page in found if not (ROOT / page).is_file()]
    assert wrong == []


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert named == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def generator():
    spec = importlib.util.spec_from_file_location("generate_reference", DOCS / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date():
    stale = [str(path) for path, before, now in generator().pages() if before != now]
    assert stale == [], "run python docs/generate_reference.py"


def test_every_metric_has_a_unit():
    made = generator()
    assert made.unit_of("time/rollout_s") == "s"
    assert made.unit_of("success/eval_rate") == "share, 0 to 1"
    assert made.unit_of("success/eval_total") == "tasks"
    with pytest.raises(KeyError, match="add it to UNITS"):
        made.unit_of("wm/something_new")
