"""The report of a comparison: what it says, in HTML, Markdown, JSON and PNG, and in a browser where there is one."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import made_runs
import numpy as np
import pytest

from paw_fast.compare.arms import arm_configs, find_arms
from paw_fast.compare.figures import band
from paw_fast.compare.paired import two_way_interval
from paw_fast.compare.plan import make_plan, write_plan
from paw_fast.compare.report import write_reports
from paw_fast.compare.results import collect, compare_pairs, reach
from paw_fast.compare.sentences import sentence
from paw_fast.config import load_preset
from paw_fast.config.build import change_config
from paw_fast.errors import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def plan_of(out, arms="rl,paw,echo", seeds=range(4), steps=6):
    base = change_config(load_preset("smoke"), steps=steps)
    chosen = find_arms(arms.split(","))
    plan = make_plan(out, chosen, seeds, arm_configs(chosen, base), "per-seed", 1)
    write_plan(plan, "")
    return plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    plan = plan_of(tmp_path_factory.mktemp("compare") / "out")
    for run in plan.runs:
        made_runs.write_made_run(run.config)
    return plan


@pytest.fixture(scope="module")
def report(plan):
    sentences, path = write_reports(plan, 0.05, "paw-fast compare --arms 'rl,paw,echo'")
    return sentences, path


def won(plan, arm, seed):
    return json.loads((plan.run(arm, seed).folder / "summary.json").read_text())["final_won"]


def test_every_pair_has_its_sentence_with_the_paired_interval(plan, report):
    sentences, _ = report
    assert [re.match(r"[\w-]+", text)[0] for text in sentences] == ["paw", "echo", "echo"]  # pyright: ignore
    table = np.array([np.subtract(won(plan, "paw", s), won(plan, "rl", s)) for s in range(4)])
    found = two_way_interval(table)
    assert 100 * found.low > 0
    assert sentences[0].startswith(
        f"paw ends {100 * table.mean():.1f} points above rl in final success (95 % interval +"
    )
    assert f"{100 * found.low:+.1f} to {100 * found.high:+.1f}, 4 seeds × 40 tasks" in sentences[0]
    assert "cannot be told apart" in sentences[1]
    assert re.search(r"\d+ seeds would show a true difference of 5 points|more --eval-tasks", sentences[1])


def test_json_has_the_raw_numbers(plan, report):
    found = json.loads((plan.out / "report.json").read_text())
    arm = found["arms"]["paw"]
    assert arm["after"] == [np.mean(won(plan, "paw", seed)) for seed in range(4)]
    assert arm["area"] == pytest.approx([(0.1 + after) / 2 for after in arm["after"]])  # curves are straight
    assert arm["train_seconds"] == [12.0] * 4  # 6 steps of 3 s, 1 s of each an evaluation
    assert arm["tokens"] == [6000.0] * 4
    assert arm["peak_memory_bytes"] == [2**20] * 4
    assert arm["metrics"]["wm/eval_action_gap"] == pytest.approx([0.025, np.mean(arm["after"]) / 4])
    assert found["arms"]["rl"]["metrics"]["wm/lambda_mean"] is None
    pair = found["pairs"][0]
    assert (pair["first"], pair["second"], pair["told_apart"]) == ("rl", "paw", True)
    assert pair["success"]["value"] == pytest.approx(np.mean(arm["after"]) - np.mean(found["arms"]["rl"]["after"]))
    assert pair["p"] == pair["p_smallest"] == 2 / 16
    assert found["missing"] == []


def test_steps_to_the_final_success_of_rl(plan, report):
    base, level, steps = reach(collect(plan))
    final = [np.mean([np.mean(won(plan, arm, seed)) for seed in range(4)]) for arm in ("rl", "paw")]
    assert (base, level) == ("rl", pytest.approx(final[0]))
    assert steps["rl"] == pytest.approx(6)
    assert steps["paw"] == pytest.approx(6 * (final[0] - 0.1) / (final[1] - 0.1))


def test_markdown_and_html_say_the_same(plan, report):
    sentences, path = report
    text, html = (plan.out / "report.md").read_text(), path.read_text()
    for one in sentences:
        assert f"- {one}." in text
        assert one in html
    assert "| ● rl | 4 | 10.0 %" in text
    assert all(f'href="{arm}/s{seed}/report.html"' in html for arm in ("rl", "paw", "echo") for seed in range(4))
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", html).replace("http://www.w3.org", "")
    assert "<script" not in html
    assert "paw-fast compare --arms &#x27;rl,paw,echo&#x27;" in html


def test_the_png_is_one_and_differs_without_colour(plan, report):
    """Each arm has its own dashes and marker: drawn in grey, the curves are still told apart."""
    from paw_fast.compare import figures

    assert (plan.out / "report.png").read_bytes().startswith(b"\x89PNG")
    looks = {(str(figures._look(i)["linestyle"]), figures._look(i)["marker"]) for i in range(10)}
    assert len(looks) == 10
    assert len(figures.SYMBOLS) == len(figures.MARKERS) == 10


def test_bands_are_students_intervals():
    mean, low, high = band(np.array([[0.1, 1.0], [0.2, 1.0], [0.3, 1.0]]))
    assert mean.tolist() == pytest.approx([0.2, 1.0])
    assert (high - mean).tolist() == pytest.approx([4.303 * 0.1 / 3**0.5, 0.0])
    assert (mean - low).tolist() == pytest.approx((high - mean).tolist())
    assert [x.tolist() for x in band(np.array([[0.5, 0.6]]))] == [[0.5, 0.6]] * 3


def test_a_report_without_some_of_the_runs_says_so(tmp_path):
    plan = plan_of(tmp_path / "out", seeds=range(3))
    for run in plan.runs:
        if (run.arm, run.seed) != ("paw", 2) and run.arm != "echo":
            made_runs.write_made_run(run.config)
    sentences, path = write_reports(plan, 0.05, "")
    assert len(sentences) == 1
    assert "2 seeds × 40 tasks" in sentences[0]
    assert "Not finished, and not in this report: paw s2, echo s0, echo s1, echo s2." in path.read_text()


def test_one_seed_tells_nothing_apart(tmp_path):
    plan = plan_of(tmp_path / "out", "rl,paw", seeds=range(1))
    for run in plan.runs:
        made_runs.write_made_run(run.config, final=1.0 if run.arm == "paw" else 0.0)
    sentences, _ = write_reports(plan, 0.05, "")
    assert sentences == [
        "paw against rl: +100.0 points in final success (95 % interval +100.0 to +100.0, 1 seed × 40 tasks); one seed "
        "cannot tell the arms from the luck of a run: give more --seeds"
    ]


def test_nothing_finished_yet(tmp_path):
    sentences, path = write_reports(plan_of(tmp_path / "out"), 0.05, "")
    assert sentences == ["no run has finished yet: there is nothing to compare"]
    assert not path.exists()


def test_more_tasks_are_asked_for_where_no_number_of_seeds_helps(plan):
    pair = compare_pairs(collect(plan), 0.05)[1]
    text = sentence(dataclasses.replace(pair, needed=None))
    assert "no number of seeds would show a difference of 5 points on these 40 tasks: give more --eval-tasks" in text


def test_equal_outcomes_say_nothing_of_the_seeds_needed(plan):
    pair = compare_pairs(collect(plan), 0.05)[1]
    equal = dataclasses.replace(pair, success=two_way_interval([[0.0, 0.0], [0.0, 0.0]]))
    assert sentence(equal).endswith("the difference is the same in every seed, so how many would be needed is unknown")


def test_a_summary_without_outcomes_is_refused(tmp_path):
    plan = plan_of(tmp_path / "out", "rl,paw", seeds=range(1))
    for run in plan.runs:
        made_runs.write_made_run(run.config)
    path = plan.runs[1].folder / "summary.json"
    path.write_text(path.read_text().replace('"final_won"', '"other"'))
    with pytest.raises(UserError, match="has no outcome of each evaluation task"):
        write_reports(plan, 0.05, "")


def browser():
    found = os.environ.get("PAW_FAST_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or pytest.skip(f"no browser: install one of {', '.join(BROWSERS)}, or set PAW_FAST_BROWSER")


def chromium(*options, folder):
    base = ["--headless", "--disable-gpu", "--no-sandbox", f"--user-data-dir={folder / 'profile'}", "--no-first-run"]
    return subprocess.run([browser(), *base, *options], check=True, capture_output=True, text=True, timeout=120).stdout


def test_the_page_opens_in_a_browser_and_fits_a_phone_and_paper(report, tmp_path):
    """A browser lays the page out: all figures have a size, nothing is wider than the window, and it prints."""
    sentences, path = report
    script = (
        "<script>addEventListener('load', () => { const w = document.documentElement; document.title = JSON.stringify({"
        "wide: w.scrollWidth - w.clientWidth, figures: [...document.querySelectorAll('svg')].map(s => "
        "s.getBoundingClientRect().height), items: document.querySelectorAll('.answers li').length, "
        "ink: getComputedStyle(document.body).color}) })</script>"
    )
    for width in (1300, 500):
        page = tmp_path / f"{width}.html"
        page.write_text(path.read_text() + script, encoding="utf-8")
        dom = chromium(f"--window-size={width},900", "--dump-dom", page.as_uri(), folder=tmp_path)
        seen = json.loads(re.search(r"<title>(\{.*?\})</title>", dom)[1].replace("&quot;", '"'))  # pyright: ignore
        assert seen["items"] == len(sentences) == 3
        assert len(seen["figures"]) == 10
        assert min(seen["figures"]) > 50
        assert seen["wide"] <= 0
    pdf = tmp_path / "report.pdf"
    chromium(f"--print-to-pdf={pdf}", Path(path).as_uri(), folder=tmp_path)
    assert pdf.read_bytes().startswith(b"%PDF")
