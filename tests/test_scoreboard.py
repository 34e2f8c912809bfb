"""The scoreboard of networks, on tables written out by hand."""

import math

import pandas as pd
import pytest
import torch

from eeutils.analysis.predictions import Predictions
from eeutils.scoreboard import Evaluation, over_seeds, scoreboard, shallow_deep_board
from tools.results import headline_board
from tools.tables import frame_as_markdown


def table(answers: list[list[int]], labels: list[int], sure: float, costs: list[float]) -> Predictions:
    """Exits that name `answers`, all with logit `sure` against 0."""
    logits = sure * torch.nn.functional.one_hot(torch.tensor(answers), 3).float()
    return Predictions(logits, torch.tensor(labels), torch.tensor(costs, dtype=torch.float64))


def test_a_network_with_one_exit_has_an_accuracy_and_a_cost_and_nothing_else():
    only = table([[0, 1, 2, 0]], [0, 1, 2, 2], sure=3.0, costs=[2e6])

    row = scoreboard({"plain": Evaluation(only, only)}).loc["plain"]

    assert row.to_dict() == {"last exit": 75.0, "MACs (M)": 2.0}


def test_exits_ensembles_and_cascade_of_a_network_with_two():
    # The first exit is as good as the last on validation, so the cascade leaves there for half of the cost.
    val = table([[0, 1, 2], [0, 1, 2]], [0, 1, 2], sure=4.0, costs=[1e6, 2e6])
    test = table([[0, 1, 0, 0], [0, 1, 2, 0]], [0, 1, 2, 2], sure=4.0, costs=[1e6, 2e6])

    row = scoreboard({"two": Evaluation(val, test)}).loc["two"]

    assert (row["exit 1"], row["last exit"]) == (50.0, 75.0)
    assert (row["cascade"], row["cascade cost (%)"], row["MACs (M)"]) == (50.0, 50.0, 2.0)


def giving(first: list[float], last: list[float]) -> Predictions:
    """Two exits that give so much to the right one of two classes."""
    probs = torch.tensor([first, last], dtype=torch.float64)
    labels = torch.zeros(len(first), dtype=torch.int64)
    return Predictions(torch.stack([probs, 1 - probs], -1).log().float(), labels, torch.tensor([1e6, 2e6]).double())


def test_ensembles_and_cascade_by_hand():
    # On validation the first exit is right where it is surest. The labels are most likely with weights 0.24 and 0.76:
    # the derivative of log(0.05 + 0.9 w) + 3 log(0.9 - 0.8 w) is zero at w = 0.69 / 2.88.
    val = giving([0.95, 0.1, 0.1, 0.1], [0.05, 0.9, 0.9, 0.9])
    first = [0.97, 0.3, 0.1, 0.9, 0.2, 0.6, 0.03, 0.2]  # right on 1, 4, 6; the first and the seventh leave here
    last = [0.4, 0.6, 0.8, 0.9, 0.9, 0.45, 0.7, 0.3]  # right on 2, 3, 4, 5, 7
    # Half and half are right on 1, 4, 5, 6; 0.24 and 0.76 on 1, 2, 3, 4, 5, 7; the cascade on 1, 2, 3, 4, 5.

    row = scoreboard({"two": Evaluation(val, giving(first, last))}).loc["two"]

    assert row.to_dict() == {
        "exit 1": 37.5,
        "last exit": 62.5,
        "mean ensemble": 50.0,
        "weighted ensemble": 75.0,
        "at 50%": 37.5,  # what always leaving costs
        "cascade": 62.5,
        "cascade cost (%)": (2 * 1 + 6 * 2) / (8 * 2) * 100,
        "MACs (M)": 2.0,
    }


def test_columns_keep_their_order_whatever_the_networks():
    one = table([[0, 1, 2]], [0, 1, 2], sure=1.0, costs=[1.0])
    three = table([[0, 1, 2]] * 3, [0, 1, 2], sure=1.0, costs=[1.0, 2.0, 3.0])

    columns = list(scoreboard({"one": Evaluation(one, one), "three": Evaluation(three, three)}))

    assert columns == [
        "exit 1",
        "exit 2",
        "last exit",
        "mean ensemble",
        "weighted ensemble",
        "at 50%",
        "cascade",
        "cascade cost (%)",
        "MACs (M)",
    ]


def test_thresholds_come_from_validation_alone():
    val = table([[0, 1, 2], [0, 1, 2]], [0, 1, 2], sure=4.0, costs=[1.0, 2.0])
    wrong_on_test = table([[1, 2, 0], [0, 1, 2]], [0, 1, 2], sure=4.0, costs=[1.0, 2.0])

    row = scoreboard({"two": Evaluation(val, wrong_on_test)}).loc["two"]

    assert row["cascade"] == pytest.approx(0.0), "validation says leave first, and test must not be asked"


def test_a_network_with_many_exits_is_measured_within_budgets_and_for_overthinking():
    """The first exit costs 40 %; the last has two images wrong, of which the second has one right."""
    answers = [[0, 1, 0, 0, 0], [0, 1, 2, 0, 0], [0, 1, 1, 0, 1]]
    test = table(answers, [0, 1, 2, 0, 2], sure=4.0, costs=[2e6, 4e6, 5e6])
    val = table([[0, 1, 2]] * 3, [0, 1, 2], sure=4.0, costs=[2e6, 4e6, 5e6])

    row = shallow_deep_board({"net": Evaluation(val, test)}).loc["net"]

    assert math.isnan(row["at 25%"]), "not even the first exit is that cheap"
    assert (row["at 50%"], row["at 75%"], row["last exit"]) == (60.0, 60.0, 60.0)
    assert (row["cascade"], row["cascade cost (%)"], row["MACs (M)"]) == (60.0, pytest.approx(40.0), 5.0)
    assert row["destructive share (%)"] == 50.0
    assert 0.0 <= row["from"] <= 50.0 <= row["to"] <= 100.0


def test_seeds_of_a_network_share_a_row_of_means_and_deviations():
    names = pd.Index(["net-s1", "another", "net", "net-s2"], name="network")
    board = pd.DataFrame(
        {"last exit": [89.0, 70.0, 90.0, 91.0], "cascade": [88.0, float("nan"), 88.0, 88.0]}, index=names
    )

    assert frame_as_markdown(over_seeds(board)).splitlines() == [
        "| network | seeds | last exit | cascade |",
        "| --- | --- | ---: | ---: |",
        "| net | 3 | 90.00 ± 1.00 | 88.00 |",
        "| another | 1 | 70.00 |  |",
    ]


def board_of(rows: dict[str, dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("network")


def test_the_headline_has_its_networks_in_its_order_with_seeds_together():
    slim = "resnet18_3exits-conv+conv+spp-cifar10-w16"
    few = board_of(
        {
            f"{slim}-s1": {"last exit": 88.0, "cascade": 1.0, "at 50%": 87.0, "MACs (M)": 37.5},
            "resnet56-cifar10": {"last exit": 91.58, "MACs (M)": 125.5},  # not of the headline
            "resnet18-avg-cifar10-w16": {"last exit": 89.1, "MACs (M)": 35.05},
            slim: {"last exit": 90.0, "cascade": 2.0, "at 50%": 87.0, "MACs (M)": 37.5},
        }
    )
    many = board_of({"mobilenet_sdn-mixed-cifar10": {"at 25%": 83.0, "at 50%": 89.08, "last exit": 89, "MACs (M)": 47}})

    assert frame_as_markdown(headline_board([few, many.astype(float)])).splitlines() == [
        "| network | million multiply-adds | all images to the end | half of the cost |",
        "| --- | ---: | ---: | ---: |",
        "| ResNet18, width 16, no early exits | 35.05 | 89.10 |  |",
        "| ResNet18, width 16, 3 exits (2 seeds) | 37.50 | 89.00 ± 1.41 | 87.00 |",
        "| MobileNet, Shallow-Deep, 7 exits | 47.00 | 89.00 | 89.08 |",
    ]


def test_a_headline_of_other_networks_has_no_rows():
    board = headline_board([board_of({"resnet56-cifar10": {"last exit": 91.58, "MACs (M)": 125.5}})])

    assert list(board.index) == []
    assert list(board) == ["million multiply-adds", "all images to the end", "half of the cost"]
