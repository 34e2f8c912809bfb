"""Losses and accuracies of a training run, epoch by epoch, and how its progress bar shows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm import tqdm

from eeutils.errors import require
from eeutils.files import atomic_path, reading


@dataclass(frozen=True)
class History:
    """One row per epoch.

    Columns: `epoch` (from 1), `learning_rate` at its end, `train_loss` (the sum that is minimised), `train_loss_exit1`,
    ..., `val_accuracy_exit1`, ... (0 to 1), `images_per_second` and `seconds` (training and validation).
    """

    rows: tuple[dict[str, float], ...]

    def __repr__(self) -> str:
        last = self.rows[-1] if self.rows else {}
        shares = [f"{share:.2%}" for name, share in last.items() if name.startswith("val_accuracy")]
        ends = f", validation accuracy at the end {' / '.join(shares)}" if shares else ""
        return f"{type(self).__name__}({len(self.rows)} epochs{ends})"

    def frame(self) -> pd.DataFrame:
        """Return the rows as a DataFrame indexed by epoch."""
        return pd.DataFrame(list(self.rows)).astype({"epoch": int}).set_index("epoch")

    def save_csv(self, path: Path | str) -> None:
        """Write the rows as CSV, six digits per number."""
        with atomic_path(Path(path)) as temporary:
            self.frame().to_csv(temporary, float_format="%.6g")

    @staticmethod
    def load_csv(path: Path | str) -> "History":
        """Read what `save_csv` wrote."""
        with reading(path):
            frame = pd.read_csv(path).astype({"epoch": float})
            numbers = frame.select_dtypes("number")
            epochs_fit = np.array_equal(frame["epoch"], np.arange(1, len(frame) + 1))
            usable = epochs_fit and numbers.shape == frame.shape and np.isfinite(numbers).all(axis=None)
            require(usable, "its columns must be finite numbers, and its epochs 1, 2, ...")
            return History(tuple(frame.astype({"epoch": int}).to_dict("records")))


def by_exit(name: str, values: Tensor) -> dict[str, float]:
    """Name the values of all exits (E,) as columns; a value () belongs to no exit."""
    return {f"{name}_exit{number}": value for number, value in enumerate(values.tolist(), 1)} if values.ndim else {}


def show(bar: tqdm, loss: float, rows: Sequence[dict[str, float]]) -> None:
    """Show the loss and the latest validation accuracies in the bar."""
    last = rows[-1].items() if rows else ()
    accuracy = [f"{share:.1%}" for name, share in last if name.startswith("val_accuracy")]
    bar.set_postfix_str(" ".join([f"loss {loss:.3f}", *["val"] * bool(accuracy), *accuracy]))
