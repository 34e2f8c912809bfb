import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eeutils import fit
from eeutils.data import ImageData, Normalization
from eeutils.errors import IntegrityError, StorageError
from eeutils.files import exclusive, save_state
from eeutils.training import LossConfig
from eeutils.training.checkpoint import load_checkpoint
from tests.toys import unchanged

EARLY = {"trained": "early_exits", "optimizer": "adam", "learning_rate": 0.01, "epochs": 1}


@pytest.fixture
def finished(tiny_net, tiny_data, tiny_config, path):
    """A run of one epoch; returns its history."""
    return fit(tiny_net(), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)


def test_checkpoint_net_is_the_average_and_raw_what_is_trained(tiny_net, tiny_data, tiny_config, path):
    plain, averaged = tiny_net(), tiny_net()
    fit(plain, tiny_data, tiny_config(epochs=1), progress=False)
    fit(averaged, tiny_data, tiny_config(epochs=1, average_decay=0.9), checkpoint=path, progress=False)
    state = load_checkpoint(path)
    assert all(torch.equal(tensor, state["net"][name]) for name, tensor in averaged.state_dict().items())
    assert all(torch.equal(tensor, state["raw"][name]) for name, tensor in plain.state_dict().items())
    assert not torch.equal(state["net"]["units.0.0.weight"], state["raw"]["units.0.0.weight"])


def test_load_checkpoint_refuses_another_file(path):
    for save in (partial(torch.save, {}, path), partial(save_state, path, {"net": {}}), partial(save_state, path, [1])):
        save()
        with pytest.raises(IntegrityError, match=r"checkpoint\.pt"):
            load_checkpoint(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path)


def test_fit_refuses_a_checkpoint_that_is_damaged_or_in_use(finished, tiny_net, tiny_data, tiny_config, path):
    net = tiny_net()
    with unchanged(net, path=path), exclusive(path), pytest.raises(StorageError, match=rf"{os.getpid()}.*{path.name}"):
        fit(net, tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)
    path.write_bytes(path.read_bytes()[:-100])
    with unchanged(net, path=path), pytest.raises(IntegrityError, match=path.name):
        fit(net, tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)


def with_training(data: ImageData, **changes: Callable[[Tensor], Tensor]) -> ImageData:
    """Change fields of the training split."""
    fields = {name: change(getattr(data.train, name).clone()) for name, change in changes.items()}
    return replace(data, train=replace(data.train, **fields))


def in_all_splits(data: ImageData, **changes: object) -> ImageData:
    return replace(data, **{name: replace(getattr(data, name), **changes) for name in ("train", "val", "test")})


def another_pixel(images: Tensor) -> Tensor:
    images[-1, -1, -1, -1] ^= 1
    return images


OTHER_DATA = {
    "name": lambda data: replace(data, name="other"),
    "images": lambda data: with_training(data, images=another_pixel),
    "labels": lambda data: with_training(data, labels=lambda x: x.roll(1)),
    "shape": lambda data: replace(data, train=data.train.take(slice(0, 100))),
    "normalization": lambda data: in_all_splits(data, normalization=Normalization((0.4,) * 3, (0.2,) * 3)),
}


@pytest.mark.parametrize("other", OTHER_DATA)
def test_fit_refuses_a_checkpoint_of_other_data(finished, tiny_net, tiny_data, tiny_config, path, other):
    net = tiny_net()
    with unchanged(net, path=path), pytest.raises(ValueError, match=rf"other data \(tiny: other .*{other}"):
        fit(net, OTHER_DATA[other](tiny_data), tiny_config(epochs=1), checkpoint=path, progress=False)


def test_fit_takes_the_same_data_in_another_form(finished, tiny_net, tiny_data, tiny_config, path):
    same = with_training(tiny_data, images=lambda x: x.contiguous(memory_format=torch.channels_last))
    same = in_all_splits(same, classes=np.array(tiny_data.classes))
    assert fit(tiny_net(), same, tiny_config(epochs=1), checkpoint=path, progress=False) == finished


def zero_one_loss(logits: list[Tensor], labels: Tensor) -> Tensor:
    return torch.stack([nn.functional.cross_entropy(answer, labels) for answer in logits])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"config": {"learning_rate": 0.2, "seed": 1}}, "learning_rate=0.1 instead of 0.2, seed=0 instead of 1"),
        ({"config": {"loss": LossConfig(weights="equal")}}, "loss.weights='deeper_counts_more' instead of 'equal'"),
        ({"fit": {"loss": zero_one_loss}}, "'zero_one_loss'"),
        ({"net": {"width": 3}}, "another network"),
    ],
)
def test_fit_refuses_a_checkpoint_of_another_run(finished, tiny_net, tiny_data, tiny_config, path, changes, named):
    net, config = tiny_net(**changes.get("net", {})), tiny_config(**{"epochs": 1, **changes.get("config", {})})
    with unchanged(net, path=path), pytest.raises(ValueError, match=named):
        fit(net, tiny_data, config, checkpoint=path, progress=False, **changes.get("fit", {}))


@pytest.mark.parametrize("kind", ["units.0.0.weight", "units.0.1.running_mean", "exits.8.linear.bias"])
def test_fit_refuses_a_checkpoint_of_exits_on_another_network(tiny_net, tiny_data, tiny_config, path, kind):
    fit(tiny_net(), tiny_data, tiny_config(**EARLY), checkpoint=path, progress=False)
    net = tiny_net()
    net.state_dict()[kind].view(-1)[0] += 1e-3
    with unchanged(net, path=path), pytest.raises(ValueError, match=f"{kind} differs"):
        fit(net, tiny_data, tiny_config(**EARLY), checkpoint=path, progress=False)
