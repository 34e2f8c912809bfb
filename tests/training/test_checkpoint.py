import pickle

import pytest
import torch

from eeutils.errors import IntegrityError, StorageError
from eeutils.training.checkpoint import load_checkpoint, save_checkpoint

STATE = {
    "epoch": 3,
    "rows": [{"epoch": 1, "train_loss": 0.1}],
    "config": {"loss": {"weights": (0.3, 0.7)}, "schedule": "linear"},
    "data": {"name": "digits"},
    "net": {"weight": torch.arange(6.0).view(2, 3)},
    "optimizer": {"state": {}},
    "scaler": {},
}


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "checkpoint.pt"


def test_a_checkpoint_is_read_back_as_it_was_written(path):
    save_checkpoint(path, STATE)
    back = load_checkpoint(path)
    assert torch.equal(back.pop("net")["weight"], STATE["net"]["weight"])
    assert back == {name: value for name, value in STATE.items() if name != "net"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_damaged(path, share):
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(IntegrityError, match=r"checkpoint\.pt is not a readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3)])
def test_another_kind_of_file_is_no_checkpoint(path, content):
    path.parent.mkdir()
    torch.save(content, path)
    with pytest.raises(IntegrityError, match="no checkpoint of a training run"):
        load_checkpoint(path)


@pytest.mark.parametrize("missing", sorted(STATE))
def test_a_checkpoint_has_all_its_parts(path, missing):
    save_checkpoint(path, {name: value for name, value in STATE.items() if name != missing})
    with pytest.raises(IntegrityError, match="no checkpoint of a training run"):
        load_checkpoint(path)


def test_nothing_in_a_checkpoint_is_executed(path):
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({**STATE, "net": Bomb()}, protocol=2))
    with pytest.raises(IntegrityError):
        load_checkpoint(path)
    torch.save({**STATE, "net": Bomb()}, path)
    with pytest.raises(IntegrityError):
        load_checkpoint(path)


def test_a_checkpoint_that_is_not_there_is_not_damaged(path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path)


def test_a_path_that_cannot_be_written_is_named(path):
    path.parent.touch()
    with pytest.raises(StorageError, match=r"checkpoint\.pt"):
        save_checkpoint(path, STATE)


def test_a_write_that_fails_leaves_the_earlier_checkpoint(path, monkeypatch):
    save_checkpoint(path, STATE)

    def fail_half_way(state, target):
        target.write_bytes(b"half")
        raise RuntimeError("enforce fail: unexpected pos")

    monkeypatch.setattr(torch, "save", fail_half_way)
    with pytest.raises(StorageError, match="unexpected pos"):
        save_checkpoint(path, {**STATE, "epoch": 4})
    assert load_checkpoint(path)["epoch"] == 3
    assert [file.name for file in path.parent.iterdir()] == [path.name]
