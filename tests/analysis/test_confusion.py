import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from eeutils import Predictions
from eeutils.analysis import Standardization, auroc_draws, confusion_scores, doubt, error_indicator, indicator_table
from tests.analysis.tables import from_probs


def test_confusion_scores_and_doubt_by_hand():
    predictions = from_probs([[[0.9, 0.1], [0.7, 0.3]], [[0.6, 0.4], [0.7, 0.3]], [[0.5, 0.5], [0.7, 0.3]]])
    assert confusion_scores(predictions).tolist() == pytest.approx([0.8 + 0.2, 0], abs=1e-6)
    assert doubt(predictions).tolist() == pytest.approx([0.5, 0.3], abs=1e-6)
    opposed = from_probs([[[1 - 1e-12, 1e-12]], [[1 - 1e-12, 1e-12]], [[1e-12, 1 - 1e-12]]])
    assert confusion_scores(opposed).item() == pytest.approx(4)


def test_doubt_orders_answers_that_are_certain_in_single_precision():
    logits = torch.tensor([[[20.0, 0.0], [25.0, 0.0], [30.0, 0.0]]])
    predictions = Predictions(logits, torch.zeros(3, dtype=torch.int64), torch.ones(1).double())
    assert predictions.confidence.unique().numel() < 3  # otherwise this shows little
    assert (doubt(predictions).diff() < 0).all()


def test_standardization_by_hand():
    train, test = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([4.0, 4 + 2 * math.sqrt(5)])
    standardize = Standardization.of(train)
    assert (standardize.mean, standardize.std) == (4, pytest.approx(math.sqrt(5)))
    assert standardize(test).tolist() == pytest.approx([0, 2])
    for scores in ([2.0, 2.0], [2.0], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match=r"mean|std"):
            Standardization.of(torch.tensor(scores))


SUSPICION = torch.tensor([0.0, 0.1, 0.2, 0.2, 0.8, 1.0], dtype=torch.float64)
WRONG = torch.tensor([False, False, True, False, False, True])


def test_error_indicator_by_hand():
    indicator = error_indicator(SUSPICION, WRONG, bins=2)
    assert indicator.edges.tolist() == [0, 0.5, 1]
    assert indicator.right.tolist() == [3, 1]
    assert indicator.wrong.tolist() == [1, 1]
    assert indicator.overlap == 2
    assert indicator.overlap_of_shares == pytest.approx(1 / 2 + 1 / 4)  # 3/4 and 1/4 of the right, 1/2 and 1/2 wrong
    assert indicator.suspected_right == 1  # 0.8 lies above (0.2 + 1.0) / 2
    assert indicator.trusted_wrong == 1  # 0.2 lies below (0.0 + 0.1 + 0.2 + 0.8) / 4
    assert indicator.split_errors == 1  # suspect the last one only
    assert indicator.auroc == pytest.approx((2.5 + 4) / 8)
    assert indicator.coverage.tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    risk = [0, 0, 0.5 / 3, 1 / 4, 1 / 5, 2 / 6]  # of the two equally suspect ones either may come first
    best = [0, 0, 0, 0, 1 / 5, 2 / 6]
    assert indicator.risk.tolist() == pytest.approx(risk)
    assert indicator.aurc == pytest.approx(sum(risk) / 6)
    assert indicator.best_risk.tolist() == pytest.approx(best)
    assert indicator.excess_aurc == pytest.approx((sum(risk) - sum(best)) / 6)


def test_indicator_table_by_hand():
    suspicion = torch.tensor([0.0, 0.1, 0.2, 0.7, 0.8, 1.0])  # wrong ones 0.6 on average, right ones 0.4
    row = indicator_table({"confusion": error_indicator(suspicion, WRONG, bins=2)}).loc["confusion"]
    counts = ["overlap", "suspected right", "trusted wrong", "best split's errors"]
    assert row[counts].tolist() == [2, 2, 1, 1]
    figures = [6 / 8, 1, (1 / 3 + 1 / 4 + 1 / 5 + 2 / 6) / 6, (1 / 3 + 1 / 4) / 6]
    assert row[["AUROC", "overlap of shares", "AURC", "excess AURC"]].tolist() == pytest.approx(figures)


answers = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=25)


def as_tensors(pairs: list[tuple[int, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    suspicion, wrong = zip(*pairs, strict=True)
    assume(0 < sum(wrong) < len(wrong))
    return torch.tensor(suspicion, dtype=torch.float64), torch.tensor(wrong)


@given(pairs=answers)
def test_error_indicator_agrees_with_all_pairs_and_all_thresholds(pairs):
    suspicion, wrong = as_tensors(pairs)
    indicator = error_indicator(suspicion, wrong)
    sides = [(suspicion[i] - suspicion[j]).sign() for i in wrong.nonzero() for j in (~wrong).nonzero()]
    assert indicator.auroc == pytest.approx(float(torch.cat(sides).add(1).div(2).mean()))
    assert indicator.suspected_right == sum(value > suspicion[wrong].mean() for value in suspicion[~wrong])
    assert indicator.trusted_wrong == sum(value < suspicion[~wrong].mean() for value in suspicion[wrong])
    assert indicator.split_errors == min(int(((suspicion >= cut) != wrong).sum()) for cut in range(10))
    assert indicator.risk[-1].item() == pytest.approx(float(wrong.double().mean()))
    assert int(indicator.right.sum()) == int((~wrong).sum())
    assert int(indicator.wrong.sum()) == int(wrong.sum())
    assert (indicator.risk >= indicator.best_risk - 1e-12).all()
    told_apart = wrong.double() + torch.linspace(0, 0.5, len(wrong))  # no ties, so the order is the best possible
    assert error_indicator(told_apart, wrong).excess_aurc == pytest.approx(0, abs=1e-12)


def test_error_indicator_of_equal_suspicion_says_nothing():
    indicator = error_indicator(torch.ones(4), torch.tensor([True, False, False, False]))
    assert indicator.auroc == 0.5
    assert indicator.risk.tolist() == [0.25] * 4
    assert indicator.overlap == indicator.split_errors == indicator.overlap_of_shares == 1
    assert indicator.suspected_right == indicator.trusted_wrong == 0  # nothing lies above or below the mean


@pytest.mark.parametrize("wrong", [WRONG[1:], WRONG.long(), torch.zeros_like(WRONG), torch.ones_like(WRONG)])
def test_error_indicator_refuses_what_cannot_be_compared(wrong):
    for judge in (error_indicator, auroc_draws):
        with pytest.raises(ValueError, match="wrong"):
            judge(SUSPICION, wrong)


@given(pairs=answers, seed=st.integers(0, 99))
def test_auroc_draws_agree_with_the_auroc_of_the_images_drawn(pairs, seed):
    suspicion, wrong = as_tensors(pairs)
    drawn = auroc_draws(suspicion, wrong, draws=8, seed=seed)
    picks = torch.randint(len(wrong), (8, len(wrong)), generator=torch.Generator().manual_seed(seed))
    for value, pick in zip(drawn.tolist(), picks, strict=True):
        if 0 < int(wrong[pick].sum()) < len(pick):
            assert value == pytest.approx(error_indicator(suspicion[pick], wrong[pick]).auroc)
        else:
            assert math.isnan(value)
