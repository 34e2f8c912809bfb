import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eeutils.data import Augmentation, ImageData, Normalization
from eeutils.errors import IntegrityError, StorageError
from eeutils.training import LossConfig, fit
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


# Which run a checkpoint is of.


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def assert_same_weights(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(ours) == list(expected)
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []


def with_training(data: ImageData, **changes: Callable[[Tensor], Tensor]) -> ImageData:
    """The same data, but for what each function makes of a field of the training split."""
    fields = {name: change(getattr(data.train, name).clone()) for name, change in changes.items()}
    return replace(data, train=replace(data.train, **fields))


def another_pixel(images: Tensor) -> Tensor:
    images[-1, -1, -1, -1] ^= 1
    return images


def normalized(data: ImageData, normalization: Normalization) -> ImageData:
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return replace(data, **{name: replace(split, normalization=normalization) for name, split in splits.items()})


OTHER_DATA = {
    "name": (lambda data: replace(data, name="other"), "another name"),
    "pixel": (lambda data: with_training(data, images=another_pixel), "other training images"),
    "order": (
        lambda data: with_training(data, images=lambda x: x.flip(0), labels=lambda x: x.flip(0)),
        "other training images, other training labels",
    ),
    "labels": (lambda data: with_training(data, labels=lambda x: x.roll(1)), "other training labels"),
    "number": (
        lambda data: replace(data, train=data.train.take(slice(0, 100))),
        "another number or shape of images, other training images, other training labels",
    ),
    "normalization": (
        lambda data: normalized(data, Normalization((0.4,) * 3, (0.2,) * 3)),
        "another normalization",
    ),
}


@pytest.mark.parametrize("other", OTHER_DATA)
def test_a_checkpoint_of_other_data_is_refused(tiny_net, tiny_data, tiny_config, tmp_path, other):
    path, net = tmp_path / "checkpoint.pt", tiny_net()
    fit(tiny_net(), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)
    before, content = weights(net), path.read_bytes()
    make, message = OTHER_DATA[other]
    with pytest.raises(ValueError, match=rf"on other data \(tiny\): {message}; use another file, or remove it"):
        fit(net, make(tiny_data), tiny_config(epochs=1), checkpoint=path, progress=False)
    assert_same_weights(weights(net), before)
    assert path.read_bytes() == content


def test_the_same_data_are_the_same_in_another_memory_format(tiny_net, tiny_data, tiny_config, tmp_path):
    path = tmp_path / "checkpoint.pt"
    history = fit(tiny_net(), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)
    same = with_training(tiny_data, images=lambda x: x.contiguous(memory_format=torch.channels_last))
    assert fit(tiny_net(), same, tiny_config(epochs=1), checkpoint=path, progress=False) == history


def test_a_checkpoint_from_before_data_were_compared_is_resumed(tiny_net, tiny_data, tiny_config, tmp_path):
    path = tmp_path / "checkpoint.pt"
    history = fit(tiny_net(), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)
    state = load_checkpoint(path)
    state["data"] = {name: state["data"][name] for name in ("name", "images", "classes")}
    save_checkpoint(path, state)
    assert fit(tiny_net(), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False) == history
    with pytest.raises(ValueError, match="another name"):
        fit(tiny_net(), replace(tiny_data, name="other"), tiny_config(epochs=1), checkpoint=path, progress=False)


def test_a_run_in_numpys_numbers_and_words_is_resumed(tiny_net, tiny_data, tiny_config, tmp_path):
    path, words = tmp_path / "checkpoint.pt", np.array(["a", "b", "c", "d"])
    splits = (replace(split, classes=words) for split in (tiny_data.train, tiny_data.val, tiny_data.test))
    data = ImageData(Path("tiny"), *splits)
    config = tiny_config(
        epochs=np.int64(2),
        learning_rate=np.logspace(-2, -1, 3)[1],
        schedule=np.str_("steps"),
        drops=np.array([0.5]),
        seed=np.uint32(3),
        loss=LossConfig(weights=np.array([0.2, 0.3, 0.5]), label_smoothing=np.float64(0.1)),
        augmentation=Augmentation(flip=np.bool_(False), translate=np.int64(1), cutout=np.int32(2)),
    )
    history = fit(tiny_net(), data, config, checkpoint=path, progress=False)
    assert fit(tiny_net(), data, config, checkpoint=path, progress=False) == history
    assert fit(tiny_net(), tiny_data, config, checkpoint=path, progress=False) == history


def test_a_checkpoint_from_when_a_config_could_hold_lists_is_resumed(tiny_net, tiny_data, tiny_config, tmp_path):
    path, config = tmp_path / "checkpoint.pt", tiny_config(epochs=1, loss=LossConfig(weights=(0.2, 0.3, 0.5)))
    history = fit(tiny_net(), tiny_data, config, checkpoint=path, progress=False)
    state = load_checkpoint(path)
    state["config"]["loss"]["weights"] = [0.2, 0.3, 0.5]
    state["config"]["drops"] = list(config.drops)
    save_checkpoint(path, state)
    assert fit(tiny_net(), tiny_data, config, checkpoint=path, progress=False) == history


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"learning_rate": 0.2, "seed": 1}}, "with learning_rate=0.1, not 0.2 and seed=0, not 1; use"),
        ({"config": {"epochs": 5}}, r"with epochs=1, not 5, which is finished \(to train its network further, .*\);"),
        ({"config": {"loss": LossConfig(weights="equal")}}, "with loss.weights='deeper_counts_more', not 'equal'; use"),
        ({"net": {"width": 3}}, "of another network"),
        ({"net": {"exit_after": (1, 4)}}, "of another network"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tiny_net, tiny_data, tiny_config, tmp_path, changes, message):
    path = tmp_path / "checkpoint.pt"
    fit(tiny_net(), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)
    net, content = tiny_net(**changes.get("net", {})), path.read_bytes()
    before = weights(net)
    config = tiny_config(**{"epochs": 1, **changes.get("config", {})})
    with pytest.raises(ValueError, match=message):
        fit(net, tiny_data, config, checkpoint=path, progress=False)
    assert_same_weights(weights(net), before)
    assert path.read_bytes() == content


def test_of_an_unfinished_run_no_network_is_offered(tiny_net, tiny_data, tiny_config, tmp_path):
    path = tmp_path / "checkpoint.pt"
    fit(tiny_net(), tiny_data, tiny_config(epochs=2), checkpoint=path, progress=False)
    save_checkpoint(path, {**load_checkpoint(path), "epoch": 1})
    with pytest.raises(ValueError, match="a run with epochs=2, not 3; use another file, or remove it"):
        fit(tiny_net(), tiny_data, tiny_config(epochs=3), checkpoint=path, progress=False)


def test_an_optimizer_of_another_build_is_refused_before_anything_is_overwritten(
    tiny_net, tiny_data, tiny_config, tmp_path
):
    path, net = tmp_path / "checkpoint.pt", tiny_net()
    fit(tiny_net(), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)
    state = load_checkpoint(path)
    state["optimizer"]["param_groups"] = state["optimizer"]["param_groups"][:1]
    save_checkpoint(path, state)
    before = weights(net)
    with pytest.raises(ValueError, match="another optimizer"):
        fit(net, tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)
    assert_same_weights(weights(net), before)


def test_a_checkpoint_from_before_a_kind_of_augmentation_is_resumed(tiny_net, tiny_data, tiny_config, tmp_path):
    path, net = tmp_path / "checkpoint.pt", tiny_net()
    history = fit(net, tiny_data, tiny_config(), checkpoint=path, progress=False)
    state = load_checkpoint(path)
    for field in ("brightness", "contrast", "saturation"):
        del state["config"]["augmentation"][field]
    torch.save(state, path)
    assert fit(tiny_net(), tiny_data, tiny_config(), checkpoint=path, progress=False) == history
    jittered = tiny_config(augmentation=replace(tiny_config().augmentation, contrast=0.1))
    with pytest.raises(ValueError, match=r"with augmentation.contrast=0.0, not 0.1; use"):
        fit(tiny_net(), tiny_data, jittered, checkpoint=path, progress=False)
