"""The study of what helps the exits."""

from dataclasses import fields

import pandas as pd
import pytest
import torch

from eeutils.analysis.predictions import Predictions, predict
from eeutils.data import load_data
from eeutils.models import create_model
from tools.benchmarks import ablation
from tools.benchmarks.ablation import VARIANTS, Variant, as_markdown, compare, main


def answers(right: list[list[bool]], sure: list[list[float]], costs: list[float]) -> Predictions:
    """Two classes, the true one always 0; `sure` is each exit's margin between its logits."""
    margin = torch.tensor(sure) * torch.where(torch.tensor(right), 1.0, -1.0)
    logits = torch.stack([margin, torch.zeros_like(margin)], -1)
    return Predictions(logits, torch.zeros(4, dtype=torch.int64), torch.tensor(costs).double())


def test_compare_asks_all_variants_for_the_accuracy_of_the_first(monkeypatch):
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


def test_as_markdown_merges_seeds():
    first = pd.DataFrame({"exit 1": [0.5, 0.6], "cost": [0.4, 0.5], "whole": [1.0, 1.25]}, index=["as it is", "other"])
    second = pd.DataFrame({"exit 1": [0.5, 0.7], "cost": [0.6, None], "whole": [1.0, 1.25]}, index=first.index)

    table = pd.concat({0: first, 1: second}, names=["seed", "changed"]).astype(float)

    assert as_markdown(table).splitlines() == [
        "| changed | exit 1 (%) | cost at half a point less (%) | cost of the whole (%) |",
        "| --- | ---: | ---: | ---: |",
        "| as it is | 50.00 | 50.00 ± 14.14 | 100.00 |",
        "| other | 65.00 ± 7.07 |  | 125.00 |",
    ]


def test_variants_change_one_thing_each():
    for name, variant in VARIANTS.items():
        changed = [
            each.name for each in fields(Variant) if getattr(variant, each.name) != getattr(Variant(), each.name)
        ]
        assert len(changed) == (name != "as it is"), name


def test_main_runs_the_study_and_resumes_it(tmp_path, monkeypatch, capsys):
    few = [name for name in VARIANTS if any(word in name for word in ("as it is", "a stem", "backbone", "70 %"))]
    monkeypatch.setattr(ablation, "VARIANTS", {name: VARIANTS[name] for name in few})
    command = f"--data digits --width 4 --epochs 1 --runs {tmp_path}/runs --results {tmp_path}"

    main([*command.split(), "--seeds", "0"])
    main([*command.split(), "--seeds", "0", "3"])
    first = pd.read_csv(tmp_path / "ablation.csv")
    (tmp_path / "ablation.csv").unlink()
    monkeypatch.setattr("eeutils.training.loop._Run.train_epoch", None)  # finished runs are only read
    main([*command.split(), "--seeds", "0", "3"])

    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "ablation.csv"), first)
    assert first["changed"].tolist() == 2 * few
    assert first["seed"].tolist() == [0] * 4 + [3] * 4
    assert (tmp_path / "ablation.md").read_text() in capsys.readouterr().out


def test_shrink_images_ends_after_the_steps_of_training():
    seen = []
    net = torch.nn.Conv2d(1, 1, 1)
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    ablation._shrink_images(net, steps=2)
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))

    for training in (True, False, True, True):
        net.train(training)(torch.rand(2, 1, 8, 8))

    assert seen == [8, 6, 8, 8, 8, 6, 8, 8]


def test_hard_images_have_the_highest_losses():
    data = load_data("digits")
    net = create_model("resnet18", width=2, **ablation._fitting(data))
    predictions = predict(net, data.train)
    losses = torch.nn.functional.cross_entropy(predictions.logits[-1], data.train.labels, reduction="none")

    hard = ablation._hard_images(net, data.train, torch.device("cpu"))

    kept = losses >= losses.sort(descending=True).values[len(hard) - 1]
    assert len(hard) == round(0.7 * len(data.train))
    assert hard.images.equal(data.train.images[kept])
    assert hard.labels.equal(data.train.labels[kept])
