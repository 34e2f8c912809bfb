from dataclasses import replace
from itertools import combinations

import pytest
import torch

from eeutils.analysis.costs import exit_costs, measure_costs
from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import ThresholdPolicy
from eeutils.analysis.predictions import predict
from eeutils.data import Normalization, Split, load_data
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


def test_the_speed_up_that_stages_allow_by_hand():
    # Stages take 1, 2 and 3 s; all images come to the first, half to the second, a quarter to the third.
    stages = torch.tensor([[1.0, 2.0, 3.0]]).double()
    allowed = cascade.allowed_by_stages(stages, torch.tensor([0, 0, 1, 2]))
    assert allowed.tolist() == [6 / (1 + 2 / 2 + 3 / 4)]


def test_everything_is_measured_on_the_same_images(three_exits, monkeypatch):
    split, plain = make_split(6), resnet18(width=2).eval()
    predictions = predict(three_exits, split)
    threshold = float(predictions.confidence[0].median())
    rules = {"some leave": ThresholdPolicy(threshold), "all leave": ThresholdPolicy(0.0)}
    timing = cascade.measure(three_exits, plain, rules, split, 4, 2, predictions.costs)
    contenders = [cascade.PLAIN, cascade.WHOLE, *rules, "plain network, in bf16"]
    assert list(timing.seconds) == contenders
    assert set(timing.exit_index) == set(rules)
    assert all(seconds.shape == (2,) for seconds in timing.seconds.values())
    assert timing.stage_seconds.shape == (2, 3)
    assert (timing.stage_seconds > 0).all()
    assert torch.equal(timing.predicted[cascade.WHOLE], predictions.predicted[-1])
    assert torch.equal(timing.predicted["all leave"], predictions.predicted[0])
    assert "accuracy" not in cascade.summary(timing), "six images tell nothing of it"
    monkeypatch.setattr(cascade, "_ENOUGH_TO_JUDGE", 6)
    rows = cascade.summary(timing)
    assert rows.index.tolist() == contenders
    full, first = predictions.costs[-1], predictions.costs[0]
    assert rows.loc["all leave", "multiply-adds allow"] == f"{full / first:.2f}"
    assert rows.loc[cascade.WHOLE, "speed-up"] == "1.00 (1.00 to 1.00)"
    over_plain = (timing.seconds[cascade.PLAIN] / timing.seconds["all leave"]).median()
    assert (rows.loc[cascade.PLAIN, "over plain"], rows.loc["all leave", "over plain"]) == ("1.00", f"{over_plain:.2f}")
    assert rows.loc["all leave", "accuracy"] == f"{predictions.accuracy[0]:.2%}"


def test_one_of_the_cascades_computes_in_bf16_too(three_exits):
    split, plain = make_split(6), resnet18(width=2).eval()
    validation = predict(three_exits, split)
    rules = cascade.policies(validation, validation.costs)
    timing = cascade.measure(three_exits, plain, rules, split, 4, 1, validation.costs)
    assert list(timing.seconds)[-2:] == ["plain network, in bf16", "0.5 points allowed, in bf16"]
    assert cascade.summary(timing).loc["0.5 points allowed, in bf16", "reached"] == ""


def test_rules_are_chosen_on_validation_and_a_budget_that_cannot_be_met_is_left_out(three_exits):
    validation = predict(three_exits, make_split(20))
    cheap, dear = torch.tensor([[1.0, 2.0, 10.0], [6.0, 8.0, 10.0]]).double()
    in_time, in_cost = replace(validation, costs=cheap), replace(validation, costs=dear)
    rules = cascade.policies(validation, cheap)
    limits = [f"{points} points allowed" for points in ("0", "0.5", "1")]
    budgets = ["at most 50% of the multiply-adds", "at most 50% of the time"]
    assert list(rules) == limits + budgets
    for name, measured in zip(budgets, (validation, in_time), strict=True):
        assert decide(measured, rules[name]).relative_cost <= 0.5
    assert list(cascade.policies(in_cost, cheap)) == limits + budgets[1:]
    assert list(cascade.policies(validation, dear)) == limits + budgets[:1]


@pytest.mark.parametrize(
    ("plain", "against"), [(["--plain", "one"], "against `one`"), ([], "against itself without early exits")]
)
def test_the_command_writes_its_report(tmp_path, monkeypatch, three_exits, capsys, plain, against):
    data = load_data("digits")
    networks = {"three": three_exits, "one": resnet18(width=2).eval()}
    entry = WeightEntry.__new__(WeightEntry)
    object.__setattr__(entry, "data", "digits")
    monkeypatch.setattr(cascade, "load_weights", lambda name, device: networks[name].to(device))
    monkeypatch.setattr(cascade, "load_predictions", lambda name, split: predict(networks[name], getattr(data, split)))
    monkeypatch.setattr(cascade, "weight_entry", lambda name: entry)
    out = tmp_path / "new" / "report.md"
    words = ["--weights", "three", *plain, "--batch-sizes", "1", "8", "--images", "20", "--repeats", "1"]
    cascade.main([*words, "--out", str(out)])
    report = out.read_text()
    assert report in capsys.readouterr().out
    assert f"`three` {against}, on cpu" in report
    assert "**Batches of 1**, 2 test images" in report
    assert "**Batches of 8**, 20 test images" in report
    assert "1,000 thresholds on 359 images and 3 exits" in report
    assert f"torch {torch.__version__}" in report


def test_a_report_that_cannot_be_written_is_shown_before_the_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cascade, "run", lambda options: "what was measured")
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
    with pytest.raises(SystemExit, match="unknown recipe 'fast'"):
        exit_placement.main(["--data", "digits", "--recipe", "fast", "--run", str(tmp_path)])
