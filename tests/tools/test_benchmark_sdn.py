import pytest
import torch

from eeutils.analysis.costs import exit_costs
from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import SDN_THRESHOLDS, ThresholdPolicy
from eeutils.analysis.predictions import Predictions, predict
from eeutils.data import Normalization, Split, load_data
from eeutils.models import resnet18
from eeutils.weights import WeightEntry
from tools.benchmarks import sdn_evaluation as bench


def make_split(count: int, size: int = 8) -> Split:
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Split(pixels, torch.arange(count) % 10, tuple(map(str, range(10))), normalization)


@pytest.fixture
def net():
    """Fresh weights, but heads that are sure of something, so that thresholds matter."""
    torch.manual_seed(6)
    net = resnet18(width=2, exit_after=(2, 4)).eval()
    for head in net.exits.values():
        torch.nn.init.normal_(head[-1].weight, std=2)
    return net


def test_one_at_a_time_agrees_with_the_table(net):
    split, costs = make_split(12), exit_costs(net, (3, 8, 8))
    predictions = predict(net, split)
    slow = bench.one_at_a_time(net, split, SDN_THRESHOLDS, costs)
    fast = bench.from_table(predictions, SDN_THRESHOLDS)
    torch.testing.assert_close(slow.accuracy, fast["most_confident"].accuracy)
    torch.testing.assert_close(slow.cost, fast["most_confident"].cost)
    assert len(fast["last"].cost.unique()) > 2  # else this shows little
    assert not torch.equal(fast["last"].accuracy, fast["most_confident"].accuracy)
    for threshold, accuracy, cost in zip(SDN_THRESHOLDS, slow.accuracy, slow.cost, strict=True):
        decisions = decide(predictions, ThresholdPolicy(threshold), "most_confident")
        assert (accuracy.item(), cost.item()) == pytest.approx((decisions.accuracy, decisions.mean_cost))


def test_one_at_a_time_stops_computing_once_an_exit_is_sure(net):
    split, costs = make_split(5), exit_costs(net, (3, 8, 8))
    calls = []
    net.units[-1].register_forward_hook(lambda *_: calls.append(1))
    assert bench.one_at_a_time(net, split, [0.0], costs).cost.tolist() == [float(costs[0])]
    assert calls == []
    assert bench.one_at_a_time(net, split, [1.1], costs).cost.tolist() == [float(costs[-1])]
    assert len(calls) == 5


def test_measure_runs_both_ways_and_they_agree(net):
    race = bench.measure(net, make_split(9), part=4, repeats=2)
    assert race.agree
    assert (race.part, race.images) == (4, 9)
    for seconds in (race.original, race.passed, race.swept):
        assert seconds.shape == (2,)
        assert (seconds > 0).all()


def test_sections_take_a_network_with_a_dear_first_exit(net):
    val, test = (predict(net, make_split(count)) for count in (30, 40))
    dear = torch.tensor([6.0, 8.0, 10.0]).double()
    for section in bench.SECTIONS.values():
        section(*(Predictions(table.logits, table.labels, dear) for table in (val, test)))


def test_main_writes_its_report(tmp_path, monkeypatch, net, capsys):
    data = load_data("digits")
    entry = WeightEntry.__new__(WeightEntry)
    object.__setattr__(entry, "data", "digits")
    monkeypatch.setattr(bench, "load_weights", lambda name, device: net.to(device))
    monkeypatch.setattr(bench, "load_predictions", lambda name, split: predict(net, getattr(data, split)))
    monkeypatch.setattr(bench, "weight_entry", lambda name: entry)
    out = tmp_path / "new" / "report.md"
    bench.main(["--weights", "any", "--images", "3", "--repeats", "1", "--out", str(out)])
    report = out.read_text()
    assert report in capsys.readouterr().out
    assert "s for 3 images" in report
    assert "Ratio an image" in report
    assert "| all |" in report
