"""Tests of the report: self-contained, escaped, tolerant of missing files and strict about damaged ones."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from paw_fast.errors import UserError
from paw_fast.runs.figures import PANELS, common_steps, draw_panel, draw_stages, draw_success, smooth
from paw_fast.runs.metrics import MetricsWriter
from paw_fast.runs.report import write_curve_png, write_report
from paw_fast.runs.run_data import load_run
from paw_fast.runs.run_facts import flags

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
kl_coef = 0.0
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


def make_run(folder: Path, steps: int = 40, final: float = 0.5, **changes: float) -> Path:
    with MetricsWriter(folder, ()) as writer:
        for step in range(1, steps + 1):
            values = {
                "success/rate": step / steps, "reward/mean": 10 * step / steps, "wm/lambda_mean": 1 - step / steps,
                "policy/kl": 0.001 * step, "policy/clip_fraction": 0.01, "optim/grad_norm": 1.0,
                "time/rollout_s": 2.0, "time/update_s": 1.0, "time/other_s": 0.1, "time/step_s": 3.1, **changes,
            }  # fmt: skip
            if step % 20 == 0:
                values |= {"success/eval_rate": final, "success/eval_total": 100, "success/eval_pick_two": 0.25}
            writer.log(step, values)
    summary = {"warm_start_success": 0.3, "final_success": final, "num_eval_tasks": 100, "wall_time_s": 605.2}
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


def set_config(run: Path, *changes: tuple[str, str]) -> Path:
    text = (run / "config.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (run / "config.toml").write_text(text)
    return run


def test_several_runs_are_overlaid_and_only_rows_that_differ_are_shown(tmp_path):
    runs = [
        make_run(tmp_path / "one"),
        set_config(make_run(tmp_path / "two", final=0.4), ("alpha = 0.75", "alpha = 0.5")),
    ]
    path = write_report(runs)
    assert path == tmp_path / "report.html"
    page = Page(path)
    assert "2 runs" in page.words
    assert "Colours identify the lines" in page.words
    assert page.words.index("one") < page.words.index("two")
    shown, folded = page.words.split("The same in all runs")
    assert "paw.alpha 0.75 0.5" in shown
    assert "entropy selection of 0.5" in shown
    assert "16 groups of 8" not in shown
    assert "16 groups of 8" in folded
    assert "−10.0 95 %: −23.2 to +3.7, 100 tasks" in shown  # Newcombe of 50 and 40 in 100


def test_runs_that_differ_in_their_seed_alone_are_one_line(tmp_path):
    finals = {"a": 0.4, "b": 0.5, "c": 0.6}
    runs = [make_run(tmp_path / name, final=final) for name, final in finals.items()]
    for seed, run in enumerate(runs):
        set_config(run, ("seed = 7", f"seed = {seed}"))
    page = Page(write_report(runs))
    assert "50.0 % 95 %: 25.2 to 74.8, 3 runs" in page.words  # 4.303 * 0.1 / sqrt(3) = 0.248
    assert "+20.0 points 95 %: −4.8 to +44.8, 3 runs; may be chance" in page.words
    assert "does not exceed its interval" in page.words
    assert "lowest to highest run" in page.words
    assert "Colours identify" not in page.words
    others = [set_config(make_run(tmp_path / name, final=final + 0.3), ("tau = 0.2", "tau = 0.5")) for name, final in
              zip("def", finals.values(), strict=True)]  # fmt: skip
    for seed, run in enumerate(others):
        set_config(run, ("seed = 7", f"seed = {seed}"))
    words = Page(write_report([*runs, *others])).words
    assert "paw.tau = 0.2 (runs 1, 2, 3)" in words
    assert "paw.tau = 0.5 (runs 4, 5, 6)" in words
    assert "+30.0 95 %: +7.3 to +52.7, 3 and 3 runs" in words  # 2.776 * 0.1 * sqrt(2 / 3) = 0.227


def test_the_first_screen_comes_first(tmp_path):
    words = Page(write_report([make_run(tmp_path / "a", **{"episode/invalid_action_rate": 0.4})])).words
    order = ["success before training 30.0 %", "success after 40 steps 50.0 %", "gain +20.0 points",
             "40 % of the actions are invalid", "Success", "Success by task type", "Curves"]  # fmt: skip
    places = [words.index(text) for text in order]
    assert places == sorted(places)
    fine = Page(write_report([make_run(tmp_path / "b")])).words
    assert "The gain exceeds its interval, and no step was skipped." in fine
    assert "95 %: +6.4 to +32.6, 100 tasks; more than chance" in words  # Newcombe of 30 and 50


@pytest.mark.parametrize(
    ("changes", "final", "words"),
    [
        ({}, 0.35, "The gain of +5.0 points does not exceed its interval: it may be chance."),
        ({}, 0.1, "Success decreased, by more than chance explains."),
        ({"episode/invalid_action_rate": 0.9}, 0.5, "90 % of the actions are invalid."),
        ({"policy/advantage_abs_mean": 0.0}, 0.5, "In 40 of 40 steps no group had spread in its returns"),
        ({"policy/group_spread_share": 0.1}, 0.5, "90 % of the groups have no spread"),
        ({"optim/skipped_steps": 2.0}, 0.5, "80 optimizer steps were skipped"),
    ],
)
def test_problems_are_said_in_words(tmp_path, changes, final, words):
    found = flags(load_run(make_run(tmp_path / "a", final=final, **changes)))
    assert len(found) == 1
    assert found[0].startswith(words)


def test_a_running_run_takes_its_numbers_from_the_metrics(tmp_path):
    run = make_run(tmp_path / "a", steps=25, final=0.6)
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text()
    first = {"step": 0, "success/eval_rate": 0.2, "success/eval_total": 50, "time/step_s": 100}
    (run / "metrics.jsonl").write_text(json.dumps(first) + "\n" + lines)
    words = Page(write_report([run])).words
    assert "success before training 20.0 % 95 %: 11.2 to 33.0, 50 tasks" in words
    assert "success after 20 steps, so far 60.0 %" in words
    assert "25 of 40 steps, about 46 s left" in words  # 15 steps of 3.1 s
    assert "2 min 58 s" in words  # 100 s and 25 steps of 3.1 s


def test_a_run_that_was_resumed_does_not_show_the_evaluation_of_before(tmp_path):
    run = make_run(tmp_path / "a", steps=30, final=0.6)
    summary = {
        "warm_start_success": 0.3,
        "final_success": 0.1,
        "evaluated_step": 10,
        "num_eval_tasks": 100,
        "steps": 10,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    assert [(one.step, one.rate) for one in load_run(run).evaluations()] == [(0, 0.3), (10, 0.1), (20, 0.6)]
    assert "success after 20 steps, so far 60.0 %" in Page(write_report([run])).words


def test_before_the_first_evaluation(tmp_path):
    run = make_run(tmp_path / "a", steps=3)
    (run / "summary.json").write_text("{}")
    words = Page(write_report([run])).words
    assert "not evaluated yet" in words
    assert "The run has not been evaluated since training began." in words
    assert "training episodes, mean of the last steps 100.0 %" in words


def test_task_types_have_their_number_and_interval(tmp_path):
    run = make_run(tmp_path / "a")
    summary = json.loads((run / "summary.json").read_text())
    by_type = {"pick_<b>": {"successes": 7, "num_tasks": 20}, "look": {"successes": 0, "num_tasks": 0}, "odd": 3}
    summary["final_eval"] = {"by_task_type": by_type}
    (run / "summary.json").write_text(json.dumps(summary))
    assert "success 95 % interval tasks pick <b> 35.0 % 18.1 to 56.7 20" in Page(write_report([run])).words
    both = Page(write_report([run, set_config(make_run(tmp_path / "b"), ("tau = 0.2", "tau = 0.3"))]))
    assert "pick <b> 35.0 % 95 %: 18.1 to 56.7, 20 tasks -" in both.words


def test_kl_that_is_off_is_said(tmp_path):
    run = make_run(tmp_path / "a")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps({k: v for k, v in row.items() if k != "policy/kl"}) + "\n"
                                               for row in lines))  # fmt: skip
    assert "The KL term is off (algo.kl_coef = 0)." in Page(write_report([run])).words
    other = set_config(make_run(tmp_path / "b"), ("kl_coef = 0.0", "kl_coef = 0.01"))
    assert "The KL term is off in run 1." in Page(write_report([run, other])).words
    assert "The KL term is off" not in Page(write_report([other])).words


def test_a_metric_of_the_second_run_alone_keeps_its_legend(tmp_path):
    """Warnings are errors in tests: matplotlib warns of a legend without entries."""
    run = make_run(tmp_path / "a")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith(("reward", "success"))} for row in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    runs = [load_run(run), load_run(make_run(tmp_path / "b", **{"reward/return_mean": 1.0}))]
    figure = draw_panel(PANELS[0], [[one] for one in runs])
    assert figure is not None
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["with penalties", "without"]
    assert draw_success([[one] for one in runs]) is not None


def test_step_0_is_not_in_the_time_panel(tmp_path):
    run = make_run(tmp_path / "a", steps=3)
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 0, "time/warm_start_s": 900.0, "time/other_s": 5.0}) + "\n")
    loaded = load_run(run)
    assert loaded.stages == ["rollout", "update", "other"]
    figure = draw_stages([[loaded]])
    assert figure is not None
    assert float(figure.axes[0].collections[-1].get_paths()[0].vertices[:, 1].max()) == pytest.approx(3.1)


def test_common_steps_by_hand():
    series = [(np.array([1.0, 2.0, 4.0]), np.array([10.0, 20.0, 40.0])), (np.array([2.0, 4.0]), np.array([2.0, 4.0]))]
    steps, table = common_steps([*series, (np.zeros(0), np.zeros(0))])
    assert steps.tolist() == [2, 4]
    assert table.tolist() == [[20, 40], [2, 4]]


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
    assert draw_panel(PANELS[0], [[run]]) is None


def test_extreme_values_are_not_plotted(tmp_path):
    run_dir = make_run(tmp_path / "a", **{"optim/grad_norm": 1e308, "time/update_s": -1e308})
    (run_dir / "summary.json").write_text('{"wall_time_s": 1e400, "final_success": 1e300, "num_eval_tasks": 1e308}')
    assert Page(write_report([run_dir])).tags.count("svg") == 5


def test_evaluations_and_their_intervals(tmp_path):
    run = load_run(make_run(tmp_path / "a"))
    first, middle, last = run.evaluations()
    assert first == pytest.approx((0, 0.3, 0.21895, 0.39585, 100), abs=1e-4)  # Wilson of 30 in 100
    assert middle[:2] == (20, 0.5)
    assert last == pytest.approx((40, 0.5, 0.403832, 0.596168, 100), abs=1e-5)


def test_without_the_number_of_tasks_there_is_no_interval(tmp_path):
    run_dir = make_run(tmp_path / "a", steps=5)
    (run_dir / "summary.json").write_text('{"final_success": 0.4, "num_eval_tasks": null, "warm_start_success": "x"}')
    assert load_run(run_dir).evaluations() == [(5.0, 0.4, 0.4, 0.4, 0)]
    assert draw_success([[load_run(run_dir)]]) is not None


def test_stage_times_stack_to_the_step(tmp_path):
    run = load_run(make_run(tmp_path / "a"))
    assert run.stages == ["rollout", "update", "other"]
    figure = draw_stages([[run]])
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
