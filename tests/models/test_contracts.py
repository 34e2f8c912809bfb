import pytest
from torch import nn

from eeutils import MultiExitNet, predict
from eeutils.models.contracts import check_exits
from tests.toys import random_split


def test_check_exits_points_to_the_wrapped_network(net):
    assert check_exits(net) is net
    with pytest.raises(TypeError, match=r"DataParallel .*net\.module"):
        check_exits(nn.DataParallel(net))
    with pytest.raises(TypeError, match="ReLU"):
        check_exits(nn.ReLU())


def test_device_and_dtype_need_the_weights_of_lazy_layers():
    split = random_split(20)
    heads = {unit: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)) for unit in (0, 1)}
    net = MultiExitNet([nn.Conv2d(3, 4, 3), nn.ReLU()], heads)
    with pytest.raises(ValueError, match="lazy"):
        predict(net, split)
    net(next(split.batches(2))[0])
    assert predict(net, split).num_exits == 2
