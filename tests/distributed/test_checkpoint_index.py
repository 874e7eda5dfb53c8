"""The index of a sharded checkpoint is read without running code."""

import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from paw_fast.distributed.checkpoint import METADATA, _Reader
from paw_fast.errors import UserError
from paw_fast.runs.hub import model_files
from paw_fast.runs.manifest import faults, seal


class Code:
    def __reduce__(self):
        return os.mkdir, ("code_has_run",)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"a.weight": torch.arange(6.0).view(2, 3), "a.step": torch.tensor(3.0)}
    save(values, storage_writer=FileSystemWriter(tmp_path / "sharded", single_file_per_rank=True), no_dist=True)
    return tmp_path / "sharded"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_what_was_written_is_read(folder):
    found = {"a.weight": torch.zeros(2, 3), "a.step": torch.zeros(())}
    assert _Reader(folder).read_metadata().state_dict_metadata.keys() == found.keys()
    load(found, storage_reader=_Reader(folder), no_dist=True)
    assert found["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("content", [pickle.dumps(Code()), b"", b"no pickle", pickle.dumps({"a": 1})])
def test_anything_else_is_refused(folder, content):
    (folder / METADATA).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be used: .*\.metadata cannot be read"):
        _Reader(folder).read_metadata()
    assert not (folder.parent / "code_has_run").exists()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_shards_are_verified_and_not_uploaded(folder):
    checkpoint = folder.parent
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    seal(checkpoint, step=1)
    assert sorted(model_files(checkpoint)) == ["config.json", "model.safetensors"]
    (folder / METADATA).write_bytes(b"other")
    (fault,) = faults(checkpoint)
    assert fault.startswith("sharded/.metadata has 5 bytes, expected")
