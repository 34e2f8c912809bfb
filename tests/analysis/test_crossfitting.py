"""Thresholds chosen by cross-fitting: what is promised is kept on images that had no part in the choice."""

import math

import pytest
import torch

from eeutils.analysis.crossfitting import choose_cross_fitted
from eeutils.analysis.policies import decide
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import choose_for_accuracy


def drawn(num_images: int, seed: int, num_exits: int = 6) -> Predictions:
    """A network whose exits get better with depth; each is surer where it is right, but not by much."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (num_images,), generator=generator)
    noise = torch.randn(num_exits, num_images, 4, generator=generator)
    logits = torch.linspace(2, 3, num_exits)[:, None, None] * torch.eye(4)[labels] + noise
    return Predictions(logits, labels, torch.arange(1, num_exits + 1, dtype=torch.float64))


def drop_on(new: Predictions, choice) -> float:
    return float(new.correct[-1].double().mean()) - decide(new, choice.policy).accuracy


def test_on_new_images_no_more_is_lost_than_allowed_where_the_plain_choice_loses_more():
    new = drawn(5000, 1000)
    on_average = {}
    for choose in (choose_cross_fitted, choose_for_accuracy):
        drops = [drop_on(new, choose(drawn(200, seed), 0.02)) for seed in range(8)]
        on_average[choose] = sum(drops) / len(drops)

    assert on_average[choose_cross_fitted] < 0.02
    assert on_average[choose_for_accuracy] > 0.024, "if it did not flatter itself, there would be nothing to mend"


def test_what_is_promised_is_what_comes_out_elsewhere_on_average():
    new = drawn(5000, 1000, num_exits=3)
    promised, came_out = [], []
    for seed in range(10):
        choice = choose_cross_fitted(drawn(200, seed, num_exits=3), 0.02)
        outcome = decide(new, choice.policy)
        promised.append((choice.accuracy, choice.relative_cost))
        came_out.append((outcome.accuracy, outcome.relative_cost))

    difference = torch.tensor(promised).mean(0) - torch.tensor(came_out).mean(0)
    assert difference.abs().max() < 0.02


def test_a_first_exit_as_good_as_the_last_takes_everybody():
    logits = torch.eye(3)[torch.arange(30) % 3].repeat(2, 1, 1) * 3
    table = Predictions(logits, torch.arange(30) % 3, torch.tensor([1.0, 4.0]).double())

    choice = choose_cross_fitted(table)

    assert (choice.accuracy, choice.relative_cost) == (1.0, 0.25)
    assert (decide(table, choice.policy).exit_index == 0).all()


def test_where_leaving_early_always_costs_too_much_nobody_leaves():
    """Early answers are wrong on a tenth of the images, at random; the last exit knows them all."""
    labels = torch.arange(60) % 3
    early = torch.where(torch.arange(60) % 10 == 7, (labels + 1) % 3, labels)
    logits = torch.stack([5.0 * torch.eye(3)[early], 5.0 * torch.eye(3)[labels]])
    table = Predictions(logits, labels, torch.tensor([1.0, 4.0]).double())

    choice = choose_cross_fitted(table, 0.05)

    assert (decide(table, choice.policy).exit_index == 1).all()
    assert (choice.accuracy, choice.relative_cost) == (1.0, 1.0)


def test_if_no_budget_at_all_keeps_the_promise_nobody_leaves(monkeypatch):
    """A search that overrates the first exit even when the whole cost may be spent."""
    table = drawn(200, 0, num_exits=2)
    always_first = choose_for_accuracy(table, 1.0)
    monkeypatch.setattr("eeutils.analysis.crossfitting.choose_for_budget", lambda *_: always_first)

    choice = choose_cross_fitted(table, 0.0)

    assert choice.policy.thresholds == math.inf
    assert (choice.accuracy, choice.relative_cost) == (float(table.correct[-1].double().mean()), 1.0)


def test_the_same_images_give_the_same_thresholds():
    table = drawn(150, 3, num_exits=3)
    state = torch.random.get_rng_state()

    assert choose_cross_fitted(table, 0.01) == choose_cross_fitted(table, 0.01)
    assert torch.equal(torch.random.get_rng_state(), state), "nobody else's draws are touched"


def test_a_network_with_one_exit_has_nothing_to_choose():
    choice = choose_cross_fitted(drawn(20, 0, num_exits=1))

    assert (choice.policy.thresholds, choice.relative_cost) == ((), 1.0)


@pytest.mark.parametrize("max_drop", [-0.01, 1.5, math.nan])
def test_an_impossible_drop_is_refused(max_drop):
    with pytest.raises(ValueError, match="max_drop is a share"):
        choose_cross_fitted(drawn(20, 0), max_drop)


def test_there_are_no_more_folds_than_images():
    table = drawn(4, 0)

    assert choose_cross_fitted(table, 0.5, folds=5) == choose_cross_fitted(table, 0.5, folds=4)


@pytest.mark.parametrize(("folds", "images"), [(1, 20), (0, 20), (5, 1)])
def test_one_part_or_one_image_is_too_little(folds, images):
    with pytest.raises(ValueError, match=f"got {folds} and {images}"):
        choose_cross_fitted(drawn(images, 0), folds=folds)
