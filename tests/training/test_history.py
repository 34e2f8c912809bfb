import pandas as pd
import pytest

from eeutils.errors import IntegrityError
from eeutils.training import History

ROWS = ({"epoch": 1, "train_loss": 2.25, "seconds": 1.0}, {"epoch": 2, "train_loss": 1 / 3, "seconds": 2.5})


def test_history_frame_has_a_row_per_epoch():
    frame = History(ROWS).frame()
    assert (frame.index.name, frame.index.tolist()) == ("epoch", [1, 2])
    assert frame["train_loss"].tolist() == [2.25, 1 / 3]


def test_history_repr_is_one_line():
    measured = tuple({**row, "val_accuracy_exit1": 0.25, "val_accuracy_exit2": row["epoch"] / 3} for row in ROWS)
    assert repr(History(measured)) == "History(2 epochs, validation accuracy at the end 25.00% / 66.67%)"
    assert repr(History(())) == "History(0 epochs)"


def test_history_is_saved_to_six_digits(tmp_path):
    path = str(tmp_path / "new" / "history.csv")
    History(ROWS).save_csv(path)
    pd.testing.assert_frame_equal(History.load_csv(path).frame(), History(ROWS).frame(), rtol=1e-5)


NONE = [b"", b"<html>not found</html>", b"\xff\xfe\x00", b"loss\n0.5\n"]
WRONG = [
    b"one,0.5",
    b"1,x",
    b"1,",
    b"1,inf",
    b"1e400,0.5",
    b"1e30,0.5",
    b"1.5,0.5",
    b"2,0.5",
    b"1,0.5\n1,0.5",
    b"1,True",
]


@pytest.mark.parametrize("content", [*NONE, *(b"epoch,loss\n" + row + b"\n" for row in WRONG)])
def test_history_refuses_another_file(tmp_path, content):
    (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"history\.csv"):
        History.load_csv(tmp_path / "history.csv")
