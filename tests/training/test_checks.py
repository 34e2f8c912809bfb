import pytest
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eeutils.models import MultiExitNet
from eeutils.training.checks import check_fit
from eeutils.training.compute import trained_part


def test_what_one_of_several_processes_will_see_is_tried(tiny_data, tiny_config):
    """Of a batch of two one process gets a single image, and a norm over a single value has nothing to learn from."""
    units = [nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4))]
    net = MultiExitNet(units, {0: nn.Sequential(nn.Flatten(), nn.Linear(4, 4))})
    check_fit(net, tiny_data, tiny_config(batch_size=2), world_size=1)
    with pytest.raises(ValueError, match=r"cannot be trained on images of shape \(3, 8, 8\), 1 at a time"):
        check_fit(net, tiny_data, tiny_config(batch_size=2), world_size=2)


@pytest.mark.parametrize("kind", ["Split", "DataLoader"])
def test_what_is_no_data_set_is_named_with_what_makes_one(tiny_net, tiny_data, tiny_config, kind):
    split = tiny_data.train
    data = split if kind == "Split" else DataLoader(TensorDataset(split.images, split.labels))
    with pytest.raises(TypeError, match=rf"{kind} is no data set .* an ImageData .*data_from_tensors\(images, labels"):
        check_fit(tiny_net(), data, tiny_config())


@pytest.mark.parametrize("trained", ["all", "exits", "early_exits"])
def test_something_has_to_be_trained(tiny_net, tiny_data, tiny_config, trained):
    net = tiny_net()
    trained_part(net, trained).requires_grad_(False)
    with pytest.raises(ValueError, match=f"trained='{trained}', but all of that is frozen"):
        check_fit(net, tiny_data, tiny_config(trained=trained))
    next(trained_part(net, trained).parameters()).requires_grad_(True)
    check_fit(net, tiny_data, tiny_config(trained=trained))
