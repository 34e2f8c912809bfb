import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eeutils.analysis.confusion import (
    Standardization,
    auroc_draws,
    confusion_scores,
    doubt,
    error_indicator,
    indicator_table,
)
from eeutils.analysis.predictions import Predictions


def from_probs(probs: list) -> Predictions:
    probs = torch.tensor(probs, dtype=torch.float64)
    labels = torch.zeros(probs.shape[1], dtype=torch.int64)
    return Predictions(probs.log().float(), labels, torch.arange(1, len(probs) + 1).double())


def test_confusion_by_hand():
    predictions = from_probs(
        [
            [[0.9, 0.1], [0.7, 0.3]],
            [[0.6, 0.4], [0.7, 0.3]],
            [[0.5, 0.5], [0.7, 0.3]],
        ]
    )
    assert confusion_scores(predictions).tolist() == pytest.approx([0.8 + 0.2, 0], abs=1e-6)
    assert doubt(predictions).tolist() == pytest.approx([0.5, 0.3], abs=1e-6)


@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(2, 5), st.integers(1, 12), st.integers(2, 6)),
    scale=st.floats(0.1, 100),
    seed=st.integers(0, 999),
)
def test_confusion_lies_between_agreement_and_utter_disagreement(shape, scale, seed):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    labels, costs = torch.zeros(shape[1], dtype=torch.int64), torch.arange(1, shape[0] + 1).double()
    scores = confusion_scores(Predictions(logits, labels, costs))
    assert ((scores >= 0) & (scores <= 2 * (shape[0] - 1) + 1e-5)).all()
    agreeing = Predictions(logits[-1:].expand(shape).clone(), labels, costs)
    assert confusion_scores(agreeing).tolist() == [0] * shape[1]
    one_by_one = [
        sum(float((of_exit - probs[-1]).abs().sum()) for of_exit in probs[:-1])
        for probs in logits.double().softmax(-1).transpose(0, 1)
    ]
    assert scores.tolist() == pytest.approx(one_by_one, abs=1e-5)


def test_exits_that_are_sure_of_different_classes_are_as_confused_as_can_be():
    predictions = from_probs([[[1 - 1e-12, 1e-12]], [[1 - 1e-12, 1e-12]], [[1e-12, 1 - 1e-12]]])
    assert confusion_scores(predictions).item() == pytest.approx(4)


def test_one_exit_cannot_be_confused():
    with pytest.raises(ValueError, match="this network has one exit only"):
        confusion_scores(from_probs([[[0.9, 0.1]]]))


def test_doubt_tells_answers_apart_that_are_all_sure_in_single_precision():
    logits = torch.tensor([[[20.0, 0.0], [25.0, 0.0], [30.0, 0.0]]])
    predictions = Predictions(logits, torch.zeros(3, dtype=torch.int64), torch.ones(1).double())
    assert predictions.confidence.unique().numel() < 3  # else this shows little
    assert (doubt(predictions).diff() < 0).all()


def test_standard_deviations_are_those_of_the_training_scores():
    train, test = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([4.0, 4 + 2 * math.sqrt(5)])
    standardize = Standardization.of(train)
    assert (standardize.mean, standardize.std) == (4, pytest.approx(math.sqrt(5)))
    assert standardize(test).tolist() == pytest.approx([0, 2])
    assert standardize(train).mean().item() == pytest.approx(0)
    assert standardize(train).std(correction=0).item() == pytest.approx(1)


@pytest.mark.parametrize("scores", [[2.0, 2.0], [2.0], [1.0, math.nan], [1.0, math.inf]])
def test_scores_that_do_not_differ_have_no_standard_deviation(scores):
    with pytest.raises(ValueError, match="scores that do not differ"):
        Standardization.of(torch.tensor(scores))


SUSPICION = torch.tensor([0.0, 0.1, 0.2, 0.2, 0.8, 1.0], dtype=torch.float64)
WRONG = torch.tensor([False, False, True, False, False, True])


def test_an_indicator_by_hand():
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
    assert indicator.risk.tolist() == pytest.approx(risk)
    assert indicator.aurc == pytest.approx(sum(risk) / 6)


def test_a_perfect_hint_suspects_no_right_answer_and_trusts_no_wrong_one():
    indicator = error_indicator(WRONG.double(), WRONG)
    assert (indicator.suspected_right, indicator.trusted_wrong) == (0, 0)
    contrary = error_indicator((~WRONG).double(), WRONG)
    assert (contrary.suspected_right, contrary.trusted_wrong) == (int((~WRONG).sum()), int(WRONG.sum()))


def test_indicators_side_by_side():
    rows = indicator_table(
        {"confusion": error_indicator(SUSPICION, WRONG, bins=2), "oracle": error_indicator(WRONG.double(), WRONG)}
    )
    assert rows.index.tolist() == ["confusion", "oracle"]
    assert rows["AUROC"].tolist() == pytest.approx([6.5 / 8, 1])
    assert rows["overlap"].tolist() == [2, 0]
    assert rows["overlap of shares"].tolist() == pytest.approx([3 / 4, 0])
    assert rows["suspected right"].tolist() == [1, 0]
    assert rows["trusted wrong"].tolist() == [1, 0]
    assert rows["best split's errors"].tolist() == [1, 0]
    assert rows["AURC"].tolist() == pytest.approx([(0.5 / 3 + 1 / 4 + 1 / 5 + 2 / 6) / 6, (1 / 5 + 2 / 6) / 6])


answers = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=25)


def as_tensors(pairs: list[tuple[int, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    suspicion, wrong = zip(*pairs, strict=True)
    assume(0 < sum(wrong) < len(wrong))
    return torch.tensor(suspicion, dtype=torch.float64), torch.tensor(wrong)


@settings(max_examples=50)
@given(pairs=answers)
def test_an_indicator_is_what_comparing_all_pairs_and_all_thresholds_gives(pairs):
    suspicion, wrong = as_tensors(pairs)
    indicator = error_indicator(suspicion, wrong)
    sides = [(suspicion[i] - suspicion[j]).sign() for i in wrong.nonzero() for j in (~wrong).nonzero()]
    assert indicator.auroc == pytest.approx(float(torch.cat(sides).add(1).div(2).mean()))
    assert indicator.suspected_right == sum(value > suspicion[wrong].mean() for value in suspicion[~wrong])
    assert indicator.trusted_wrong == sum(value < suspicion[~wrong].mean() for value in suspicion[wrong])
    splits = [int(((suspicion >= cut) != wrong).sum()) for cut in range(10)]
    assert indicator.split_errors == min(splits)
    assert indicator.risk[-1].item() == pytest.approx(float(wrong.double().mean()))
    assert int(indicator.right.sum()) == int((~wrong).sum())
    assert int(indicator.wrong.sum()) == int(wrong.sum())
    assert 0 <= indicator.overlap <= min(int(wrong.sum()), int((~wrong).sum()))
    assert 0 <= indicator.overlap_of_shares <= 1 + 1e-6


@settings(max_examples=50)
@given(pairs=answers, seed=st.integers(0, 99))
def test_neither_the_order_of_the_images_nor_the_scale_matters(pairs, seed):
    suspicion, wrong = as_tensors(pairs)
    order = torch.randperm(len(wrong), generator=torch.Generator().manual_seed(seed))
    one, other = error_indicator(suspicion, wrong), error_indicator(suspicion[order] * 4 - 2, wrong[order])
    assert one.auroc == pytest.approx(other.auroc)
    assert one.risk.tolist() == pytest.approx(other.risk.tolist())
    assert (one.split_errors, one.overlap) == (other.split_errors, other.overlap)


def test_the_overlap_of_shares_does_not_grow_with_the_number_of_mistakes():
    few = error_indicator(SUSPICION, WRONG, bins=2)
    more = error_indicator(torch.cat([SUSPICION, SUSPICION[WRONG]]), torch.cat([WRONG, WRONG[WRONG]]), bins=2)
    assert more.overlap > few.overlap
    assert more.overlap_of_shares == pytest.approx(few.overlap_of_shares)


def test_a_suspicion_that_is_the_same_for_all_tells_nothing():
    indicator = error_indicator(torch.ones(4), torch.tensor([True, False, False, False]))
    assert indicator.auroc == 0.5
    assert indicator.risk.tolist() == [0.25] * 4
    assert indicator.overlap == indicator.split_errors == 1
    assert indicator.suspected_right == indicator.trusted_wrong == 0  # nothing lies above or below the mean
    assert indicator.overlap_of_shares == 1


@pytest.mark.parametrize(
    ("suspicion", "wrong", "bins", "message"),
    [
        (SUSPICION, WRONG[1:], 5, r"got \(6,\) and \(5,\) torch.bool"),
        (SUSPICION[None], WRONG[None], 5, r"got \(1, 6\)"),
        (SUSPICION, WRONG.long(), 5, "torch.int64"),
        (SUSPICION / 0, WRONG, 5, "NaN or infinite"),
        (SUSPICION, WRONG, 0, "bins must be 1 or more, got 0"),
        (SUSPICION, torch.zeros_like(WRONG), 5, "of 6 answers 0 are wrong: there is nothing to tell apart"),
        (SUSPICION, torch.ones_like(WRONG), 5, "of 6 answers 6 are wrong"),
    ],
)
def test_what_cannot_be_judged_is_refused(suspicion, wrong, bins, message):
    with pytest.raises(ValueError, match=message):
        error_indicator(suspicion, wrong, bins)


def test_the_best_risk_keeps_all_right_answers_first():
    indicator = error_indicator(SUSPICION, WRONG, bins=2)
    best = [0, 0, 0, 0, 1 / 5, 2 / 6]
    assert indicator.best_risk.tolist() == pytest.approx(best)
    assert indicator.excess_aurc == pytest.approx(indicator.aurc - sum(best) / 6)


@settings(max_examples=50)
@given(pairs=answers)
def test_nothing_beats_the_best_risk_and_the_truth_reaches_it(pairs):
    suspicion, wrong = as_tensors(pairs)
    indicator = error_indicator(suspicion, wrong)
    assert (indicator.risk >= indicator.best_risk - 1e-12).all()
    assert error_indicator(wrong.double(), wrong).excess_aurc <= indicator.excess_aurc + 1e-12
    told_apart = wrong.double() + torch.linspace(0, 0.5, len(wrong))  # no ties, so the order is the best there is
    assert error_indicator(told_apart, wrong).excess_aurc == pytest.approx(0, abs=1e-12)


@settings(max_examples=30)
@given(pairs=answers, seed=st.integers(0, 99))
def test_each_draw_is_the_auroc_of_the_images_drawn(pairs, seed):
    suspicion, wrong = as_tensors(pairs)
    drawn = auroc_draws(suspicion, wrong, draws=8, seed=seed)
    picks = torch.randint(len(wrong), (8, len(wrong)), generator=torch.Generator().manual_seed(seed))
    for value, pick in zip(drawn.tolist(), picks, strict=True):
        if 0 < int(wrong[pick].sum()) < len(pick):
            assert value == pytest.approx(error_indicator(suspicion[pick], wrong[pick]).auroc)
        else:
            assert math.isnan(value)


def test_draws_of_two_indicators_are_of_the_same_images():
    gap = auroc_draws(SUSPICION, WRONG, draws=20) - auroc_draws(SUSPICION * 3 - 1, WRONG, draws=20)
    assert gap.nan_to_num().tolist() == [0] * 20
    reverse = auroc_draws(SUSPICION, WRONG, draws=20) + auroc_draws(-SUSPICION, WRONG, draws=20)
    assert reverse[reverse.isfinite()].tolist() == pytest.approx([1] * int(reverse.isfinite().sum()))


def test_draws_of_answers_that_are_all_right_are_refused():
    with pytest.raises(ValueError, match="there is nothing to tell apart"):
        auroc_draws(SUSPICION, torch.zeros_like(WRONG))
