"""Markdown tables."""

import pandas as pd

from eeutils.tables import frame_as_markdown, markdown_table


def test_floats_are_rounded_and_stand_to_the_right_and_missing_ones_are_empty():
    table = markdown_table(["name", "x", "y"], [["a", 1.005, float("nan")], ["b", 20.0, 3.14159]], digits=1)

    assert table.splitlines() == [
        "| name | x | y |",
        "| --- | ---: | ---: |",
        "| a | 1.0 |  |",
        "| b | 20.0 | 3.1 |",
    ]


def test_a_column_of_anything_else_stays_as_it_is():
    assert markdown_table(["n", "t"], [[1, "1.23456"]]).splitlines()[1:] == ["| --- | --- |", "| 1 | 1.23456 |"]


def test_no_rows_leave_the_header():
    assert markdown_table(["a"], []) == "| a |\n| --- |"


def test_a_frame_begins_with_its_index():
    frame = pd.DataFrame({"a": [0.5]}, index=pd.Index(["x"], name="row"))

    assert frame_as_markdown(frame).splitlines() == ["| row | a |", "| --- | ---: |", "| x | 0.50 |"]
