"""Goals and how far the networks are, on tables written out by hand."""

import math

import torch

from eeutils.analysis.predictions import Predictions
from eeutils.scoreboard import Evaluation
from tools.goals import GOALS, Goal, at_exit, goals_board, within_macs, within_share
from tools.train_missing import plan

LABELS = [0, 1, 2, 0]
PFLOP = {"net": 0.5, "one": 0.5, "two": 2.0}


def table(answers: list[list[int]], costs: tuple[float, ...] = (1e6, 2e6)) -> Predictions:
    """Exits that name `answers`, all equally sure."""
    logits = 4.0 * torch.nn.functional.one_hot(torch.tensor(answers), 3).float()
    return Predictions(logits, torch.tensor(LABELS), torch.tensor(costs, dtype=torch.float64))


def with_right(first: int, last: int, costs: tuple[float, ...] = (1e6, 2e6)) -> Predictions:
    """Two exits that are right on so many of the four images."""

    def answers(right: int) -> list[int]:
        return [label if index < right else (label + 1) % 3 for index, label in enumerate(LABELS)]

    return table([answers(first), answers(last)], costs)


def both(predictions: Predictions) -> Evaluation:
    return Evaluation(predictions, predictions)


def test_at_exit_takes_test_accuracy_and_cost():
    evaluation = Evaluation(val=with_right(4, 4), test=with_right(1, 3))

    board = goals_board({"net": evaluation}, PFLOP, (Goal("first", 90.0, ("net",), at_exit(0, 0.25)),))

    assert board.loc["first"].to_dict() == {
        "wanted (%)": 90.0,
        "reached (%)": 25.0,
        "for at most (M)": 0.5,
        "spent (M)": 1.0,
        "training (PFLOP)": 0.5,
        "by": "net",
    }


def test_within_share_needs_the_first_exits_cost():
    evaluation = both(with_right(2, 4))

    assert within_share(0.4)(evaluation) is None
    assert within_share(0.5)(evaluation).accuracy == 0.5
    assert within_share(1.0)(evaluation).accuracy == 1.0
    assert within_macs(0.9e6)(evaluation) is None
    assert within_macs(1e6)(evaluation).cost == 1e6
    assert within_macs(9e6)(evaluation).accuracy == 1.0


def test_within_share_chooses_on_validation():
    reached = within_share(0.5)(Evaluation(val=with_right(2, 4), test=with_right(1, 3)))

    assert (reached.validation, reached.accuracy, reached.cost, reached.allowed) == (0.5, 0.25, 1e6, 1e6)


def test_goals_board_needs_every_seed():
    networks = {"net": both(with_right(1, 4)), "net-s1": both(with_right(1, 4, costs=(1.5e6, 2e6)))}

    row = goals_board(networks, PFLOP, (Goal("half", 95.0, ("net",), within_share(0.5)),)).loc["half"]

    assert (row["by"], math.isnan(row["reached (%)"])) == ("out of reach", True)


def test_goals_board_takes_the_best_on_validation():
    networks = {
        "one": Evaluation(val=with_right(1, 3), test=with_right(1, 4)),
        "two": Evaluation(val=with_right(1, 4), test=with_right(1, 2)),
    }

    row = goals_board(networks, PFLOP, (Goal("last", 95.0, ("one", "two"), at_exit(-1)),)).loc["last"]

    assert (row["by"], row["reached (%)"]) == ("two", 50.0)


def test_goals_board_compares_networks_of_little_training():
    networks = {"one": both(with_right(1, 2)), "two": both(with_right(1, 4))}
    goals = [Goal(f"last {pflop}", 95.0, ("one", "two"), at_exit(-1), pflop) for pflop in (0.1, 0.5, 2.0)]

    board = goals_board(networks, PFLOP, tuple(goals))

    assert list(board["by"]) == ["out of reach", "one", "two"]
    assert board["training (PFLOP)"].tolist()[1:] == [0.5, 2.0]


def test_goals_board_averages_seeds():
    networks = {"net": both(with_right(0, 4)), "net-s1": both(with_right(0, 2))}

    row = goals_board(networks, PFLOP, (Goal("last", 95.0, ("net",), at_exit(-1)),)).loc["last"]

    assert (row["by"], row["reached (%)"]) == ("net, 2 seeds", 75.0)


def test_goals_board_leaves_unreached_goals_empty():
    goals = (Goal("untrained", 95.0, ("other",), at_exit(-1)), Goal("too cheap", 95.0, ("net",), within_share(0.1)))

    board = goals_board({"net": both(with_right(1, 4))}, PFLOP, goals)

    assert board["reached (%)"].map(math.isnan).all()
    assert list(board["wanted (%)"]) == [95.0, 95.0]
    assert list(board["by"]) == ["not trained", "out of reach"]


def test_goals_are_for_planned_networks():
    planned = {run.name for run in plan()}

    assert {name for goal in GOALS for name in goal.networks} <= planned
    assert len({goal.what for goal in GOALS}) == len(GOALS)
