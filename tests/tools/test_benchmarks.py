from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from eeutils import MultiExitNet, Predictions, ThresholdPolicy, choose_thresholds, decide, load_data, predict
from eeutils.analysis import SDN_THRESHOLDS, Choice, exit_costs, measure_costs
from eeutils.engines import PreparedNet
from eeutils.models import drop_exits, resnet18
from eeutils.training import History
from tests.analysis.tables import answering
from tests.toys import random_split, toy_entry
from tools.benchmarks import ablation, cascade, exit_placement, report, sdn_evaluation, threshold_choice
from tools.benchmarks import time_to_accuracy as time_benchmark


@pytest.fixture
def net() -> MultiExitNet:
    """Three exits with fresh weights, but sure of something, so that thresholds matter."""
    torch.manual_seed(6)
    net = resnet18(width=2, exit_after=(2, 4)).eval()
    for head in net.exits.values():
        torch.nn.init.normal_(head[-1].weight, std=2)
    return net


def with_right(right: list[list[bool]], sure: list[list[float]], costs: list[float]) -> Predictions:
    """Exits that are right on these images; `sure` is the margin between their logits."""
    return answering([[not each for each in of_exit] for of_exit in right], [0] * len(right[0]), costs, sure)


def test_publish_refreshes_pages_after_results_alone(tmp_path, monkeypatch, capsys):
    results, refreshed = tmp_path / "results", []
    monkeypatch.setattr(report, "RESULTS", results)
    monkeypatch.setattr(report, "refresh_pages", lambda: refreshed.append((results / "speed.md").read_text("utf-8")))
    report.publish("not this", tmp_path / "elsewhere" / "speed.md")
    report.publish("± 2 µs", results / "speed.md")
    assert refreshed == ["± 2 µs"]
    assert capsys.readouterr().out == "not this\n± 2 µs\n"


def test_ablation_compares_all_variants_at_the_accuracy_of_the_first(monkeypatch):
    monkeypatch.setattr(ablation, "MAX_DROP", 0.25)
    unchanged = with_right([[True, False, False, False], [True, True, True, False]], [[3, 1, 1, 1], [2] * 4], [10, 40])
    cheaper = with_right([[True, True, False, False], [True] * 4], [[3, 3, 1, 1], [2] * 4], [20, 80])
    hopeless = with_right([[False] * 4, [True, False, False, False]], [[1] * 4, [2] * 4], [10, 40])
    table = ablation.compare({"as it is": unchanged, "cheaper": cheaper, "hopeless": hopeless})
    assert table[["exit 1", "exit 2"]].to_numpy().tolist() == [[0.25, 0.75], [0.5, 1.0], [0.0, 0.25]]
    # Asked for 50 %. The first lets the one image go that exit 1 is sure of and gets 3 of 4 right: (10 + 3 * 40) / 4.
    # The second leaves with everything: both right images at exit 1 are enough.
    assert table["cost"].iloc[:2].tolist() == [pytest.approx(32.5 / 40), pytest.approx(20 / 40)]
    assert pd.isna(table["cost"].iloc[2])
    assert table["whole"].tolist() == [1.0, 2.0, 1.0]


def test_ablation_runs_and_resumes(tmp_path, monkeypatch):
    few = [name for name in ablation.VARIANTS if any(word in name for word in ("as it is", "backbone", "70 %"))]
    monkeypatch.setattr(ablation, "VARIANTS", {name: ablation.VARIANTS[name] for name in few})
    words = f"--data digits --width 2 --epochs 1 --runs {tmp_path}/runs --results {tmp_path} --seeds 3".split()
    ablation.main(words)
    first = pd.read_csv(tmp_path / "ablation.csv")
    (tmp_path / "ablation.csv").unlink()
    monkeypatch.setattr("eeutils.training.loop._Run.train_epoch", None)  # finished runs are only read
    ablation.main(words)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "ablation.csv"), first)
    assert (first["changed"].tolist(), first["seed"].tolist()) == (few, [3] * len(few))


def test_hard_images_have_the_highest_losses():
    data = load_data("digits")
    net = resnet18(width=2, **ablation._fitting(data))
    losses = cross_entropy(predict(net, data.train).logits[-1], data.train.labels, reduction="none")
    hard = ablation._hard_images(net, data.train, torch.device("cpu"))
    kept = losses >= losses.sort(descending=True).values[len(hard) - 1]
    assert len(hard) == round(0.7 * len(data.train))
    assert hard.images.equal(data.train.images[kept])
    assert hard.labels.equal(data.train.labels[kept])


def test_cascade_benchmark_times_and_judges_all_on_the_same_images(net):
    data = load_data("digits")
    small = replace(data, test=data.test.take(slice(0, 40)), val=data.val.take(slice(0, 60)))
    plain, networks = drop_exits(net, net.exit_after[:-1]), []
    for name, each in {"plain net": plain, "net": net}.items():
        ready = PreparedNet(each, precision="fp32")
        val = predict(ready, small.val) if name == "net" else None
        networks.append(cascade.Network(name, "torch fp32", ready, predict(ready, small.test), val))
    contenders = [each for network in networks for each in cascade.contenders_of(network, small, size=8)]
    cascade.time_all(contenders, [images for images, _ in small.test.batches(8)], repeats=2)
    rows = cascade.summary(contenders, 8, 40).set_index("network")
    assert "net, half of the multiply-adds" in rows.index
    assert all(len(each.seconds) == 2 and len(each.seconds[0]) == 5 for each in contenders)
    assert rows.loc["plain net", "over plain"] == "1.00 (1.00 to 1.00)"
    assert rows.loc["plain net", "accuracy"] == f"{predict(plain, small.test).accuracy[-1]:.2%}"


def test_cascade_benchmark_writes_report_rows_and_figure(tmp_path, monkeypatch, net):
    networks = {"three": net, "one": resnet18(width=2).eval()}
    monkeypatch.setattr(cascade, "load_weights", networks.__getitem__)
    monkeypatch.setattr(cascade, "weight_entry", lambda name: toy_entry(name, data="digits"))
    words = ["--weights", "three", "--smaller", "one", "--many-exits", "None", "--engines", "torch fp32", "torch int8"]
    words += ["--batch-sizes", "1", "8", "--images", "20", "--repeats", "1", "--judged", "30"]
    cascade.main([*words, "--out", str(tmp_path / "report.md")])
    assert "int8" not in (tmp_path / "report.md").read_text(), "torch has no int8"
    rows = pd.read_csv(tmp_path / "report.csv")
    assert set(rows["batch"]) == {1, 8}
    assert {"plain three", "plain one"} < set(rows["network"])
    assert set(rows["engine"]) == {cascade.EAGER, "torch fp32"}
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("places", [(8,), (2, 4, 8)])
def test_exit_placement_parts_a_table_as_if_there_were_no_other_exits(places):
    net, split = resnet18(width=2, exit_after=range(8)).eval(), random_split(5)
    expected = predict(drop_exits(net, [unit for unit in net.exit_after if unit not in places]), split)
    part = exit_placement.part_of(predict(net, split), measure_costs(net, (3, 8, 8)), places)
    torch.testing.assert_close(part.logits, expected.logits)
    assert torch.equal(part.costs, expected.costs)


def test_exit_placement_trains_once_and_writes_table_and_figure(tmp_path):
    words = ["--data", "digits", "--recipe", "digits", "--width", "2", "--epochs", "1", "--device", "cpu"]
    words += ["--run", str(tmp_path / "run"), "--results", str(tmp_path)]
    exit_placement.main(words)
    table, trained = (tmp_path / "exit_placement.csv").read_text(), (tmp_path / "run" / "checkpoint.pt").read_bytes()
    assert (tmp_path / "exit_placement.png").read_bytes().startswith(b"\x89PNG")
    exit_placement.main(words)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == trained
    assert (tmp_path / "exit_placement.csv").read_text() == table


def test_one_at_a_time_agrees_with_the_table(net):
    split, costs = random_split(12), exit_costs(net, (3, 8, 8))
    predictions = predict(net, split)
    slow = sdn_evaluation.one_at_a_time(net, split, SDN_THRESHOLDS, costs)
    fast = sdn_evaluation.from_table(predictions, SDN_THRESHOLDS)["most_confident"]
    torch.testing.assert_close((slow.accuracy, slow.cost), (fast.accuracy, fast.cost))
    assert len(fast.cost.unique()) > 2  # else this shows little
    for threshold, accuracy, cost in zip(SDN_THRESHOLDS, slow.accuracy, slow.cost, strict=True):
        decisions = decide(predictions, ThresholdPolicy(threshold), "most_confident")
        assert (accuracy.item(), cost.item()) == pytest.approx((decisions.accuracy, decisions.mean_cost))


def test_sdn_evaluation_writes_its_report(tmp_path, monkeypatch, net):
    data = load_data("digits")
    monkeypatch.setattr(sdn_evaluation, "load_weights", lambda name, device: net.to(device))
    monkeypatch.setattr(sdn_evaluation, "load_predictions", lambda name, split: predict(net, getattr(data, split)))
    monkeypatch.setattr(sdn_evaluation, "weight_entry", lambda name: toy_entry(name, data="digits"))
    sdn_evaluation.main(["--weights", "any", "--images", "3", "--repeats", "1", "--out", str(tmp_path / "report.md")])
    assert "s for 3 images" in (tmp_path / "report.md").read_text()


def test_judged_chooses_on_one_half_and_judges_on_the_other():
    seen = []

    def leave_at_once(validation: Predictions) -> Choice:
        seen.append(len(validation.labels))
        return Choice.of(ThresholdPolicy(0.0), validation)

    table = with_right([[True] * 6 + [False] * 2, [True] * 8], [[2] * 8, [5] * 8], [1, 4])
    cuts = threshold_choice.judged(table, {"at once": leave_at_once}, repeats=3)
    assert seen == [4] * 3
    assert (cuts["lost_there"] + cuts["lost"]).tolist() == [0.5] * 3  # two of eight, wherever they fall
    assert cuts["cost"].tolist() == [0.25] * 3


def test_all_of_it_spends_the_whole_budget():
    table = with_right([[True] * 4] * 2, [[1, 2, 3, 4], [5] * 4], [1, 4])
    assert choose_thresholds(table, budget=0.7).relative_cost == 0.25
    assert threshold_choice.all_of_it(table, 0.7).relative_cost == 0.625  # two of four stay
    assert threshold_choice.all_of_it(table, 1.0).relative_cost == 1


def test_threshold_choice_counts_the_networks_that_can_keep_a_budget(tmp_path, monkeypatch):
    small = with_right([[True, True, False, True] * 10, [True] * 40], [[4, 3, 2, 1] * 10, [5] * 40], [1, 4])
    tables = {"small": small, "large": replace(small, costs=torch.tensor([0.55, 1.0]).double())}
    monkeypatch.setattr(threshold_choice, "load_predictions", lambda name, split: tables[name])
    threshold_choice.main(["--weights", *tables, "--repeats", "2", "--out", str(tmp_path / "choice.md")])
    *_, for_budget = (tmp_path / "choice.md").read_text().split("\n\n")
    rows = [line.split(" | ")[:3] for line in for_budget.splitlines()[2 :: len(threshold_choice.FOR_BUDGET)]]
    can = {"40%": "1", "50%": "1", "60%": "2", "75%": "2", "100%": "2"}
    assert rows == [["| 2", budget, networks] for budget, networks in can.items()]


@pytest.mark.parametrize(
    ("seconds", "steady"), [((9, 2, 3, 7), 3 + 2 + 3 + 7), ((9, 2), 2 + 2), ((1, 2, 3, 7), 1 + 2 + 3 + 7)]
)
def test_steady_seconds_counts_the_first_epoch_as_the_median(seconds, steady):
    rows = ({"epoch": n, "seconds": each, "images_per_second": 100 * each} for n, each in enumerate(seconds, 1))
    assert time_benchmark.steady_seconds(History(tuple(rows))) == steady


def test_time_to_accuracy_trains_each_seed_and_tests_it_once(tmp_path, monkeypatch):
    data, noted = load_data("digits"), Mock(wraps=predict)
    monkeypatch.setattr(time_benchmark, "matrix_peak", lambda device, dtype: 1e12)  # instead of measuring one
    monkeypatch.setattr(time_benchmark, "load_data", lambda name: data)
    monkeypatch.setattr(time_benchmark, "predict", noted)
    words = ["--data", "digits", "--recipe", "digits", "--width", "2", "--device", "cpu", "--epochs", "1"]
    time_benchmark.main([*words, "--seeds", "2", "--out", str(tmp_path / "report.md")])
    (first, split), (second, again) = (call.args for call in noted.call_args_list)
    assert split is again is data.test
    assert not torch.equal(next(first.parameters()), next(second.parameters()))
    written = Path(tmp_path / "report.md").read_text("utf-8")
    for seed, net in enumerate((first, second)):
        shares = " | ".join(f"{share:.2f}" for share in (100 * predict(net, data.test).accuracy).tolist())
        assert f"| seed {seed} | {shares}" in written
