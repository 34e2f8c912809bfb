"""The study of how to choose thresholds."""

import pandas as pd
import pytest
import torch

from benchmarks import threshold_choice
from benchmarks.threshold_choice import WAYS, as_markdown, judged, main
from eeutils.analysis.policies import ThresholdPolicy
from eeutils.analysis.predictions import Predictions


def two_exits(first_right: list[bool], sure: list[float]) -> Predictions:
    """Two classes, the true one always 0; `sure` is the first exit's margin, and the last is always right."""
    margin = torch.tensor(sure) * torch.where(torch.tensor(first_right), 1.0, -1.0)
    margins = torch.stack([margin, torch.full_like(margin, 5.0)])
    logits = torch.stack([margins, torch.zeros_like(margins)], -1)
    return Predictions(logits, torch.zeros(len(sure), dtype=torch.int64), torch.tensor([1.0, 4.0]).double())


def test_what_is_chosen_on_one_half_is_judged_on_the_other(monkeypatch):
    seen = []

    def leave_at_once(validation: Predictions, drop: float) -> ThresholdPolicy:
        seen.append((len(validation.labels), drop))
        return ThresholdPolicy(0.0)

    monkeypatch.setattr(threshold_choice, "WAYS", {"at once": leave_at_once})
    table = two_exits([True] * 6 + [False] * 2, [2.0] * 8)

    cuts = judged(table, repeats=3)

    assert seen == [(4, 0.005)] * 3
    assert (cuts["lost_there"] + cuts["lost"]).tolist() == [0.5] * 3, "two of eight, wherever they fall"
    assert cuts["cost"].tolist() == [0.25] * 3


def test_the_table_shows_means_and_spread_in_percent():
    cuts = pd.DataFrame({"way": ["a", "a"], "lost_there": [0.004, 0.004], "lost": [0.01, 0.02], "cost": [0.5, 0.6]})

    assert as_markdown({"net": cuts}).splitlines()[2] == "| `net` | a | 0.40 | 1.50 | 0.71 | 55.00 |"


def test_the_command_writes_its_table(tmp_path, monkeypatch, capsys):
    table = two_exits([True, True, False, True] * 10, [4.0, 3.0, 2.0, 1.0] * 10)
    monkeypatch.setattr(threshold_choice, "load_predictions", lambda name, split: {"val": table}[split])

    main(["--weights", "net", "--repeats", "2", "--out", str(tmp_path / "choice.md")])

    lines = (tmp_path / "choice.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == list(WAYS)
    assert lines[0] in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value", "message"), [("--weights", "nothing", "nothing"), ("--repeats", "1", "2")])
def test_a_wrong_value_ends_with_its_message(option, value, message):
    with pytest.raises(SystemExit) as stopped:
        main([option, value])

    assert message in str(stopped.value)
