"""What a failed run leaves in its folder."""

from paw_fast.runs.rollback import look, restore


def begin(folder):
    """What every run writes while it is set up."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.toml", "versions.json", ".lock", "metrics.jsonl"):
        (folder / name).touch()
    for name in ("workers", "warm_start", "tensorboard"):
        (folder / name).mkdir()
    (folder / "workers" / "0.log").write_text("started")


def test_a_new_folder_and_its_new_parents_go(tmp_path):
    folder = tmp_path / "runs" / "a" / "b"
    before = look(folder)
    begin(folder)
    assert restore(folder, before)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_others_use_by_now_stays(tmp_path):
    folder = tmp_path / "runs" / "a"
    before = look(folder)
    begin(folder)
    (tmp_path / "runs" / "other").mkdir()
    assert restore(folder, before)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_what_was_in_the_folder_stays(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    before = look(tmp_path)
    begin(tmp_path)
    assert restore(tmp_path, before)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["notes", "notes/mine.txt"]


def test_results_stay(tmp_path):
    for name in ("warm_start/model.safetensors", "checkpoints/step_000001/done", "metrics.jsonl"):
        folder = tmp_path / name.partition("/")[0]
        before = look(folder)
        begin(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n")
        assert not restore(folder, before)
        assert (folder / "config.toml").exists()


def test_a_folder_that_was_never_made(tmp_path):
    before = look(tmp_path / "run")
    assert not restore(tmp_path / "run", before)
    assert list(tmp_path.iterdir()) == []
