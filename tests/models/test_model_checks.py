import pytest
import torch
from torch import Tensor, nn

from eeutils.models import MultiExitNet
from eeutils.models.contracts import (
    check_answers,
    check_early_exits,
    check_exit_index,
    check_exits,
    checked_answers,
    left_alone,
    reading,
)


def test_a_network_has_exits(net):
    check_exits(net)
    with pytest.raises(TypeError, match=r"ReLU has no exits; cut it into units .*MultiExitNet\(units"):
        check_exits(nn.ReLU())


def test_exits_are_counted_from_the_shallowest():
    check_exit_index(0, 3)
    check_exit_index(2, 3)
    for index in (-1, 3):
        with pytest.raises(ValueError, match=rf"exit_index {index} is not in 0\.\.2"):
            check_exit_index(index, 3)


def test_early_exits_follow_any_unit_but_the_last():
    check_early_exits((), 3)
    check_early_exits((1, 0), 3)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (1, r"a sequence, such as \(1,\), got 1"),
        ((1, 0, 1), r"two exits after one unit in \(1, 0, 1\)"),
        ((-1, 0, 2), r"after units \[-1, 2\]: they follow units 0 to 1, and unit 2, the last"),
    ],
)
def test_where_early_exits_cannot_be_is_said(after, message):
    with pytest.raises(ValueError, match=message):
        check_early_exits(after, 3)


def test_answers_that_pass_are_those_of_the_network(net, images):
    torch.testing.assert_close(checked_answers(net, images), net(images), rtol=0, atol=0)


def test_the_exit_that_does_not_answer_logits_is_found():
    net = MultiExitNet([nn.Flatten(), nn.Flatten()], {0: nn.Flatten(), 1: nn.Unflatten(1, (1, 4))})
    with pytest.raises(ValueError, match=r"for 2 images they answer \(2, 1, 4\)$"):
        checked_answers(net, torch.zeros(2, 4))


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
def test_exits_answer_logits_of_the_same_classes(answers):
    check_answers([torch.zeros(2, 3), torch.ones(2, 3)], 2)
    with pytest.raises(ValueError, match=r"exits must answer logits .* for 2 images they answer"):
        check_answers(answers, 2)


def test_what_cannot_read_a_map_is_named_and_the_cause_is_kept():
    features = {"map": torch.zeros(2, 3, 4, 4), "skipped": (torch.zeros(2, 5), None)}
    message = r"^a feature map of shape .*'map': \(3, 4, 4\).*\(5,\), None.* the network's unit 7 \(ReLU\): 'lost'$"
    with pytest.raises(ValueError, match=message) as caught, reading(features, "unit 7", nn.ReLU()):
        raise KeyError("lost")
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("inference", [False, True])
def test_the_last_exit_may_write_into_what_it_reads_and_no_other(inference):
    def halved(features: tuple[Tensor, Tensor], unit: int) -> None:
        with left_alone(features, unit, num_units=3):
            features[1].mul_(0.5)

    with torch.inference_mode(inference):
        features = torch.ones(2), torch.ones(2)
        halved(features, unit=2)
        if inference:  # there tensors do not tell
            halved(features, unit=1)
            return
    with pytest.raises(ValueError, match="exit after unit 1 works in place on the feature map that unit 2 reads"):
        halved(features, unit=1)
