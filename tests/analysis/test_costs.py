import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops import DeformConv2d

from eeutils.analysis.costs import exit_costs, measure_costs
from eeutils.models import MultiExitNet, create_exit, create_model, list_models, resnet18, resnet18_3exits, truncate
from eeutils.models.contracts import checked_answers

IMAGES = torch.zeros(2, 3, 8, 8)


def macs_by_hand(net: MultiExitNet, image_shape: tuple[int, int, int]) -> float:
    """Multiply-adds of one forward pass: kernel elements x outputs, layer by layer, seen by forward hooks."""
    counted = []

    def count(layer: nn.Module, _: tuple, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
            counted.append(kernel * output[0].numel())
        else:
            counted.append(layer.in_features * layer.out_features)

    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    net.eval()(torch.zeros(1, *image_shape))
    for hook in hooks:
        hook.remove()
    return sum(counted)


@settings(max_examples=10, deadline=None)
@given(
    exit_after=st.sets(st.integers(0, 7), max_size=4).map(tuple),
    pool=st.sampled_from(["avg", "spp"]),
    stem=st.sampled_from(["cifar", "imagenet"]),
    image_shape=st.tuples(st.integers(1, 3), st.integers(4, 17), st.integers(4, 17)),
)
def test_costs_are_what_counting_layer_by_layer_gives(exit_after, pool, stem, image_shape):
    net = resnet18(width=2, in_channels=image_shape[0], pool=pool, stem=stem, exit_after=exit_after)
    costs = measure_costs(net, image_shape)
    up_to_each_exit = [truncate(net, index) for index in range(net.num_exits)]
    assert costs.cumulative_macs.tolist() == [macs_by_hand(short, image_shape) for short in up_to_each_exit]
    assert costs.cumulative_params.tolist() == [
        sum(parameter.numel() for parameter in short.parameters()) for short in up_to_each_exit
    ]


def test_a_network_counted_on_paper():
    net = MultiExitNet(
        [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1, stride=2)],
        {0: nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 2)), 1: nn.Sequential(nn.Flatten(), nn.Linear(4 * 9, 2))},
    )
    costs = measure_costs(net, (3, 6, 6))
    assert costs.unit_macs.tolist() == [27 * 4 * 36, 4 * 4 * 9]
    assert costs.exit_macs.tolist() == [144 * 2, 36 * 2]
    assert costs.unit_params.tolist() == [108, 20]
    assert costs.exit_params.tolist() == [290, 74]
    assert costs.cumulative_macs.tolist() == [3888 + 288, 3888 + 288 + 144 + 72]
    assert exit_costs(net, (3, 6, 6)).tolist() == costs.cumulative_macs.tolist()


class Custom(nn.Module):
    """(N, 3, 8, 8) -> (N, 4, 6, 6) by an operator that torch does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = DeformConv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, x.new_zeros(len(x), 18, 6, 6))


class Attention(nn.Module):
    """(N, C, H, W) -> the same, over the H x W places."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        return F.scaled_dot_product_attention(tokens, tokens, tokens).mT.unflatten(2, x.shape[2:])


def test_attention_counts_and_custom_operators_do_not():
    net = MultiExitNet([Custom(), Attention()], {1: nn.Sequential(nn.Flatten(), nn.Linear(144, 2))})
    assert measure_costs(net, (3, 8, 8)).unit_macs.tolist() == [0, 2 * 36 * 36 * 4]


def test_resnet18_costs_what_is_published():
    costs = measure_costs(resnet18(), (3, 32, 32))
    assert costs.cumulative_macs.item() == pytest.approx(555.4e6, rel=1e-4)
    assert costs.cumulative_params.item() == 11_173_962
    after_layers = costs.unit_macs.cumsum(0)[[2, 4, 6]] / costs.cumulative_macs
    assert after_layers.tolist() == pytest.approx([0.275, 0.517, 0.758], abs=5e-4)
    assert exit_costs(resnet18(stem="imagenet"), (3, 32, 32)).item() == pytest.approx(37.0e6, rel=2e-3)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    net = resnet18_3exits(width=2).train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measure_costs(net, (3, 8, 8))
    assert net.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_parameters_that_are_frozen_are_stored_all_the_same():
    net = resnet18_3exits(width=2)
    costs = measure_costs(net, (3, 8, 8))
    frozen = measure_costs(net.requires_grad_(False), (3, 8, 8))
    assert torch.equal(frozen.cumulative_params, costs.cumulative_params)


def test_a_network_in_half_precision_costs_the_same():
    net = resnet18_3exits(width=2)
    costs = exit_costs(net, (3, 8, 8))
    assert torch.equal(exit_costs(net.half(), (3, 8, 8)), costs)


def test_parametrised_layers_cost_the_same():
    net = MultiExitNet([nn.Conv2d(3, 4, 3)], {0: nn.Sequential(nn.Flatten(), nn.Linear(144, 2))})
    expected = exit_costs(net, (3, 8, 8))
    weight_norm(net.units[0])
    assert torch.equal(exit_costs(net, (3, 8, 8)), expected)


class OnlyWithNumbers(nn.Module):
    """A unit that looks at what is in the map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2 if x.max() > 1 else x


class Chosen(nn.Module):
    """A unit that looks at what is in the map, by a mask."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x.mean((1, 2, 3)) > 0]


class OnlySquare(nn.Module):
    """A unit that asserts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] == x.shape[3], "Wrong height!"
        return x


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (
            OnlyWithNumbers(),
            r"unit 0 \(OnlyWithNumbers\) cannot be counted on shapes .*costs=measure_seconds.*: Tensor\.item",
        ),
        (Chosen(), r"unit 0 \(Chosen\) cannot be counted on shapes .*costs=measure_seconds"),
        (
            OnlySquare(),
            r"^a feature map of shape \(3, 8, 4\) does not fit the network's unit 0 \(OnlySquare\): Wrong height!",
        ),
    ],
)
def test_units_that_cannot_be_counted_are_named(unit, message):
    with pytest.raises(ValueError, match=message):
        exit_costs(MultiExitNet([unit], {0: nn.Flatten()}), (3, 8, 4))


class Centred(nn.Module):
    """Writes into what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean((2, 3), keepdim=True)
        return x


class Clamped(nn.Module):
    """Writes into what it reads, by way of a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).clamp_(max=1.0)


class Rectified(nn.Module):
    """Writes into what it reads, out of sight of a look at its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True)


def with_head(*first: nn.Module) -> MultiExitNet:
    early, late = (nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    return MultiExitNet([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)], {0: nn.Sequential(*first, *early), 1: late})


IN_PLACE = {
    "minus": [Centred()],
    "clamp": [Clamped()],
    "function": [Rectified()],
    "behind dropout": [nn.Dropout(0.1), nn.ReLU6(inplace=True)],
}


@pytest.mark.parametrize("kind", IN_PLACE)
@pytest.mark.parametrize("inference", [False, True])
def test_an_early_exit_that_works_in_place_on_what_the_next_unit_reads_is_named(kind, inference):
    net = with_head(*IN_PLACE[kind])
    message = "the exit after unit 0 works in place on .* unit 1 reads as well; clone what it reads"
    with torch.inference_mode(inference), pytest.raises(ValueError, match=message):
        measure_costs(net, (3, 8, 8))
    # Where nothing else reads the map a head may.
    assert measure_costs(truncate(net, 0), (3, 8, 8)).exit_macs.tolist() == [288]


def test_heads_that_are_given_a_copy_may_work_in_place():
    expected = measure_costs(with_head(), (3, 8, 8))
    costs = measure_costs(with_head(nn.ReLU(inplace=True), Centred()), (3, 8, 8))
    assert torch.equal(costs.cumulative_macs, expected.cumulative_macs)


@pytest.mark.parametrize("name", list_models())
def test_heads_of_ours_leave_alone_what_the_next_unit_reads(name):
    with torch.device("meta"):  # no weights to draw
        net = create_model(name)
    assert len(measure_costs(net, (3, 32, 32)).exit_macs) == net.num_exits


class Pair(nn.Module):
    """Hands on two maps."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x[:, :1]


class OnlyOne(nn.Module):
    """A head that reads a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("two came")


def test_what_does_not_fit_is_said_of_two_maps_as_well():
    message = r"shape \(\(3, 8, 8\), \(1, 8, 8\)\) does not fit the network's exit after unit 0 \(OnlyOne\): two came"
    with pytest.raises(ValueError, match=message):
        exit_costs(MultiExitNet([Pair()], {0: OnlyOne()}), (3, 8, 8))


@pytest.mark.parametrize(
    ("unit", "early", "part"),
    [
        (nn.Conv2d(4, 8, 3), create_exit("spp", 4, 10), "exit after unit 1 (SpatialPyramidExit)"),
        (nn.Conv2d(4, 8, 3), nn.Sequential(nn.BatchNorm1d(8)), "exit after unit 1 (Sequential)"),
        (nn.Conv2d(4, 8, 3), nn.ModuleList(), "exit after unit 1 (ModuleList)"),
        (nn.Conv2d(4, 8, 3), nn.Flatten(4), "exit after unit 1 (Flatten)"),
        (nn.Conv2d(5, 8, 3), create_exit("spp", 8, 10), "unit 1 (Conv2d)"),
    ],
)
@pytest.mark.parametrize("ask", [lambda net: measure_costs(net, (3, 8, 8)), lambda net: checked_answers(net, IMAGES)])
def test_the_part_that_does_not_fit_is_named_and_no_other_measure_advised(unit, early, part, ask):
    net = MultiExitNet([nn.Conv2d(3, 4, 3), unit, nn.Conv2d(8, 8, 3)], {1: early, 2: create_exit("avg", 8, 10)})
    shape = "(4, 6, 6)" if part.startswith("unit") else "(8, 4, 4)"
    message = f"a feature map of shape {shape} does not fit the network's {part}: "
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        ask(net)
    assert "measure" not in str(caught.value)
    assert str(caught.value) == message + str(caught.value.__cause__)


def test_a_network_without_exits_is_named():
    with pytest.raises(TypeError, match="Conv2d has no exits; cut it into units"):
        measure_costs(nn.Conv2d(3, 4, 3), (3, 8, 8))
