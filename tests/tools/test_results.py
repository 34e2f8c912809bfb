"""Recomputing published numbers."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.nn.functional import one_hot

from eeutils.analysis.predictions import Predictions
from eeutils.data import Normalization
from eeutils.scoreboard import Evaluation
from eeutils.weights import Registry, StoredFile, WeightEntry, default_registry, without_seed
from tools import pages, results
from tools.results import HEADLINE, headline_board
from tools.tables import frame_as_markdown
from tools.train_missing import plan

TRAINED = [entry for entry in default_registry().entries if entry.status == "trained"]


@pytest.mark.skipif(not TRAINED, reason="no weights are shipped")
def test_mistakes_names_accuracies_and_costs_that_differ():
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
    for share, mistakes in ((0.0004, 0), (-0.0004, 0), (0.0006, 1), (-0.0006, 1)):
        first, *others = entry.accuracy["test"]
        moved = replace(entry, accuracy={**entry.accuracy, "test": (first + share, *others)})
        assert len(results._mistakes(moved, as_published)) == mistakes
    dearer = replace(entry, macs=tuple(macs + 1 for macs in entry.macs))
    assert "multiply-adds" in results._mistakes(dearer, as_published)[0]


def evaluation(exits: int) -> Evaluation:
    labels = torch.tensor([0, 1, 2, 0, 1])
    logits = one_hot(labels, 3).double().repeat(exits, 1, 1)
    table = Predictions(logits, labels, torch.arange(1, exits + 1, dtype=torch.float64))
    return Evaluation(table, table)


def test_boards_of_parts_networks_by_their_exits():
    boards = results.boards_of(
        {"plain": evaluation(1), "four": evaluation(4), "seven": evaluation(7)},
        dict.fromkeys(("plain", "four", "seven"), 1.0),
    )

    rows = {name: list(board.index) for name, board in boards.items()}
    assert rows == {"scoreboard.md": ["plain", "four"], "shallow_deep.md": ["seven"]}
    assert list(results.boards_of({"plain": evaluation(1)}, {"plain": 1.0})) == ["scoreboard.md"]


def test_differences_names_the_cell():
    board = pd.DataFrame({"cascade": [88.0, 87.0], "exit 1": [float("nan"), 70.0]}, index=["one", "two"])
    other = board + pd.DataFrame({"cascade": [0.1, 0.5], "exit 1": [0.0, 0.0]}, index=["one", "two"])

    assert results._differences(board, other) == ["two, cascade: 87.00 is published, 87.50 came out"]
    assert results._differences(board, board) == []


def test_differences_counts_missing_and_new_numbers():
    board = pd.DataFrame({"at 25%": [77.4, math.nan], "cascade": [88.0, 87.0]}, index=["one", "two"])
    flipped = board.assign(**{"at 25%": [math.nan, 77.4]})

    assert results._differences(board, flipped) == [
        "one, at 25%: 77.40 is published, nan came out",
        "two, at 25%: nan is published, 77.40 came out",
    ]
    assert results._differences(board, board.drop("two")) == ["two, cascade: 87.00 is published, nan came out"]
    assert len(results._differences(board, board.drop(columns="cascade"))) == 2


def test_differences_allows_shares_of_mistakes_more():
    board = pd.DataFrame({"cascade": [88.0], "destructive share (%)": [50.0], "from": [47.0]}, index=["net"])

    assert results._differences(board, board + 0.9) == ["net, cascade: 88.00 is published, 88.90 came out"]
    assert len(results._differences(board, board + 1.1)) == 3


def test_figure_and_headline_show_planned_networks(tmp_path):
    planned = {run.name for run in plan()}
    assert set(results.DRAWN) <= planned | {entry.name for entry in default_registry().entries}
    assert set(HEADLINE) <= {without_seed(name) for name in planned}
    val = evaluation(3).val

    results._draw({"three": Evaluation(val, val), "plain": evaluation(1)}, tmp_path / "figure.png")

    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_halves_are_chosen_on_validation_where_possible():
    # For half of the cost all have to leave at the first exit, which has two of four test images right.
    halved = Evaluation(two_exits((4, 4)), two_exits((2, 3)))
    # Exits at 60 and 100 %.
    dear = replace(halved.val, costs=torch.tensor([3e6, 5e6], dtype=torch.float64))

    assert results.halves([halved, Evaluation(dear, dear), evaluation(1)]) == [(1.0, 50.0)]


# From the registry to the README.


def two_exits(right: tuple[int, int], sure: tuple[int, ...] = (0, 1)) -> Predictions:
    """Exits that are right on the first so many of four images, the first one surer of the images `sure`."""
    labels = torch.tensor([0, 1, 2, 0])
    logits = torch.stack([one_hot((labels + (torch.arange(4) >= count)) % 3, 3) for count in right]).float()
    logits[0] *= torch.where(torch.isin(torch.arange(4), torch.tensor(sure)), 5.0, 1.0)[:, None]
    return Predictions(logits, labels, torch.tensor([1e6, 2e6], dtype=torch.float64))


PUBLISHED = {"val": two_exits((2, 4)), "test": two_exits((2, 3))}
FILE = StoredFile("net/file", "0" * 64, 1)
ENTRY = WeightEntry(
    name="resnet18_2exits-spp-toy-s1",
    model="resnet18_2exits",
    model_args={},
    data="toy",
    normalization=Normalization((0.5,), (0.25,)),
    status="trained",
    weights=FILE,
    predictions={"val": FILE, "test": FILE},
    accuracy={split: tuple(table.accuracy.tolist()) for split, table in PUBLISHED.items()},
    macs=(1_000_000, 2_000_000),
)


@pytest.fixture
def recompute(tmp_path, monkeypatch):
    """Runs it all on `ENTRY`, whose network predicts `computed`, in a repository of the test's own."""
    (tmp_path / "README.md").write_text("<!-- results/scoreboard.md -->\n<!-- end -->\n")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(pages, "PAGES", (tmp_path / "README.md",))
    for module in (pages, results):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "DRAWN", {ENTRY.name: "two exits"})
    monkeypatch.setattr(results, "training_pflop", lambda entry, registry: 0.5)

    def run(computed: dict[str, Predictions], *entries: WeightEntry) -> int:
        def predicted(net: str, split: str) -> Predictions:
            assert not torch.backends.cudnn.allow_tf32, "published numbers are of full precision"
            return computed[split]

        monkeypatch.setattr(results, "default_registry", lambda: Registry(entries, tmp_path))
        monkeypatch.setattr(results, "load_predictions", lambda name, split: {ENTRY.name: PUBLISHED}[name][split])
        monkeypatch.setattr(results, "load_weights", lambda name, device: name)
        monkeypatch.setattr(results, "load_data", lambda name: SimpleNamespace(val="val", test="test"))
        monkeypatch.setattr(results, "predict", predicted)
        return results.main()

    return run


def test_main_writes_tables_that_agree(recompute, tmp_path):
    untrained = replace(ENTRY, name="resnet18-avg-toy", status="not trained", weights=None)

    assert recompute(PUBLISHED, ENTRY, untrained) == 0

    board = (tmp_path / "results" / "scoreboard.md").read_text()
    assert "| resnet18_2exits-spp-toy | 1 | 50.00 | 75.00 |" in board  # without its seed, and how many they are
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "headline.md",
        "scoreboard.md",
        "goals.md",
        "accuracy_cost.png",
        "accuracy_compute.png",
    }
    assert board in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("computed", "message"),
    [
        ({**PUBLISHED, "test": two_exits((2, 4))}, "exit 2 on test: 75.00% is published, 100.00% came out"),
        # Each exit as right as before, but the first one sure of its mistakes.
        ({**PUBLISHED, "test": two_exits((2, 3), (2, 3))}, "cascade: 75.00 is published, 50.00 came out"),
    ],
)
def test_main_names_differences_and_writes_nothing(recompute, tmp_path, capsys, computed, message):
    assert recompute(computed, ENTRY) > 0

    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*.*")} == {"README.md"}


def test_main_chooses_on_published_validation(recompute):
    # As right as published, exit by exit, but a threshold chosen here would let nobody leave.
    assert recompute({**PUBLISHED, "val": two_exits((2, 4), (2, 3))}, ENTRY) == 0


def test_main_takes_predictions_without_weights(recompute):
    assert recompute({}, replace(ENTRY, status="measured", weights=None)) == 0


def test_main_needs_trained_weights(recompute, capsys):
    assert recompute(PUBLISHED) == 1
    assert "no trained weights" in capsys.readouterr().err


def test_main_stops_outside_a_clone(monkeypatch):
    monkeypatch.setattr(results, "default_registry", lambda: Registry((ENTRY,)))
    monkeypatch.setattr(results, "load_predictions", None)
    with pytest.raises(SystemExit, match="error: this registry came with the package"):
        results.main()


def board_of(rows: dict[str, dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("network")


def test_headline_board_has_its_networks_in_its_order_with_seeds_together():
    slim = "resnet18_3exits-conv+conv+spp-cifar10-w16"
    few = board_of(
        {
            f"{slim}-s1": {
                "last exit": 88.0,
                "cascade": 1.0,
                "at 50%": 87.0,
                "MACs (M)": 37.5,
                "training (PFLOP)": 0.5,
            },
            "resnet56-cifar10": {"last exit": 91.58, "MACs (M)": 125.5},  # not of the headline
            "resnet18-avg-cifar10-w16": {"last exit": 89.1, "MACs (M)": 35.05, "training (PFLOP)": 0.5},
            slim: {"last exit": 90.0, "cascade": 2.0, "at 50%": 87.0, "MACs (M)": 37.5, "training (PFLOP)": 0.5},
        }
    )
    many = board_of(
        {
            "mobilenet_sdn-mixed-cifar10": {
                "at 25%": 83.0,
                "at 50%": 89.08,
                "last exit": 89,
                "MACs (M)": 47,
                "training (PFLOP)": 0.5,
            }
        }
    )
    assert frame_as_markdown(headline_board([few, many.astype(float)])).splitlines() == [
        "| network | PFLOP of training | million multiply-adds | all images to the end | half of the cost |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| ResNet18, width 16, no early exits | 0.50 | 35.05 | 89.10 |  |",
        "| ResNet18, width 16, 3 exits (2 seeds) | 0.50 | 37.50 | 89.00 ± 1.41 | 87.00 |",
        "| MobileNet, Shallow-Deep, 7 exits | 0.50 | 47.00 | 89.00 | 89.08 |",
    ]
    assert list(headline_board([few.loc[["resnet56-cifar10"]]]).index) == []
