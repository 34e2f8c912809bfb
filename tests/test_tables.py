"""Markdown tables."""

import math

import pandas as pd
import pytest

from eeutils.scoreboard import Spread
from tools.tables import frame_as_markdown, markdown_table


def test_floats_are_rounded_and_stand_to_the_right_and_missing_ones_are_empty():
    table = markdown_table(["name", "x", "y"], [["a", 1.004, float("nan")], ["b", 20.0, 3.14159]])

    assert table.splitlines() == [
        "| name | x | y |",
        "| --- | ---: | ---: |",
        "| a | 1.00 |  |",
        "| b | 20.00 | 3.14 |",
    ]


def test_a_column_of_anything_else_stays_as_it_is():
    assert markdown_table(["n", "t"], [[1, "1.23456"]]).splitlines()[1:] == ["| --- | --- |", "| 1 | 1.23456 |"]


def test_no_rows_leave_the_header():
    assert markdown_table(["a"], []) == "| a |\n| --- |"


def test_a_frame_begins_with_its_index():
    frame = pd.DataFrame({"a": [0.5]}, index=pd.Index(["x"], name="row"))

    assert frame_as_markdown(frame).splitlines() == ["| row | a |", "| --- | ---: |", "| x | 0.50 |"]


def test_what_was_measured_several_times_is_shown_with_its_deviation():
    spread = Spread.of(pd.Series([88.0, 90.0]))

    assert (spread.mean, spread.deviation) == (89.0, pytest.approx(2**0.5))
    assert str(spread) == "89.00 ± 1.41"
    table = markdown_table(["name", "x"], [["a", spread], ["b", 1.0]])
    assert table.splitlines()[1:] == ["| --- | ---: |", "| a | 89.00 ± 1.41 |", "| b | 1.00 |"]


def test_one_measurement_or_several_alike_are_a_number_and_none_is_missing():
    assert Spread.of(pd.Series([88.0])) == 88.0
    assert Spread.of(pd.Series([35.05] * 3)) == pytest.approx(35.05)
    assert math.isnan(Spread.of(pd.Series([float("nan")] * 2)))


def test_where_one_measurement_is_missing_there_is_no_mean_of_the_others():
    assert math.isnan(Spread.of(pd.Series([88.0, 90.0, float("nan")])))


def test_equal_numbers_have_no_spread_though_their_mean_is_rounded():
    share = 100 * 1.0678054198377223

    assert pd.Series([share] * 3).std() > 0
    assert Spread.of(pd.Series([share] * 3)) == pytest.approx(share)
