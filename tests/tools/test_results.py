from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from eeutils import Predictions
from eeutils.weights import Registry, StoredFile, WeightEntry
from tests.analysis.tables import right_on
from tests.toys import toy_entry
from tools import pages, results


def test_results_differences_names_the_cell():
    board = pd.DataFrame({"cascade": [88.0, 87.0], "exit 1": [float("nan"), 70.0]}, index=["one", "two"])
    other = board + pd.DataFrame({"cascade": [0.1, 0.5], "exit 1": [0.0, 0.0]}, index=["one", "two"])
    assert results._differences(board, other) == ["two, cascade: 87.00 is published, 87.50 came out"]
    assert results._differences(board, board) == []


PUBLISHED = {"val": right_on((2, 4), (0, 1)), "test": right_on((2, 3), (0, 1))}
ENTRY = toy_entry(
    "resnet18_2exits-spp-toy-s1",
    model="resnet18_2exits",
    predictions=dict.fromkeys(PUBLISHED, StoredFile("net/file", "0" * 64, 1)),
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


def test_results_main_writes_tables_that_agree(recompute, tmp_path):
    untrained = replace(ENTRY, name="resnet18-avg-toy", status="not trained", weights=None)
    assert recompute(PUBLISHED, ENTRY, untrained) == 0
    board = (tmp_path / "results" / "scoreboard.md").read_text()
    assert "| resnet18_2exits-spp-toy | 1 | 50.00 | 75.00 |" in board  # without its seed, and how many they are
    written = {path.name for path in (tmp_path / "results").iterdir()}
    assert written == {"headline.md", "scoreboard.md", "goals.md", "accuracy_cost.png", "accuracy_compute.png"}
    assert board in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("computed", "message"),
    [
        ({**PUBLISHED, "test": right_on((2, 4), (0, 1))}, "exit 2 on test: 75.00% is published, 100.00% came out"),
        # Each exit as right as before, but the first one sure of its mistakes.
        ({**PUBLISHED, "test": right_on((2, 3), (2, 3))}, "cascade: 75.00 is published, 50.00 came out"),
    ],
)
def test_results_main_names_differences_and_writes_nothing(recompute, tmp_path, capsys, computed, message):
    assert recompute(computed, ENTRY) > 0
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*.*")} == {"README.md"}


def test_results_main_chooses_on_published_validation(recompute):
    # As right as published, exit by exit, but a threshold chosen here would let nobody leave.
    assert recompute({**PUBLISHED, "val": right_on((2, 4), (2, 3))}, ENTRY) == 0
