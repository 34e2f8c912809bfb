"""The study of what helps the exits."""

import pandas as pd
import pytest
import torch

from benchmarks import recipes
from benchmarks.recipes import VARIANTS, Variant, as_markdown, compare, main
from eeutils.analysis.predictions import Predictions


def answers(right: list[list[bool]], sure: list[list[float]], costs: list[float]) -> Predictions:
    """Two classes, the true one always 0; `sure` is each exit's margin between its logits."""
    margin = torch.tensor(sure) * torch.where(torch.tensor(right), 1.0, -1.0)
    return Predictions(
        torch.stack([margin, torch.zeros_like(margin)], -1), torch.zeros(4, dtype=torch.int64), torch.tensor(costs)
    )


def test_all_variants_are_asked_for_the_accuracy_of_the_first(monkeypatch):
    monkeypatch.setattr(recipes, "MAX_DROP", 0.25)
    unchanged = answers([[True, False, False, False], [True, True, True, False]], [[3, 1, 1, 1], [2] * 4], [10.0, 40.0])
    cheaper = answers([[True, True, False, False], [True] * 4], [[3, 3, 1, 1], [2] * 4], [20.0, 80.0])
    hopeless = answers([[False] * 4, [True, False, False, False]], [[1] * 4, [2] * 4], [10.0, 40.0])

    table = compare({"as it is": unchanged, "cheaper": cheaper, "hopeless": hopeless})

    assert table[["exit 1", "exit 2"]].to_numpy().tolist() == [[0.25, 0.75], [0.5, 1.0], [0.0, 0.25]]
    # Asked for 50 %. The first lets the one image go that exit 1 is sure of and gets 3 of 4 right: (10 + 3 * 40) / 4.
    # The second leaves with everything: both right images at exit 1 are enough.
    assert table["cost"].iloc[:2].tolist() == [pytest.approx(32.5 / 40), pytest.approx(20 / 40)]
    assert pd.isna(table["cost"].iloc[2])
    assert table["whole"].tolist() == [1.0, 2.0, 1.0]
    assert "| hopeless | 0.00 | 25.00 |  | 100.00 |" in as_markdown(table)


def test_every_variant_changes_one_thing():
    for name, variant in VARIANTS.items():
        fields = ("pool", "config", "loss", "backbone_first")
        changed = [field for field in fields if getattr(variant, field) != getattr(Variant(), field)]
        assert len(changed) == (name != "as it is"), name


def test_the_study_runs_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    few = ("as it is", "convolution in the first head", "backbone first, then all together")
    monkeypatch.setattr(recipes, "VARIANTS", {name: VARIANTS[name] for name in few})
    command = f"--data digits --recipe digits --width 2 --epochs 1 --runs {tmp_path}/runs --results {tmp_path}"

    main(command.split())
    first = (tmp_path / "recipes.csv").read_text()
    (tmp_path / "recipes.csv").unlink()
    monkeypatch.setattr("eeutils.training.loop._Run.train_epoch", None)  # finished runs are only read
    main(command.split())

    assert (tmp_path / "recipes.csv").read_text() == first
    assert pd.read_csv(tmp_path / "recipes.csv")["changed"].tolist() == list(few)
    assert (tmp_path / "recipes.md").read_text() in capsys.readouterr().out


def test_a_wrong_value_ends_with_its_message():
    with pytest.raises(SystemExit, match="unknown recipe 'fast'"):
        main(["--data", "digits", "--recipe", "fast"])
