"""What happened in a training run, epoch by epoch."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eeutils.errors import IntegrityError
from eeutils.files import atomic_path


@dataclass(frozen=True)
class History:
    """One row per epoch.

    Columns: `epoch` (1 is the first), `learning_rate` at its end, `train_loss` (weighted), `train_loss_exit1`, ...,
    `val_accuracy_exit1`, ... (0 to 1), `images_per_second` and `seconds` (training and validation).
    """

    rows: tuple[dict[str, float], ...]

    def __repr__(self) -> str:
        last = self.rows[-1] if self.rows else {}
        shares = [f"{share:.2%}" for name, share in last.items() if name.startswith("val_accuracy")]
        ends = f", validation accuracy at the end {' / '.join(shares)}" if shares else ""
        return f"{type(self).__name__}({len(self.rows)} epochs{ends})"

    def frame(self) -> pd.DataFrame:
        """The rows as a DataFrame with the epoch as index."""
        return pd.DataFrame(list(self.rows)).astype({"epoch": int}).set_index("epoch")

    def save_csv(self, path: Path | str) -> None:
        """Write the rows as CSV, six digits per number.

        Raises:
            StorageError: if the file cannot be written.
        """
        with atomic_path(Path(path)) as temporary:
            self.frame().to_csv(temporary, float_format="%.6g")

    @staticmethod
    def load_csv(path: Path | str) -> "History":
        """Read what `save_csv` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            IntegrityError: if it is not a history.
        """
        try:
            return History(tuple(pd.read_csv(path).astype({"epoch": int}).to_dict("records")))
        except (KeyError, ValueError) as error:
            raise IntegrityError(f"{path} is no history of a training run: {error!r}") from error
