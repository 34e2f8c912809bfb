import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from eeutils.analysis.policies import ThresholdPolicy
from eeutils.analysis.predictions import predict
from eeutils.cascade import Cascade
from eeutils.data import ImageData, Normalization, Split
from eeutils.models import MultiExitNet
from eeutils.models.contracts import check_answers, check_exits, check_units, checked_answers, left_alone, reading
from eeutils.training import TrainConfig, fit


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel])
def test_check_exits_points_to_the_wrapped_network(net, wrap):
    assert check_exits(net) is net
    with pytest.raises(TypeError, match=rf"{wrap.__name__} .*net\.module"):
        check_exits(wrap(net))
    with pytest.raises(TypeError, match="ReLU"):
        check_exits(nn.ReLU())


def test_check_units_takes_different_ones_of_those_allowed():
    check_units("after", (), range(2))
    check_units("after", (1, 0), range(2))
    for after in (1, (1, 0, 1), (-1,), (2,)):
        with pytest.raises(ValueError, match=r"^after .*0\.\.1"):
            check_units("after", after, range(2))


def test_checked_answers_are_those_of_the_network(net, images):
    torch.testing.assert_close(checked_answers(net, images), net(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    "answers",
    [
        [torch.zeros(2, 3), torch.zeros(2, 4)],
        [torch.zeros(3, 3)],
        [torch.zeros(2, 1)],
        [torch.zeros(2)],
        [torch.zeros(2, 3), None],
    ],
    ids=["other classes", "other images", "one class", "no classes", "no tensor"],
)
def test_check_answers_refuses_other_than_logits(answers):
    check_answers([torch.zeros(2, 3), torch.ones(2, 3)], 2)
    with pytest.raises(ValueError, match="logits"):
        check_answers(answers, 2)


def test_reading_names_the_map_the_part_and_the_cause():
    features = {"map": torch.zeros(2, 3, 4, 4), "skipped": (torch.zeros(2, 5), None)}
    message = r"'map': \(3, 4, 4\).*\(5,\), None.* unit 7 \(ReLU\): 'lost'$"
    with pytest.raises(ValueError, match=message) as caught, reading(features, "unit 7", nn.ReLU()):
        raise KeyError("lost")
    assert isinstance(caught.value.__cause__, KeyError)


def test_left_alone_lets_the_last_exit_alone_write():
    def halved(features: tuple[Tensor, Tensor], unit: int) -> None:
        with left_alone(features, unit, num_units=3):
            features[1].mul_(0.5)

    halved((torch.ones(2), torch.ones(2)), unit=2)
    with pytest.raises(ValueError, match="exit after unit 1"):
        halved((torch.ones(2), torch.ones(2)), unit=1)


def run_fit(net: MultiExitNet, split: Split) -> None:
    fit(net, ImageData("own", split, split, split), TrainConfig(epochs=1), progress=False)


def test_device_and_dtype_need_the_weights_of_lazy_layers():
    pixels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    split = Split(pixels, torch.arange(20) % 10, tuple("0123456789"), Normalization((0.5,) * 3, (0.25,) * 3))
    heads = {unit: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)) for unit in (0, 1)}
    net = MultiExitNet([nn.Conv2d(3, 4, 3), nn.ReLU()], heads)
    for ask in (predict, run_fit, lambda net, split: Cascade(net, ThresholdPolicy(0.5))):
        with pytest.raises(ValueError, match="lazy"):
            ask(net, split)
    net(next(split.batches(2))[0])
    assert Cascade(net, ThresholdPolicy(0.0)).run(split).exit_index.tolist() == [0] * 20
