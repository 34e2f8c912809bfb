import pandas as pd
import pytest

from eeutils.errors import IntegrityError, StorageError
from eeutils.training import History

ROWS = ({"epoch": 1, "train_loss": 2.25, "seconds": 1.0}, {"epoch": 2, "train_loss": 1 / 3, "seconds": 2.5})


def test_the_frame_has_one_row_an_epoch():
    frame = History(ROWS).frame()
    assert frame.index.tolist() == [1, 2]
    assert frame.index.name == "epoch"
    assert frame["train_loss"].tolist() == [2.25, 1 / 3]


def test_a_history_is_shown_in_a_line():
    assert repr(History(ROWS)) == "History(2 epochs)"
    measured = tuple({**row, "val_accuracy_exit1": 0.25, "val_accuracy_exit2": row["epoch"] / 3} for row in ROWS)
    assert repr(History(measured)) == "History(2 epochs, validation accuracy at the end 25.00% / 66.67%)"
    assert repr(History(())) == "History(0 epochs)"


def test_a_saved_history_is_read_back_to_six_digits(tmp_path):
    path = str(tmp_path / "new" / "history.csv")
    History(ROWS).save_csv(path)
    back = History.load_csv(path)
    pd.testing.assert_frame_equal(back.frame(), History(ROWS).frame(), rtol=1e-5)


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"history\.csv"):
        History(ROWS).save_csv(tmp_path / "file" / "history.csv")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"epoch,loss\none,0.5\n", b"\xff\xfe\x00"])
def test_a_file_of_something_else_is_an_integrity_error(tmp_path, content):
    (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"history\.csv is no history of a training run"):
        History.load_csv(tmp_path / "history.csv")
