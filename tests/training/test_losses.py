from math import exp, log

import pytest
import torch

from eeutils.training import LossConfig
from eeutils.training.losses import exit_losses, exit_weights

# Two images, two classes, two exits. Probabilities of the first exit: 3/4 and 1/4; of the last: 9/10 and 1/10.
EARLY = torch.tensor([[log(3), 0.0], [log(3), 0.0]])
LAST = torch.tensor([[log(9), 0.0], [log(9), 0.0]])
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("weights", "num_exits", "expected"),
    [
        ("deeper_counts_more", 2, (0.3, 0.7)),
        ("deeper_counts_more", 4, (0.1, 0.2, 0.3, 0.4)),
        ("deeper_mean_one", 5, (1 / 3, 2 / 3, 1, 4 / 3, 5 / 3)),
        ("equal", 4, (0.25, 0.25, 0.25, 0.25)),
        ((1, 0, 2), 3, (1, 0, 2)),
    ],
)
def test_exit_weights_by_hand(weights, num_exits, expected):
    assert exit_weights(weights, num_exits) == pytest.approx(expected)


def test_exit_weights_of_the_ramp_by_hand():
    assert exit_weights("sdn", 7, 0.0) == pytest.approx((0.01,) * 6 + (1,))
    assert exit_weights("sdn", 7, 0.5) == pytest.approx((0.085, 0.16, 0.235, 0.31, 0.385, 0.46, 1))
    # Near the end, shallow exits are at their shares and deep ones not yet.
    assert exit_weights("sdn", 7, 0.95) == pytest.approx((0.15, 0.295, 0.4375, 0.58, 0.7225, 0.865, 1))
    assert exit_weights("sdn", 7, 1.0) == pytest.approx((0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1))


@pytest.mark.parametrize("weights", ["deepest", (0.3, 0.7), (0.5, -0.1, 0.6), (0.0, 0.0, 0.0)])
def test_exit_weights_names_weights_that_do_not_fit(weights):
    with pytest.raises(ValueError, match=r"^weights ") as error:
        exit_weights(weights, 3)
    assert repr(weights) in str(error.value)


def test_exit_losses_with_label_smoothing_by_hand():
    (loss,) = exit_losses([EARLY[:1]], LABELS[:1], LossConfig(label_smoothing=0.2, distillation=0.5))  # from nobody
    assert loss.item() == pytest.approx(-(0.9 * log(3 / 4) + 0.1 * log(1 / 4)))


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1.0), (0.25, 2.0)])
def test_exit_losses_with_distillation_by_hand(share, temperature):
    losses = exit_losses([EARLY, LAST], LABELS, LossConfig(distillation=share, temperature=temperature))
    student, teacher = (1 / (1 + exp(-log(odds) / temperature)) for odds in (3, 9))
    divergence = teacher * log(teacher / student) + (1 - teacher) * log((1 - teacher) / (1 - student))
    hard = -(log(3 / 4) + log(1 / 4)) / 2
    early, last = (1 - share) * hard + share * temperature**2 * divergence, -(log(0.9) + log(0.1)) / 2
    assert losses.tolist() == pytest.approx([early, last], rel=1e-5)


def test_exit_losses_with_distillation_do_not_move_the_last_exit():
    early, last = EARLY.clone().requires_grad_(), LAST.clone().requires_grad_()
    exit_losses([early, last], LABELS, LossConfig(distillation=0.5))[0].backward()
    assert early.grad.abs().sum() > 0
    assert not last.grad.any()
