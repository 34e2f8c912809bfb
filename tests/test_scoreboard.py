import math

import pandas as pd
import pytest

from eeutils.scoreboard import Evaluation, Spread, over_seeds, scoreboard
from tests.analysis.tables import answering, right_with
from tools.tables import shallow_deep_board


def test_scoreboard_by_hand():
    # On validation the first exit is right where it is most confident. The labels are most likely with weights 0.24 and
    # 0.76: the derivative of log(0.05 + 0.9 w) + 3 log(0.9 - 0.8 w) is zero at w = 0.69 / 2.88.
    val = right_with([[0.95, 0.1, 0.1, 0.1], [0.05, 0.9, 0.9, 0.9]])
    first = [0.97, 0.3, 0.1, 0.9, 0.2, 0.6, 0.03, 0.2]  # right on 1, 4, 6; the first and the seventh leave here
    last = [0.4, 0.6, 0.8, 0.9, 0.9, 0.45, 0.7, 0.3]  # right on 2, 3, 4, 5, 7
    # Half and half are right on 1, 4, 5, 6; 0.24 and 0.76 on 1, 2, 3, 4, 5, 7; the cascade on 1, 2, 3, 4, 5.
    row = scoreboard({"two": Evaluation(val, right_with([first, last]))}).loc["two"]
    assert row.to_dict() == {
        "exit 1": 37.5,
        "last exit": 62.5,
        "mean ensemble": 50.0,
        "weighted ensemble": 75.0,
        "at 50%": 37.5,  # always leaving costs that
        "cascade": 62.5,
        "cascade cost (%)": (2 * 1 + 6 * 2) / (8 * 2) * 100,
        "MACs (M)": 2.0,
    }


def test_scoreboard_chooses_thresholds_on_validation_alone():
    val = answering([[0, 1, 2], [0, 1, 2]], [0, 1, 2], costs=[1.0, 2.0])
    wrong_on_test = answering([[1, 2, 0], [0, 1, 2]], [0, 1, 2], costs=[1.0, 2.0])
    row = scoreboard({"two": Evaluation(val, wrong_on_test)}).loc["two"]
    assert (row["cascade"], row["cascade cost (%)"]) == (0.0, 50.0)


def test_shallow_deep_board_by_hand():
    """The first exit costs 40 %; the last has two images wrong, of which the second has one right."""
    test = answering([[0, 1, 0, 0, 0], [0, 1, 2, 0, 0], [0, 1, 1, 0, 1]], [0, 1, 2, 0, 2], costs=[2e6, 4e6, 5e6])
    val = answering([[0, 1, 2]] * 3, [0, 1, 2], costs=[2e6, 4e6, 5e6])
    row = shallow_deep_board({"net": Evaluation(val, test)}).loc["net"]
    assert math.isnan(row["at 25%"])
    assert (row["at 50%"], row["at 75%"], row["last exit"]) == (60.0, 60.0, 60.0)
    assert (row["cascade"], row["cascade cost (%)"], row["MACs (M)"]) == (60.0, pytest.approx(40.0), 5.0)
    assert row["destructive share (%)"] == 50.0
    assert 0.0 <= row["from"] <= 50.0 <= row["to"] <= 100.0


def test_over_seeds_merges_the_seeds_of_a_network():
    names = pd.Index(["net-s1", "another", "net", "net-s2"], name="network")
    columns = {"last exit": [89.0, 70.0, 90.0, 91.0], "cascade": [88.0, float("nan"), 88.0, 88.0]}
    board = over_seeds(pd.DataFrame(columns, index=names))
    assert list(board.index) == ["net", "another"]
    assert list(board["seeds"]) == [3, 1]
    assert [str(cell) for cell in board["last exit"]] == ["90.00 ± 1.00", "70.0"]
    assert board.loc["net", "cascade"] == 88.0
    assert math.isnan(board.loc["another", "cascade"])


def test_spread_is_a_number_where_nothing_differs():
    spread = Spread.of(pd.Series([88.0, 90.0]))
    assert (spread.mean, spread.deviation) == (89.0, pytest.approx(2**0.5))
    assert Spread.of(pd.Series([88.0])) == 88.0
    share = 100 * 1.0678054198377223
    assert pd.Series([share] * 3).std() > 0  # by rounding
    assert Spread.of(pd.Series([share] * 3)) == pytest.approx(share)
    assert math.isnan(Spread.of(pd.Series([88.0, 90.0, float("nan")])))
