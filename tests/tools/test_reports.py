import math

import pandas as pd
import pytest

from eeutils import Predictions
from eeutils.scoreboard import Evaluation, Spread
from eeutils.weights import Registry, TrainingRecord, WeightEntry
from tests.analysis.tables import right_on
from tests.toys import toy_entry
from tools import demo, pages, results
from tools.goals import GOALS, Goal, at_exit, goals_board, within_macs, within_share
from tools.numbers import shown_numbers, unsupported
from tools.tables import frame_as_markdown, markdown_table
from tools.train_missing import plan
from tools.training_compute import training_pflop


@pytest.mark.parametrize("program", [demo, results])
def test_refuse_arguments_offers_help_and_refuses_any(program, capsys):
    with pytest.raises(SystemExit, match="0"):
        program.main(["--help"])
    assert program.__doc__.strip() in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        program.main(["--quick"])
    assert "--quick" in capsys.readouterr().err


def test_markdown_table_rounds_floats_and_aligns_them_right():
    rows = [["a", 1, 1.004, float("nan")], ["b", 2, Spread(20.0, 1.0), 3.14159]]
    assert markdown_table(["name", "n", "x", "y"], rows).splitlines() == [
        "| name | n | x | y |",
        "| --- | --- | ---: | ---: |",
        "| a | 1 | 1.00 |  |",
        "| b | 2 | 20.00 ± 1.00 | 3.14 |",
    ]
    assert markdown_table(["a"], []) == "| a |\n| --- |"


def test_frame_as_markdown_begins_with_the_index():
    frame = pd.DataFrame({"a": [0.5]}, index=pd.Index(["x"], name="row"))
    assert frame_as_markdown(frame).splitlines() == ["| row | a |", "| --- | ---: |", "| x | 0.50 |"]


def test_with_files_fills_the_marks_and_nothing_else(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.md").write_text("| new |\n")
    page = "before\n<!-- results/a.md -->\n| old |\n<!-- end -->\nafter\n"
    filled = pages.with_files(page, tmp_path)
    assert filled == "before\n<!-- results/a.md -->\n| new |\n<!-- end -->\nafter\n"
    assert pages.with_files(filled, tmp_path) == filled


def test_pages_show_the_tables_as_they_are():
    for page in pages.PAGES:
        text = page.read_text("utf-8")
        assert pages.with_files(text, pages.RESULTS.parent) == text, "run `make results`"


@pytest.mark.parametrize(
    ("prose", "missing"),
    [
        ("It gets 88.6 %, 88.59 %, or 0.886.", []),
        ("It gets 88.7 %; half a point, 0.5, is cited.", ["88.7 %", "0.5"]),
        ("A third is 33 %, and 1,234.5 are left. Two of 3 exits.", []),
        ("See [half](https://example.org/0.5) and `0.5`, arXiv 1512.03385.", []),
    ],
)
def test_unsupported_lists_numbers_that_were_not_shown(prose, missing):
    shown = shown_numbers("<td>0.8859</td> of 3333 images (33.3%), 1,234.46 left<style>0.5</style>")
    assert unsupported(prose, shown) == missing


def entry(name: str, macs: int, command: str, **config: object) -> WeightEntry:
    record = TrainingRecord("slim", config, "CPU", {}, 1.0, 1.0)
    command = f"python -m eeutils.train {command}"
    return toy_entry(name, data="cifar10", command=command, macs=(macs // 2, macs), training=record)


PLAIN = entry("plain", 10**9, "slim --model resnet18", epochs=2, trained="all")


def test_training_pflop_by_hand():
    half = entry("half", 10**9, "slim --model resnet18", epochs=2, trained="all", small_images=0.5)
    exits = entry("exits", 2 * 10**9, "ic_only --model resnet18 --start-from plain", epochs=1, trained="early_exits")
    registry = Registry((PLAIN, half, exits))
    plain = 6 * 1e9 * 45_000 * 2 / 1e15  # two operations, three times
    assert training_pflop(PLAIN, registry) == pytest.approx(plain)
    assert training_pflop(half, registry) == pytest.approx(plain * (0.5 + 0.5 * 9 / 16))  # of the pixels
    assert training_pflop(exits, registry) == pytest.approx(plain + 2 * 2e9 * 45_000 / 1e15)  # and what it starts from


PFLOP = {"net": 0.5, "one": 0.5, "two": 2.0}


def both(predictions: Predictions) -> Evaluation:
    return Evaluation(predictions, predictions)


def test_within_share_needs_the_first_exits_cost():
    evaluation = both(right_on((2, 4)))
    assert within_share(0.4)(evaluation) is None
    assert within_share(0.5)(evaluation).accuracy == 0.5
    assert within_share(1.0)(evaluation).accuracy == 1.0
    assert within_macs(0.9e6)(evaluation) is None
    assert within_macs(1e6)(evaluation).cost == 1e6
    assert within_macs(9e6)(evaluation).accuracy == 1.0


def test_goals_board_needs_every_seed():
    networks = {"net": both(right_on((1, 4))), "net-s1": both(right_on((1, 4), costs=(1.5e6, 2e6)))}
    row = goals_board(networks, PFLOP, (Goal("half", 95.0, ("net",), within_share(0.5)),)).loc["half"]
    assert (row["by"], math.isnan(row["reached (%)"])) == ("out of reach", True)


def test_goals_board_takes_the_best_on_validation():
    networks = {
        "one": Evaluation(val=right_on((1, 3)), test=right_on((1, 4))),
        "two": Evaluation(val=right_on((1, 4)), test=right_on((1, 2))),
    }
    row = goals_board(networks, PFLOP, (Goal("last", 95.0, ("one", "two"), at_exit(-1)),)).loc["last"]
    assert (row["by"], row["reached (%)"]) == ("two", 50.0)


def test_goals_are_for_planned_networks():
    planned = {run.name for run in plan()}
    assert {name for goal in GOALS for name in goal.networks} <= planned
    assert len({goal.what for goal in GOALS}) == len(GOALS)
