import pandas as pd
import pytest

from eeutils.errors import IntegrityError
from eeutils.training import History

ROWS = ({"epoch": 1, "train_loss": 2.25, "seconds": 1.0}, {"epoch": 2, "train_loss": 1 / 3, "seconds": 2.5})


def test_history_is_saved_to_six_digits(tmp_path):
    path = str(tmp_path / "new" / "history.csv")
    History(ROWS).save_csv(path)
    frame = History(ROWS).frame()
    assert (frame.index.name, frame.index.tolist()) == ("epoch", [1, 2])
    assert frame["train_loss"].tolist() == [2.25, 1 / 3]
    pd.testing.assert_frame_equal(History.load_csv(path).frame(), frame, rtol=1e-5)


@pytest.mark.parametrize(
    "content",
    [b"<html>not found</html>", b"\xff\xfe\x00", b"loss\n0.5\n"]
    + [b"epoch,loss\n" + row for row in (b"1,\n", b"1,inf\n", b"1.5,0.5\n", b"1,0.5\n1,0.5\n", b"1,True\n")],
)
def test_history_refuses_another_file(tmp_path, content):
    (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"history\.csv"):
        History.load_csv(tmp_path / "history.csv")
