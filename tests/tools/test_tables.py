import pandas as pd

from eeutils.scoreboard import Spread
from tools.tables import frame_as_markdown, markdown_table


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
