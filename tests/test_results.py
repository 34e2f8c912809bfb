"""Recomputing published numbers, and the README that shows them."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from eeutils import results
from eeutils.analysis.predictions import Predictions
from eeutils.recipes import plan
from eeutils.scoreboard import Evaluation
from eeutils.tables import frame_as_markdown
from eeutils.weights import default_registry

README = "before\n<!-- results/a.md -->\nold\n<!-- end -->\nbetween\n<!-- results/b.md -->\n<!-- end -->\nafter\n"
TRAINED = [entry for entry in default_registry().entries if entry.status == "trained"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.md").write_text("| A |\n")
    (tmp_path / "results" / "b.md").write_text("| B |\n")
    return tmp_path


def test_each_table_stands_between_its_marks_and_the_rest_stays(folder):
    once = results.with_tables(README, folder)

    assert "before\n<!-- results/a.md -->\n| A |\n<!-- end -->\nbetween\n" in once
    assert once.endswith("between\n<!-- results/b.md -->\n| B |\n<!-- end -->\nafter\n")
    assert results.with_tables(once, folder) == once


def test_a_table_that_is_not_there_is_an_error(folder):
    (folder / "results" / "b.md").unlink()

    with pytest.raises(FileNotFoundError, match=r"b\.md"):
        results.with_tables(README, folder)


def test_the_readme_shows_the_tables_as_they_are():
    readme = (results.REPOSITORY / "README.md").read_text("utf-8")

    assert readme.count("<!-- results/") >= 3
    assert results.with_tables(readme, results.REPOSITORY) == readme, "run `make results`"


@pytest.mark.skipif(not TRAINED, reason="no weights are shipped")
def test_a_number_that_does_not_come_out_is_named():
    entry = TRAINED[0]
    exits, images = len(entry.macs), 10_000
    labels = torch.zeros(images, dtype=torch.int64)
    published = {}
    for split, shares in entry.accuracy.items():
        logits = torch.zeros(exits, images, 10)
        for index, share in enumerate(shares):
            count = round(share * images)
            logits[index, :count, 0], logits[index, count:, 1] = 1.0, 1.0
        published[split] = Predictions(logits, labels, torch.tensor(entry.macs, dtype=torch.float64))
    as_published = Evaluation(**published)
    assert results._mistakes(entry, as_published) == []

    better = replace(entry, accuracy={**entry.accuracy, "val": (0.999, *entry.accuracy["val"][1:])})
    assert "exit 1 on val: 99.90% is published" in results._mistakes(better, as_published)[0]
    dearer = replace(entry, macs=tuple(macs + 1 for macs in entry.macs))
    assert "multiply-adds" in results._mistakes(dearer, as_published)[0]


def evaluation(exits: int) -> Evaluation:
    labels = torch.tensor([0, 1, 2, 0, 1])
    logits = torch.nn.functional.one_hot(labels, 3).double().repeat(exits, 1, 1)
    table = Predictions(logits, labels, torch.arange(1, exits + 1, dtype=torch.float64))
    return Evaluation(table, table)


def test_networks_with_many_exits_have_a_table_of_their_own():
    boards = results.boards_of({"plain": evaluation(1), "three": evaluation(3), "seven": evaluation(7)})

    rows = {name: list(board.index) for name, board in boards.items()}
    assert rows == {"scoreboard.md": ["plain", "three"], "shallow_deep.md": ["seven"]}
    assert list(results.boards_of({"plain": evaluation(1)})) == ["scoreboard.md"]


def test_a_cell_of_the_scoreboard_that_does_not_come_out_is_named():
    board = pd.DataFrame({"cascade": [88.0, 87.0], "exit 1": [float("nan"), 70.0]}, index=["one", "two"])
    other = board + pd.DataFrame({"cascade": [0.1, 0.5], "exit 1": [0.0, 0.0]}, index=["one", "two"])

    assert results._differences(board, other) == ["two, cascade: 87.00 is published, 87.50 came out"]
    assert results._differences(board, board) == []


def test_a_number_that_is_gone_is_a_difference_and_so_is_one_that_came_up():
    board = pd.DataFrame({"at 25%": [77.4, math.nan], "cascade": [88.0, 87.0]}, index=["one", "two"])
    flipped = board.assign(**{"at 25%": [math.nan, 77.4]})

    assert results._differences(board, flipped) == [
        "one, at 25%: 77.40 is published, nan came out",
        "two, at 25%: nan is published, 77.40 came out",
    ]
    assert results._differences(board, board.drop("two")) == ["two, cascade: 87.00 is published, nan came out"]
    assert len(results._differences(board, board.drop(columns="cascade"))) == 2


def test_shares_of_mistakes_may_move_more_than_shares_of_images():
    board = pd.DataFrame({"cascade": [88.0], "destructive share (%)": [50.0], "from": [47.0]}, index=["net"])

    assert results._differences(board, board + 0.9) == ["net, cascade: 88.00 is published, 88.90 came out"]
    assert len(results._differences(board, board + 1.1)) == 3


def test_seeds_of_a_network_share_a_row_of_means_and_deviations():
    names = pd.Index(["net-s1", "other", "net", "net-s2"], name="network")
    board = pd.DataFrame(
        {"last exit": [89.0, 70.0, 90.0, 91.0], "cascade": [88.0, float("nan"), 88.0, 88.0]}, index=names
    )

    assert frame_as_markdown(results.over_seeds(board)).splitlines() == [
        "| network | seeds | last exit | cascade |",
        "| --- | --- | ---: | ---: |",
        "| net | 3 | 90.00 ± 1.00 | 88.00 |",
        "| other | 1 | 70.00 |  |",
    ]


def test_words_in_a_table_are_not_compared():
    board = pd.DataFrame({"reached (%)": [88.0], "by": ["net"]}, index=["goal"])
    other = pd.DataFrame({"reached (%)": [87.0], "by": ["other"]}, index=["goal"])

    assert results._differences(board, other) == ["goal, reached (%): 88.00 is published, 87.00 came out"]


def test_the_figure_shows_networks_that_are_planned(tmp_path):
    assert set(results.DRAWN) <= {run.name for run in plan()}
    val = evaluation(3).val

    results._draw({"three": Evaluation(val, val), "plain": evaluation(1)}, tmp_path / "figure.png")

    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
