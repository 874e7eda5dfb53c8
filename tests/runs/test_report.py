"""Tests of the report: self-contained, escaped, tolerant of missing files and strict about damaged ones."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from paw_fast.errors import UserError
from paw_fast.runs.figures import PANELS, draw_panel, draw_stages, draw_success, load_run, smooth
from paw_fast.runs.metrics import MetricsWriter
from paw_fast.runs.report import write_curve_png, write_report

CONFIG = """
layout = "window"
steps = 40
seed = 7
[env]
name = "alfworld"
size = "small"
[model]
path = "tiny"
[algo]
name = "grpo"
[rollout]
groups = 16
group_size = 8
[paw]
enabled = true
alpha = 0.75
tau = 0.2
loss = "cmae"
selection = "entropy"
balance = "adaptive"
lambda_0 = 1.0
[optim]
learning_rate = 1e-4
"""


def make_run(folder: Path, steps: int = 40, **changes: float) -> Path:
    with MetricsWriter(folder, tensorboard=False) as writer:
        for step in range(1, steps + 1):
            values = {
                "success/rate": step / steps, "reward/mean": 10 * step / steps, "wm/lambda_mean": 1 - step / steps,
                "policy/kl": 0.001 * step, "policy/clip_fraction": 0.01, "optim/grad_norm": 1.0,
                "time/rollout_s": 2.0, "time/update_s": 1.0, "time/other_s": 0.1, "time/step_s": 3.1, **changes,
            }  # fmt: skip
            if step % 20 == 0:
                values |= {"success/eval_rate": 0.5, "success/eval_total": 100, "success/eval_pick_two": 0.25}
            writer.log(step, values)
    summary = {"warm_start_success": 0.3, "final_success": 0.5, "num_eval_tasks": 100, "wall_time_s": 605.2}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.toml").write_text(CONFIG)
    return folder


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects text, tags and attributes."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.text, self.tags, self.attributes = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_a_run_with_its_figures_and_facts(tmp_path):
    path = write_report([make_run(tmp_path / "first")])
    assert path == tmp_path / "first" / "report.html"
    page = Page(path)
    for words in (
        "30.0 % (95 %: 21.9 to 39.6, 100 tasks)",
        "50.0 % (95 %: 40.4 to 59.6, 100 tasks)",
        "+20.0 points",
        "10 min 05 s",
        "40 of 40",
        "alfworld, small",
        "cmae, tau 0.2, entropy selection of 0.75, adaptive lambda up to 1.0",
        "16 groups of 8",
        "0.0001",
        "pick two",
        "25.0 %",
    ):
        assert words in page.words, words
    # Success, reward, lambda, KL and clip fraction, gradient norm, stage times. Other metrics were not logged.
    assert page.tags.count("svg") == 6


def test_the_page_loads_nothing_from_the_network(tmp_path):
    page = Page(write_report([make_run(tmp_path / "a")]))
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), (name, value)
    source = (tmp_path / "a" / "report.html").read_text()
    assert set(re.findall(r"https?://[^\s\"'<>]+", source)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in source
    assert "currentColor" in source
    assert "#010203" not in source


def test_ids_used_by_figures_are_unique(tmp_path):
    source = write_report([make_run(tmp_path / "a")]).read_text()
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", source))
    ids = re.findall(r'\bid="([^"]+)"', source)
    assert used <= set(ids)
    assert all(ids.count(one) == 1 for one in used)


def test_several_runs_are_overlaid(tmp_path):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", steps=10)]
    path = write_report(runs)
    assert path == tmp_path / "report.html"
    page = Page(path)
    assert "2 runs" in page.words
    assert "Colours identify the runs" in page.words
    assert page.words.index("one") < page.words.index("two")


def test_runs_of_the_same_name_get_unique_labels(tmp_path):
    runs = [make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run")]
    words = Page(write_report(runs, tmp_path / "out.html")).words
    assert "x/run" in words
    assert "y/run" in words


def test_everything_is_escaped(tmp_path):
    run = make_run(tmp_path / "<script>alert(1)</script>$_".replace("/", "_"))
    (run / "config.toml").write_text('[model]\npath = "</td><script>alert(2)</script>"\n')
    (run / "episodes").mkdir()
    (run / "episodes" / "<b>.txt").write_text("<script>alert(3)</script> </pre>", encoding="utf-8")
    page = Page(write_report([run, make_run(tmp_path / "$x^")], tmp_path / "out.html"))
    assert "script" not in page.tags
    assert "<script>alert(2)</script>" in page.words
    assert "<script>alert(3)</script> </pre>" in page.words


def test_first_middle_and_last_episode_are_shown(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "episodes").mkdir()
    for step in (1, 2, 3, 10, 20):
        (run / "episodes" / f"step_{step}.txt").write_text(f"episode of step {step}\n")
    (run / "episodes" / "step_20.txt").write_bytes(b"\xff" + b"x" * 30_000)
    page = Page(write_report([run]))
    assert "episode of step 1 " in page.words
    assert "episode of step 3 " in page.words
    assert "episode of step 2 " not in page.words
    assert "(continued in step_20.txt)" in page.words


def test_a_run_without_logged_steps(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    words = Page(write_report([tmp_path])).words
    assert "No step has been logged yet." in words
    assert "0 of 40" in words
    with pytest.raises(UserError, match="no success curve yet"):
        write_curve_png(tmp_path, tmp_path / "c.png")


@pytest.mark.parametrize("steps", [1, 2, 5000])
def test_short_and_long_runs(tmp_path, steps):
    path = write_report([make_run(tmp_path / "a", steps=steps)])
    assert Page(path).tags.count("svg") == 6
    assert path.stat().st_size < 2_000_000


def test_metrics_without_a_finite_value_have_no_panel(tmp_path):
    run = load_run(make_run(tmp_path / "a", **{"reward/mean": math.nan}))
    assert draw_panel(PANELS[0], [run]) is None


def test_extreme_values_are_not_plotted(tmp_path):
    run_dir = make_run(tmp_path / "a", **{"optim/grad_norm": 1e308, "time/update_s": -1e308})
    (run_dir / "summary.json").write_text('{"wall_time_s": 1e400, "final_success": 1e300, "num_eval_tasks": 1e308}')
    assert Page(write_report([run_dir])).tags.count("svg") == 5


def test_evaluations_and_their_intervals(tmp_path):
    run = load_run(make_run(tmp_path / "a"))
    first, middle, last = run.evaluations()
    assert first == pytest.approx((0, 0.3, 0.21895, 0.39585), abs=1e-4)  # Wilson of 30 in 100
    assert middle[:2] == (20, 0.5)
    assert last == pytest.approx((40, 0.5, 0.403832, 0.596168), abs=1e-5)


def test_without_the_number_of_tasks_there_is_no_interval(tmp_path):
    run_dir = make_run(tmp_path / "a", steps=5)
    (run_dir / "summary.json").write_text('{"final_success": 0.4, "num_eval_tasks": null, "warm_start_success": "x"}')
    assert load_run(run_dir).evaluations() == [(5.0, 0.4, 0.4, 0.4)]
    assert draw_success([load_run(run_dir)]) is not None


def test_stage_times_stack_to_the_step(tmp_path):
    run = load_run(make_run(tmp_path / "a"))
    assert run.stages == ["rollout", "update", "other"]
    figure = draw_stages([run])
    assert figure is not None
    tops = [float(area.get_paths()[0].vertices[:, 1].max()) for area in figure.axes[0].collections]
    assert tops == pytest.approx([2.0, 3.0, 3.1])


def test_smooth_by_hand():
    assert smooth(np.array([1.0, 5.0])).tolist() == [1.0, 5.0]  # shorter than the window
    values = np.zeros(60)  # half a window is 60 // 30 = 2
    values[10] = 5.0
    values[59] = 3.0
    soft = smooth(values)
    assert soft[7:14].tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert soft[57:].tolist() == pytest.approx([3 / 5, 3 / 4, 1.0])


def test_curve_png(tmp_path):
    path = write_curve_png(make_run(tmp_path / "a"), tmp_path / "docs" / "curve.png")
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 1125  # 7.5 inches at 150 dots


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("summary.json", '{"final_success": ', "summary.json cannot be read"),
        ("summary.json", "[1, 2]", "it is not a JSON object"),
        ("config.toml", "a = = 1", "config.toml cannot be read"),
        ("config.toml", "\x00\ufffd\x01", "config.toml cannot be read"),
        ("metrics.jsonl", "what\nis this\n", "metrics.jsonl:1: not a line of metrics"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, words):
    run = make_run(tmp_path / "a")
    (run / name).write_text(content)
    with pytest.raises(UserError) as caught:
        write_report([run])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_paths_that_are_not_run_directories(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="no run at"):
        write_report([tmp_path / "gone"])
    with pytest.raises(UserError, match="no run at"):
        write_report([tmp_path / "file"])
    with pytest.raises(UserError, match="is not a run"):
        write_report([tmp_path])
    with pytest.raises(UserError, match="no run to report on"):
        write_report([])
    run = make_run(tmp_path / "a")
    with pytest.raises(UserError, match="given twice"):
        write_report([run, tmp_path / "." / "a"])
    with pytest.raises(UserError, match="is a folder"):
        write_report([run], tmp_path)
    with pytest.raises(UserError, match="cannot write the file"):
        write_report([run], tmp_path / "file" / "report.html")
