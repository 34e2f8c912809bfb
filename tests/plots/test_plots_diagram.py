"""Diagrams say what the objects behind them say."""

import torch

from eeutils.analysis import Predictions, ThresholdPolicy, decide
from eeutils.analysis.costs import measure_costs
from eeutils.models import create_model
from eeutils.plots import plot_network, plot_poolings, plot_shrinking_batch


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_plot_network_shows_units_maps_and_shares():
    net = create_model("resnet18_3exits", width=2)

    shown = texts(plot_network(net, (3, 32, 32)))

    costs = measure_costs(net, (3, 32, 32)).cumulative_macs
    assert {"exit 1", "exit 2", "last", *map(str, range(len(net.units)))} <= set(shown)
    assert [f"{share:.0%}" for share in (costs / costs[-1]).tolist()] == [text for text in shown if "%" in text]
    assert [text for text in shown if "x" in text and "ch." in text][-1] == "4 x 4\n16 ch."


def test_plot_network_names_a_lone_exit_classifier():
    assert "classifier" in texts(plot_network(create_model("resnet18", width=2, in_channels=1), (1, 16, 16)))


def test_plot_poolings_counts_values():
    titles = [ax.get_title() for ax in plot_poolings(torch.rand(8, 8)).axes]

    assert [title.split("\n")[1] for title in titles] == ["64 values", "1 value", "1 value", "4 values", "16 values"]


def test_plot_shrinking_batch_counts_images():
    logits = torch.tensor([[[9.0, 0], [9, 0], [0, 0], [0, 0]], [[9.0, 0], [9, 0], [9, 0], [0, 0]], [[9.0, 0]] * 4])
    table = Predictions(logits, torch.zeros(4, dtype=torch.int64), torch.tensor([1.0, 2, 3], dtype=torch.float64))

    shown = texts(plot_shrinking_batch(decide(table, ThresholdPolicy(0.9)), batch_size=4))

    assert shown == ["4", "2 leave", "2", "1 leave", "1", "1 leave"]
