import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eeutils.analysis.overthinking import (
    attack_success,
    destructive,
    first_correct,
    first_correct_at,
    only_correct_at,
    overthinking_table,
    wasteful,
)
from eeutils.analysis.predictions import Predictions


def naming(named: list, sure: list, labels: list[int], costs: list[float], num_classes: int) -> Predictions:
    """A table whose exits name `named` (E, N) with probability `sure` (E, N), the other classes sharing the rest."""
    named, sure = torch.tensor(named), torch.tensor(sure, dtype=torch.float64)
    others = ((1 - sure) / (num_classes - 1))[..., None].expand(-1, -1, num_classes)
    probs = others.scatter(2, named[..., None], sure[..., None])
    return Predictions(probs.log().float(), torch.tensor(labels), torch.tensor(costs, dtype=torch.float64))


@pytest.fixture
def table() -> Predictions:
    """Three exits, four classes, six images: right at all exits, from exit 2 on, 1 only, 2 only, 3 only, nowhere."""
    return naming(
        [[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 2, 0]],
        [[0.9, 0.6, 0.7, 0.8, 0.5, 0.4], [0.95, 0.8, 0.6, 0.9, 0.5, 0.6], [0.99, 0.9, 0.55, 0.65, 0.7, 0.5]],
        [0, 0, 1, 1, 2, 2],
        [1, 2, 4],
        num_classes=4,
    )


@st.composite
def tables(draw) -> Predictions:
    num_exits, num_images, classes = draw(st.integers(1, 5)), draw(st.integers(1, 20)), draw(st.integers(2, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    logits = torch.randn(num_exits, num_images, classes, generator=generator)
    labels = torch.randint(0, classes, (num_images,), generator=generator)
    return Predictions(logits, labels, torch.rand(num_exits, generator=generator).double().add(0.1).cumsum(0))


def test_the_first_exit_that_is_right(table):
    assert first_correct(table).tolist() == [0, 1, 0, 1, 2, 3]


def test_images_that_an_exit_is_the_first_to_get_right_surest_first(table):
    assert [first_correct_at(table, index).tolist() for index in range(3)] == [[0, 2], [3, 1], [4]]


@given(predictions=tables())
def test_every_image_that_some_exit_gets_right_is_first_right_at_one_exit(predictions):
    firsts = torch.cat([first_correct_at(predictions, index) for index in range(predictions.num_exits)])
    assert sorted(firsts.tolist()) == predictions.correct.any(0).nonzero().flatten().tolist()


def test_images_that_one_exit_alone_gets_right(table):
    assert [only_correct_at(table, index).tolist() for index in range(3)] == [[2], [3], [4]]


@pytest.mark.parametrize("find", [first_correct_at, only_correct_at])
def test_exits_that_are_not_there_are_named(table, find):
    with pytest.raises(ValueError, match="got 3"):
        find(table, 3)


def test_the_wasteful_effect_by_hand(table):
    effect = wasteful(table)
    assert effect.correct.tolist() == [2, 3, 3]
    assert effect.unique.tolist() == [2, 2, 1]
    assert effect.cumulative.tolist() == [2, 4, 5]
    assert effect.num_images == 6
    assert effect.best_accuracy == pytest.approx(5 / 6)
    assert effect.mean_cost == pytest.approx((1 + 2 + 1 + 2 + 4 + 4) / 6)
    assert effect.relative_cost == pytest.approx(14 / 24)


def test_the_wasteful_effect_as_tables(table):
    rows = wasteful(table).table()
    assert rows.index.tolist() == [1, 2, 3]
    assert rows["relative cost"].tolist() == [0.25, 0.5, 1]
    assert rows[["correct", "cumulative correct", "unique correct"]].to_numpy().tolist() == [
        [2, 2, 2],
        [3, 4, 2],
        [3, 5, 1],
    ]
    rows = wasteful(table).class_table(["cat", "dog", "owl", "yak"])
    assert rows.index.tolist() == ["cat", "dog", "owl", "yak"]
    assert rows["images"].tolist() == [2, 2, 2, 0]
    assert rows["never correct"].tolist() == [0, 0, 1, 0]
    assert rows["relative cost"].tolist() == pytest.approx([1.5 / 4, 1.5 / 4, 1, math.nan], nan_ok=True)


def test_the_destructive_effect_by_hand(table):
    effect = destructive(table)
    assert effect.images.tolist() == [3, 2]
    assert effect.exit_index.tolist() == [1, 0]
    assert effect.confidence.tolist() == pytest.approx([0.9, 0.7])
    assert effect.last_confidence.tolist() == pytest.approx([0.65, 0.55])
    assert effect.num_wrong == 3
    assert effect.share == pytest.approx(2 / 3)


def test_the_destructive_effect_as_tables(table):
    rows = destructive(table).table()
    assert rows.index.tolist() == [1, 2]
    assert rows[["correct", "cumulative correct", "unique correct"]].to_numpy().tolist() == [[1, 1, 1], [1, 2, 1]]
    assert rows["mean confidence"].tolist() == pytest.approx([0.7, 0.9])
    rows = destructive(table).class_table()
    assert rows.index.tolist() == [0, 1, 2, 3]
    assert rows["wrong at last"].tolist() == [0, 2, 1, 0]
    assert rows["destroyed"].tolist() == [0, 2, 0, 0]
    for column in ("share", "low", "high"):  # where all mistakes are destroyed, or none, the interval is one point
        assert rows[column].tolist() == pytest.approx([math.nan, 1, 0, math.nan], nan_ok=True)


def test_an_image_that_two_exits_had_right_counts_once_with_the_first_ones_confidence():
    both = naming([[1], [1], [0]], [[0.6], [0.9], [0.8]], [1], [1, 2, 3], num_classes=2)
    effect = destructive(both)
    assert effect.images.tolist() == [0]
    assert effect.confidence.tolist() == pytest.approx([0.6])
    assert effect.table()["correct"].tolist() == [1, 1]
    assert effect.table()["unique correct"].tolist() == [1, 0]


def test_a_network_without_mistakes_destroys_nothing():
    effect = destructive(naming([[0], [1]], [[0.9], [0.9]], [1], [1, 2], num_classes=2))
    assert len(effect.images) == 0
    assert math.isnan(effect.share)
    assert all(map(math.isnan, effect.share_interval()))
    assert math.isnan(effect.table()["mean confidence"].iloc[0])


def test_class_names_have_to_fit(table):
    for effect in (wasteful(table), destructive(table)):
        with pytest.raises(ValueError, match=r"4 classes, got 2 names \['cat', 'dog'\]"):
            effect.class_table(["cat", "dog"])


@settings(max_examples=50)
@given(predictions=tables())
def test_image_by_image_it_is_the_same(predictions):
    right = predictions.correct.T.tolist()  # image by image
    last = predictions.num_exits - 1
    firsts = [answers.index(True) if True in answers else last + 1 for answers in right]
    assert first_correct(predictions).tolist() == firsts
    costs = [float(predictions.costs[min(first, last)]) for first in firsts]
    effect = wasteful(predictions)
    assert effect.mean_cost == pytest.approx(sum(costs) / len(costs))
    assert effect.unique.tolist() == [firsts.count(index) for index in range(last + 1)]
    assert sorted(destructive(predictions).images.tolist()) == [
        image for image, answers in enumerate(right) if any(answers) and not answers[-1]
    ]
    for index in range(last + 1):
        alone = [image for image, answers in enumerate(right) if answers[index] and sum(answers) == 1]
        assert sorted(only_correct_at(predictions, index).tolist()) == alone


@settings(max_examples=50)
@given(predictions=tables())
def test_the_two_effects_add_up(predictions):
    spared, destroyed = wasteful(predictions), destructive(predictions)
    assert int(spared.cumulative[-1] - spared.correct[-1]) == len(destroyed.images)
    assert spared.best_accuracy >= float(predictions.accuracy.max()) - 1e-12
    assert float(spared.costs[0]) - 1e-9 <= spared.mean_cost <= float(spared.costs[-1]) + 1e-9
    assert int(destroyed.class_destroyed.sum()) == len(destroyed.images)
    assert (destroyed.class_destroyed <= destroyed.class_wrong).all()
    assert (destroyed.confidence.diff() <= 0).all()
    weights = spared.newly_correct.sum(0).numpy()
    by_class = spared.class_table()["relative cost"].fillna(0).to_numpy()
    assert (weights * by_class).sum() / weights.sum() == pytest.approx(spared.relative_cost)


def with_mistakes(right: int, destroyed: int, wrong: int) -> Predictions:
    """Two exits and two classes: images right at last, right at first only, wrong at both."""
    first = [0] * right + [0] * destroyed + [1] * wrong
    last = [0] * right + [1] * destroyed + [1] * wrong
    count = right + destroyed + wrong
    return naming([first, last], [[0.9] * count] * 2, [0] * count, [1, 2], num_classes=2)


def test_the_interval_is_about_four_standard_errors_wide():
    effect = destructive(with_mistakes(right=2000, destroyed=240, wrong=160))
    low, high = effect.share_interval()
    error = math.sqrt(0.6 * 0.4 / 400)
    assert low == pytest.approx(0.6 - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(0.6 + 1.96 * error, abs=0.3 * error)
    assert effect.share_interval(seed=1) != (low, high)


def test_the_interval_is_that_of_images_drawn_anew():
    effect = destructive(with_mistakes(right=30, destroyed=7, wrong=5))
    kinds = torch.tensor([0] * 30 + [1] * 7 + [2] * 5)
    drawn = kinds[torch.randint(42, (4000, 42), generator=torch.Generator().manual_seed(0))]
    shares = (drawn == 1).sum(1).double() / (drawn > 0).sum(1)
    expected = shares.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert effect.share_interval(draws=4000) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("destroyed", "wrong", "share"), [(5, 0, 1), (0, 5, 0)])
def test_the_interval_of_a_share_without_doubt_is_one_point(destroyed, wrong, share):
    assert destructive(with_mistakes(50, destroyed, wrong)).share_interval() == (share, share)


def with_mistakes_on_two_classes(destroyed: tuple[int, int], wrong: tuple[int, int], right: int) -> Predictions:
    """Two exits and two classes; of class 0 and class 1 so many destroyed and wrong throughout, and some right."""
    labels, firsts, lasts = [0] * right, [0] * right, [0] * right
    for label in (0, 1):
        count, lost = destroyed[label], wrong[label]
        labels += [label] * (count + lost)
        firsts += [label] * count + [1 - label] * lost
        lasts += [1 - label] * (count + lost)
    return naming([firsts, lasts], [[0.9] * len(labels)] * 2, labels, [1, 2], num_classes=2)


def test_each_class_has_an_interval_of_its_own_mistakes():
    effect = destructive(with_mistakes_on_two_classes(destroyed=(60, 900), wrong=(40, 100), right=3000))
    rows = effect.class_table()
    assert rows["share"].tolist() == pytest.approx([0.6, 0.9])
    for label, (share, count) in enumerate([(0.6, 100), (0.9, 1000)]):
        error = math.sqrt(share * (1 - share) / count)
        assert rows["low"][label] == pytest.approx(share - 1.96 * error, abs=0.4 * error)
        assert rows["high"][label] == pytest.approx(share + 1.96 * error, abs=0.4 * error)


def test_the_only_class_with_mistakes_has_the_interval_of_all():
    effect = destructive(with_mistakes(right=40, destroyed=12, wrong=8))
    assert tuple(effect.class_intervals(seed=3)[0].tolist()) == effect.share_interval(seed=3)
    assert effect.class_intervals()[1].isnan().all()


def test_networks_side_by_side(table):
    first_alone = Predictions(table.logits[:1], table.labels, table.costs[:1])
    rows = overthinking_table({"three": table, "one": first_alone})
    assert rows.index.tolist() == ["three", "one"]
    assert rows["right at last exit"].tolist() == pytest.approx([3 / 6, 2 / 6])
    assert rows["right at some exit"].tolist() == pytest.approx([5 / 6, 2 / 6])
    assert rows["cost of the first right exit"].tolist() == pytest.approx([14 / 24, 1])
    assert rows["destructive share"].tolist() == pytest.approx([2 / 3, 0])
    assert rows.loc["three", ["destructive share, from", "to"]].tolist() == list(destructive(table).share_interval())


def test_an_attack_succeeds_where_other_classes_are_taken_for_its_target(table):
    # Labels 0 0 1 1 2 2; of the four that are not of class 0 the exits take 3, 3 and 3 for it, and so on.
    assert attack_success(table, 0).tolist() == [0.75, 0.75, 0.75]
    assert attack_success(table, 1).tolist() == [0.25, 0, 0]
    assert attack_success(table, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("target", [-1, 4])
def test_the_target_of_an_attack_has_to_be_a_class(table, target):
    with pytest.raises(ValueError, match=rf"target {target} is no class: they are numbered 0\.\.3"):
        attack_success(table, target)


def test_an_attack_needs_images_of_other_classes(table):
    with pytest.raises(ValueError, match="all 2 images are of the target class 0"):
        attack_success(table.take(table.labels == 0), 0)
