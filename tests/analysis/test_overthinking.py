import math

import pytest
import torch
from hypothesis import given

from eeutils import Predictions
from eeutils.analysis import (
    attack_success,
    destructive,
    first_correct,
    first_correct_at,
    only_correct_at,
    overthinking_table,
    wasteful,
)
from tests.analysis.tables import from_probs, tables


def predicting(predicted: list, sure: list, labels: list[int], costs: list[float], num_classes: int) -> Predictions:
    """Exits that give `predicted` (E, N) the probability `sure` (E, N), the other classes sharing the rest."""
    predicted, sure = torch.tensor(predicted), torch.tensor(sure, dtype=torch.float64)
    others = ((1 - sure) / (num_classes - 1))[..., None].expand(-1, -1, num_classes)
    return from_probs(others.scatter(2, predicted[..., None], sure[..., None]).tolist(), labels, costs)


@pytest.fixture
def table() -> Predictions:
    """Three exits, four classes, six images: right at all exits, from exit 2 on, 1 only, 2 only, 3 only, nowhere."""
    predicted = [[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 2, 0]]
    sure = [[0.9, 0.6, 0.7, 0.8, 0.5, 0.4], [0.95, 0.8, 0.6, 0.9, 0.5, 0.6], [0.99, 0.9, 0.55, 0.65, 0.7, 0.5]]
    return predicting(predicted, sure, [0, 0, 1, 1, 2, 2], [1, 2, 4], num_classes=4)


def test_wasteful_tables_by_hand(table):
    rows = wasteful(table).table()
    assert rows.index.tolist() == [1, 2, 3]
    assert rows["relative cost"].tolist() == [0.25, 0.5, 1]
    counts = rows[["correct", "cumulative correct", "unique correct"]].to_numpy().tolist()
    assert counts == [[2, 2, 2], [3, 4, 2], [3, 5, 1]]
    rows = wasteful(table).class_table(["cat", "dog", "owl", "yak"])
    assert rows.index.tolist() == ["cat", "dog", "owl", "yak"]
    assert rows["images"].tolist() == [2, 2, 2, 0]
    assert rows["never correct"].tolist() == [0, 0, 1, 0]
    assert rows["relative cost"].tolist() == pytest.approx([1.5 / 4, 1.5 / 4, 1, math.nan], nan_ok=True)


def test_destructive_by_hand(table):
    effect = destructive(table)
    assert effect.images.tolist() == [3, 2]
    assert effect.exit_index.tolist() == [1, 0]
    assert effect.confidence.tolist() == pytest.approx([0.9, 0.7])
    assert effect.last_confidence.tolist() == pytest.approx([0.65, 0.55])
    assert effect.num_wrong == 3
    assert effect.share == pytest.approx(2 / 3)


def test_destructive_tables_by_hand(table):
    rows = destructive(table).table()
    assert rows.index.tolist() == [1, 2]
    assert rows[["correct", "cumulative correct", "unique correct"]].to_numpy().tolist() == [[1, 1, 1], [1, 2, 1]]
    assert rows["mean confidence"].tolist() == pytest.approx([0.7, 0.9])
    rows = destructive(table).class_table()
    assert rows.index.tolist() == [0, 1, 2, 3]
    assert rows["wrong at last"].tolist() == [0, 2, 1, 0]
    assert rows["destroyed"].tolist() == [0, 2, 0, 0]
    for column in ("share", "low", "high"):  # if all mistakes are destructive, or none, the interval is one point
        assert rows[column].tolist() == pytest.approx([math.nan, 1, 0, math.nan], nan_ok=True)


def test_destructive_without_mistakes_is_nan():
    effect = destructive(predicting([[0], [1]], [[0.9], [0.9]], [1], [1, 2], num_classes=2))
    assert len(effect.images) == 0
    assert all(map(math.isnan, (effect.share, *effect.share_interval(), effect.table()["mean confidence"].iloc[0])))


@given(predictions=tables(max_exits=5, max_images=20))
def test_wasteful_and_destructive_agree_with_a_loop_over_images(predictions):
    right = predictions.correct.T.tolist()
    last = predictions.num_exits - 1
    firsts = [answers.index(True) if True in answers else last + 1 for answers in right]
    assert first_correct(predictions).tolist() == firsts
    spared, destroyed = wasteful(predictions), destructive(predictions)
    costs = [float(predictions.costs[min(first, last)]) for first in firsts]
    assert spared.mean_cost == pytest.approx(sum(costs) / len(costs))
    assert spared.best_accuracy == pytest.approx(sum(map(any, right)) / len(right))
    assert spared.unique.tolist() == [firsts.count(index) for index in range(last + 1)]
    lost = [image for image, answers in enumerate(right) if any(answers) and not answers[-1]]
    assert sorted(destroyed.images.tolist()) == lost
    assert (destroyed.confidence.diff() <= 0).all()
    for index in range(last + 1):
        assert sorted(first_correct_at(predictions, index).tolist()) == [i for i, f in enumerate(firsts) if f == index]
        alone = [image for image, answers in enumerate(right) if answers[index] and sum(answers) == 1]
        assert sorted(only_correct_at(predictions, index).tolist()) == alone
    assert int(spared.cumulative[-1] - spared.correct[-1]) == len(lost) == int(destroyed.class_destroyed.sum())
    weights, by_class = spared.newly_correct.sum(0).numpy(), spared.class_table()["relative cost"].fillna(0).to_numpy()
    assert (weights * by_class).sum() / weights.sum() == pytest.approx(spared.relative_cost)


def test_share_interval_agrees_with_drawing_images():
    # Of 42 images of class 0, both exits get 30 right, and the first one gets seven more.
    answers = [[0] * 37 + [1] * 5, [0] * 30 + [1] * 12]
    effect = destructive(predicting(answers, [[0.9] * 42] * 2, [0] * 42, [1, 2], num_classes=2))
    kinds = torch.tensor([0] * 30 + [1] * 7 + [2] * 5)
    drawn = kinds[torch.randint(42, (4000, 42), generator=torch.Generator().manual_seed(0))]
    shares = (drawn == 1).sum(1).double() / (drawn > 0).sum(1)
    expected = shares.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert effect.share_interval(draws=4000) == pytest.approx(expected, abs=0.03)
    assert tuple(effect.class_table().loc[0, ["low", "high"]]) == effect.share_interval()
    assert effect.class_table().loc[1, ["low", "high"]].isna().all()


def test_overthinking_table_by_hand(table):
    first_alone = Predictions(table.logits[:1], table.labels, table.costs[:1])
    rows = overthinking_table({"three": table, "one": first_alone})
    assert rows.index.tolist() == ["three", "one"]
    assert rows["right at last exit"].tolist() == pytest.approx([3 / 6, 2 / 6])
    assert rows["right at some exit"].tolist() == pytest.approx([5 / 6, 2 / 6])
    assert rows["cost of the first right exit"].tolist() == pytest.approx([14 / 24, 1])
    assert rows["destructive share"].tolist() == pytest.approx([2 / 3, 0])
    assert rows.loc["three", ["destructive share, from", "to"]].tolist() == list(destructive(table).share_interval())


def test_attack_success_by_hand(table):
    assert attack_success(table, 0).tolist() == [0.75, 0.75, 0.75]
    assert attack_success(table, 1).tolist() == [0.25, 0, 0]
    assert attack_success(table, 3).tolist() == [0, 0, 0]
    assert attack_success(table.take(table.labels == 0), 0).isnan().all()
    for target in (-1, 4):
        with pytest.raises(ValueError, match=rf"0\.\.3, got {target}"):
            attack_success(table, target)
