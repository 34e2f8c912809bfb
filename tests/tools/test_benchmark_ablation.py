"""The study of what helps the exits."""

import pandas as pd
import pytest
import torch

from eeutils.analysis.predictions import Predictions
from eeutils.data import Normalization
from eeutils.weights import Registry, StoredFile, WeightEntry
from tools.benchmarks import ablation
from tools.benchmarks.ablation import VARIANTS, Study, Variant, as_markdown, compare, main, predictions_of


def answers(right: list[list[bool]], sure: list[list[float]], costs: list[float]) -> Predictions:
    """Two classes, the true one always 0; `sure` is each exit's margin between its logits."""
    margin = torch.tensor(sure) * torch.where(torch.tensor(right), 1.0, -1.0)
    logits = torch.stack([margin, torch.zeros_like(margin)], -1)
    return Predictions(logits, torch.zeros(4, dtype=torch.int64), torch.tensor(costs).double())


def test_all_variants_are_asked_for_the_accuracy_of_the_first(monkeypatch):
    monkeypatch.setattr(ablation, "MAX_DROP", 0.25)
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


def test_seeds_share_a_row_and_where_one_of_them_has_no_cost_there_is_none():
    first = pd.DataFrame({"exit 1": [0.5, 0.6], "cost": [0.4, 0.5], "whole": [1.0, 1.25]}, index=["as it is", "other"])
    second = pd.DataFrame({"exit 1": [0.5, 0.7], "cost": [0.6, None], "whole": [1.0, 1.25]}, index=first.index)

    table = pd.concat({0: first, 1: second}, names=["seed", "changed"]).astype(float)

    assert as_markdown(table).splitlines() == [
        "| changed | exit 1 (%) | cost at half a point less (%) | cost of the whole (%) |",
        "| --- | ---: | ---: | ---: |",
        "| as it is | 50.00 | 50.00 ± 14.14 | 100.00 |",
        "| other | 65.00 ± 7.07 |  | 125.00 |",
    ]


def test_every_variant_changes_one_thing():
    for name, variant in VARIANTS.items():
        fields = ("pool", "config", "loss", "backbone_first")
        changed = [field for field in fields if getattr(variant, field) != getattr(Variant(), field)]
        assert len(changed) == (name != "as it is"), name


def test_the_study_runs_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    few = ("as it is", "convolution in the first head", "backbone first, then all together")
    monkeypatch.setattr(ablation, "VARIANTS", {name: VARIANTS[name] for name in few})
    command = f"--data digits --recipe digits --width 2 --epochs 1 --runs {tmp_path}/runs --results {tmp_path}"

    main([*command.split(), "--seeds", "0"])
    main([*command.split(), "--seeds", "0", "3"])
    first = pd.read_csv(tmp_path / "ablation.csv")
    (tmp_path / "ablation.csv").unlink()
    monkeypatch.setattr("eeutils.training.loop._Run.train_epoch", None)  # finished runs are only read
    main([*command.split(), "--seeds", "0", "3"])

    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "ablation.csv"), first)
    assert first["changed"].tolist() == 2 * list(few)
    assert first["seed"].tolist() == [0, 0, 0, 3, 3, 3]
    assert (tmp_path / "ablation.md").read_text() in capsys.readouterr().out


def shipped_entry(command: str) -> WeightEntry:
    file = StoredFile("net/file", "0" * 64, 1)
    return WeightEntry(
        name="resnet18_3exits-spp-digits-w2-s1",
        model="resnet18_3exits",
        model_args={},
        data="digits",
        normalization=Normalization((0.5,), (0.25,)),
        status="trained",
        command=command,
        weights=file,
        predictions={"val": file, "test": file},
    )


@pytest.mark.parametrize(
    ("more", "trained_here"),
    [("", []), ("--train.epochs 2", ["as it is"]), ("--train.loss.weights equal", ["as it is"])],
)
def test_what_ships_is_not_trained_again_if_it_was_trained_in_just_that_way(monkeypatch, more, trained_here):
    command = f"python -m eeutils.train digits --model resnet18_3exits --pool spp --width 2 --data digits {more}"
    registry = Registry((shipped_entry(f"{command} --train.seed 1"),))
    monkeypatch.setattr(ablation, "default_registry", lambda: registry)
    monkeypatch.setattr(ablation, "load_predictions", lambda name, split: (name, split))
    trained = []
    monkeypatch.setattr(ablation, "_trained", lambda study, variant, name, config, data: trained.append(name))
    study = Study(data="digits", recipe="digits", width=2)

    told = predictions_of(study, VARIANTS["as it is"], "as it is", 1, None)

    assert trained == trained_here
    assert trained_here or told == ("resnet18_3exits-spp-digits-w2-s1", "val")
    predictions_of(study, VARIANTS["as it is"], "as it is", 2, None)
    for name in ("equal weights of the losses", "backbone first, then all together"):
        predictions_of(study, VARIANTS[name], name, 1, None)
    assert len(trained) == len(trained_here) + 3
