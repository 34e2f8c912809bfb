"""One row a network: what all its exits achieve, alone, together and as a cascade."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from eeutils.analysis.metrics import accuracy_of, accuracy_per_exit, ensemble_probs, ensemble_weights
from eeutils.analysis.policies import decide
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import choose_for_accuracy

MAX_DROP = 0.005
"""What a cascade in the scoreboard may lose on validation against its last exit: half a point."""


@dataclass(frozen=True)
class Evaluation:
    """A network's predictions: `val` to choose by, `test` to report on."""

    val: Predictions
    test: Predictions


def scoreboard(networks: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Test accuracies in percent and costs of networks by name.

    Ensemble weights and thresholds are chosen on validation. The cascade loses at most `MAX_DROP` there; its cost is a
    share of its own network's.
    """
    board = pd.DataFrame({name: _row(evaluation) for name, evaluation in networks.items()}).T.rename_axis("network")
    early = sorted(set(board) - set(_COLUMNS), key=lambda column: int(column.removeprefix("exit ")))
    return board[[*early, *(column for column in _COLUMNS if column in board)]]


def _row(evaluation: Evaluation) -> dict[str, float]:
    val, test = evaluation.val, evaluation.test
    accuracies = (100 * accuracy_per_exit(test)).tolist()
    row = {f"exit {number}": value for number, value in enumerate(accuracies[:-1], 1)}
    row |= {"last exit": accuracies[-1], "MACs (M)": float(test.costs[-1]) / 1e6}
    if test.num_exits > 1:
        weighted = ensemble_probs(test, "weighted", ensemble_weights(val))
        cascade = decide(test, choose_for_accuracy(val, MAX_DROP).policy)
        row["mean ensemble"] = 100 * accuracy_of(ensemble_probs(test), test.labels)
        row["weighted ensemble"] = 100 * accuracy_of(weighted, test.labels)
        row["cascade"] = 100 * cascade.accuracy
        row["cascade cost (%)"] = 100 * cascade.relative_cost
    return row


# After those of the early exits.
_COLUMNS = (
    "last exit",
    "mean ensemble",
    "weighted ensemble",
    "cascade",
    "cascade cost (%)",
    "MACs (M)",
)
