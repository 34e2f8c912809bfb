"""The study of how to choose thresholds."""

from dataclasses import replace

import pandas as pd
import torch

from eeutils.analysis.policies import ThresholdPolicy
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import Choice, choose_thresholds
from tools.benchmarks import threshold_choice
from tools.benchmarks.threshold_choice import (
    FOR_ACCURACY,
    FOR_BUDGET,
    accuracy_table,
    all_of_it,
    budget_table,
    judged,
    main,
)


def two_exits(first_right: list[bool], sure: list[float]) -> Predictions:
    """Two classes, the true one always 0; `sure` is the first exit's margin, and the last is always right."""
    margin = torch.tensor(sure) * torch.where(torch.tensor(first_right), 1.0, -1.0)
    margins = torch.stack([margin, torch.full_like(margin, 5.0)])
    logits = torch.stack([margins, torch.zeros_like(margins)], -1)
    return Predictions(logits, torch.zeros(len(sure), dtype=torch.int64), torch.tensor([1.0, 4.0]).double())


def test_judged_chooses_on_one_half_and_judges_on_the_other():
    seen = []

    def leave_at_once(validation: Predictions) -> Choice:
        seen.append(len(validation.labels))
        return Choice.of(ThresholdPolicy(0.0), validation)

    table = two_exits([True] * 6 + [False] * 2, [2.0] * 8)

    cuts = judged(table, {"at once": leave_at_once}, repeats=3)

    assert seen == [4] * 3
    assert (cuts["lost_there"] + cuts["lost"]).tolist() == [0.5] * 3, "two of eight, wherever they fall"
    assert cuts["cost"].tolist() == [0.25] * 3


def some_cuts(lost: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"way": ["a", "a"], "lost_there": [0.004, 0.004], "lost": lost, "cost": [0.5, 0.6]})


def test_accuracy_table_shows_means_and_spread_in_percent():
    line = accuracy_table({"net": some_cuts([0.01, 0.02])}).splitlines()[2]
    assert line == "| `net` | a | 0.40 | 1.50 | 0.71 | 55.00 |"


def test_budget_table_shows_means_over_networks():
    one, two = some_cuts([0.01, 0.02]), some_cuts([0.03, 0.04])
    lines = budget_table({(3, 0.5): [one], (7, 1.0): [one, two]}).splitlines()
    assert lines[2:] == ["| 3 | 50% | 1 | a | 0.40 | 1.50 | 55.00 |", "| 7 | 100% | 2 | a | 0.40 | 2.50 | 55.00 |"]


def test_main_writes_its_tables(tmp_path, monkeypatch, capsys):
    small, large = (two_exits([True, True, False, True] * 10, [4.0, 3.0, 2.0, 1.0] * 10) for _ in range(2))
    tables = {"small": small, "large": replace(large, costs=torch.tensor([0.55, 1.0]).double())}
    monkeypatch.setattr(threshold_choice, "load_predictions", lambda name, split: {"val": tables[name]}[split])

    main(["--weights", *tables, "--repeats", "2", "--out", str(tmp_path / "choice.md")])

    text = (tmp_path / "choice.md").read_text()
    for_accuracy, for_budget = ([line.split(" | ") for line in part.splitlines()[2:]] for part in text.split("\n\n"))
    assert [(network, way) for network, way, *_ in for_accuracy] == [
        (f"| `{name}`", way) for name in tables for way in FOR_ACCURACY
    ]
    who_can = {"40%": "1", "50%": "1", "60%": "2", "75%": "2", "100%": "2"}
    assert [cells[:4] for cells in for_budget] == [
        ["| 2", budget, networks, way] for budget, networks in who_can.items() for way in FOR_BUDGET
    ]
    assert text in capsys.readouterr().out


def test_all_of_it_spends_the_whole_budget():
    table = two_exits([True] * 4, [1.0, 2.0, 3.0, 4.0])
    assert choose_thresholds(table, budget=0.7).relative_cost == 0.25
    assert all_of_it(table, 0.7).relative_cost == 0.625  # two of four stay
    assert all_of_it(table, 1.0).relative_cost == 1
