from dataclasses import replace
from itertools import combinations

import pandas as pd
import pytest
import torch

from eeutils.analysis.costs import exit_costs, measure_costs
from eeutils.analysis.predictions import predict
from eeutils.data import Normalization, Split, load_data
from eeutils.engines import PreparedNet
from eeutils.models import drop_exits, resnet18
from eeutils.weights import WeightEntry
from tools.benchmarks import cascade, exit_placement


def make_split(count: int, size: int = 8) -> Split:
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Split(pixels, torch.arange(count) % 10, tuple(map(str, range(10))), normalization)


@pytest.fixture
def three_exits():
    torch.manual_seed(0)
    return resnet18(width=2, exit_after=(2, 4)).eval()


def test_every_contender_is_timed_and_judged_on_the_same_images(three_exits):
    data = load_data("digits")
    small = replace(data, test=data.test.take(slice(0, 40)), val=data.val.take(slice(0, 60)))
    plain = drop_exits(three_exits, three_exits.exit_after[:-1])
    networks = []
    for name, net in {"plain net": plain, "net": three_exits}.items():
        ready = PreparedNet(net, precision="fp32")
        val = predict(ready, small.val) if name == "net" else None
        networks.append(cascade.Network(name, "torch fp32", ready, predict(ready, small.test), val))
    contenders = [each for network in networks for each in cascade.contenders_of(network, small, size=8)]
    batches = [images for images, _ in small.test.batches(8)]

    cascade.time_all(contenders, batches, repeats=2)
    rows = cascade.summary(contenders, 8, 40).set_index("network")

    assert rows.index[0] == "plain net"
    assert "net, half of the multiply-adds" in rows.index
    assert all(len(each.seconds) == 2 and len(each.seconds[0]) == 5 for each in contenders)
    assert rows.loc["plain net", "over plain"] == "1.00 (1.00 to 1.00)"
    assert rows.loc["plain net", "accuracy"] == f"{predict(plain, small.test).accuracy[-1]:.2%}"
    assert (rows["of the limit"] != "").tolist() == [False] + [True] * (len(rows) - 1)


def test_the_command_writes_report_rows_and_figure(tmp_path, monkeypatch, three_exits, capsys):
    networks = {"three": three_exits, "one": resnet18(width=2).eval()}
    entry = WeightEntry.__new__(WeightEntry)
    object.__setattr__(entry, "data", "digits")
    monkeypatch.setattr(cascade, "load_weights", lambda name: networks[name])
    monkeypatch.setattr(cascade, "weight_entry", lambda name: entry)
    out = tmp_path / "new" / "report.md"
    words = ["--weights", "three", "--smaller", "one", "--many-exits", "None", "--engines", "torch fp32", "torch int8"]
    words += ["--batch-sizes", "1", "8", "--images", "20", "--repeats", "1", "--judged", "30"]
    cascade.main([*words, "--out", str(out)])
    report = out.read_text()
    assert report in capsys.readouterr().out
    assert "**Batches of 1**" in report
    assert "**Accuracy of every exit**" in report
    assert f"torch {torch.__version__}" in report
    assert "int8" not in report, "torch has no int8"
    rows = pd.read_csv(out.with_suffix(".csv"))
    assert set(rows["batch"]) == {1, 8}
    assert {"plain three", "plain one"} < set(rows["network"])
    assert set(rows["engine"]) == {cascade.EAGER, "torch fp32"}
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_report_that_cannot_be_written_is_shown_before_the_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cascade, "run", lambda options: [("what was measured", None)])
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(SystemExit, match="error: "):
        cascade.main(["--out", str(tmp_path / "file" / "report.md")])

    assert "what was measured" in capsys.readouterr().out


def test_weights_that_are_not_there_end_the_command_with_a_message():
    with pytest.raises(SystemExit, match=r"error: .*unheard-of"):
        cascade.main(["--weights", "unheard-of"])


@pytest.fixture
def every_exit():
    torch.manual_seed(1)
    return resnet18(width=2, exit_after=range(8)).eval()


@pytest.mark.parametrize("places", [(8,), (0, 8), (2, 4, 8)])
def test_a_part_of_the_table_is_that_of_the_network_without_the_other_exits(every_exit, places):
    split = make_split(5)
    other = drop_exits(every_exit, [unit for unit in every_exit.exit_after if unit not in places])
    expected = predict(other, split)
    part = exit_placement.part_of(predict(every_exit, split), measure_costs(every_exit, (3, 8, 8)), places)
    torch.testing.assert_close(part.logits, expected.logits)
    assert torch.equal(part.costs, expected.costs)


def test_all_single_exits_and_pairs_are_compared(every_exit):
    predictions, costs = predict(every_exit, make_split(40)), measure_costs(every_exit, (3, 8, 8))
    table = exit_placement.compare(predictions, costs)
    expected = {str(unit) for unit in range(8)} | {f"{a}+{b}" for a, b in combinations(range(8), 2)}
    assert set(table["exit_after"]) == expected
    assert len(table) == len(expected)
    for _, rows in table.groupby("early_exits"):
        assert rows["cost_at_drop"].is_monotonic_increasing
    floor = float(predictions.accuracy[-1]) - exit_placement.MAX_DROP
    assert (table["accuracy_at_drop"] >= floor - 1e-9).all()
    plain = exit_costs(drop_exits(every_exit, range(8)), (3, 8, 8))[-1]
    with_two = exit_costs(drop_exits(every_exit, [0, 1, 3, 5, 6, 7]), (3, 8, 8))[-1]
    heads = table.set_index("exit_after")["head_cost"]
    assert heads["2+4"] == pytest.approx(float(with_two / plain) - 1)
    alone = table.set_index("exit_after")["accuracy_at_budget"]
    assert alone.notna()["0"]
    assert alone.isna()["7"]  # by unit 7 more than half is spent


def test_the_placement_command_trains_once_and_writes_its_table_and_figure(tmp_path, capsys):
    words = ["--data", "digits", "--recipe", "digits", "--width", "2", "--epochs", "1", "--device", "cpu"]
    words += ["--run", str(tmp_path / "run"), "--results", str(tmp_path / "results")]
    exit_placement.main(words)
    first = (tmp_path / "results" / "exit_placement.csv").read_text()
    assert (tmp_path / "results" / "exit_placement.png").read_bytes().startswith(b"\x89PNG")
    assert "| 2+4 |" in capsys.readouterr().out  # the ends of stages are always among the rows
    trained = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    exit_placement.main(words)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == trained  # nothing was trained anew
    assert (tmp_path / "results" / "exit_placement.csv").read_text() == first


def test_a_recipe_that_does_not_exist_ends_the_placement_command_with_a_message(tmp_path):
    with pytest.raises(SystemExit, match="'fast'"):
        exit_placement.main(["--data", "digits", "--recipe", "fast", "--run", str(tmp_path)])
