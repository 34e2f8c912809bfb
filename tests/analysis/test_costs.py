import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops import DeformConv2d

from eeutils.analysis.costs import exit_costs, measure_costs
from eeutils.models import MultiExitNet, create_exit, create_model, list_models, resnet18, resnet18_3exits, truncate
from eeutils.models.contracts import checked_answers


def macs_by_hand(net: MultiExitNet, image_shape: tuple[int, int, int]) -> float:
    """Multiply-adds of one forward pass: kernel elements x outputs, layer by layer, seen by forward hooks."""
    counted = []

    def count(layer: nn.Module, _: tuple, output: Tensor) -> None:
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


@settings(max_examples=10)
@given(
    exit_after=st.sets(st.integers(0, 7), max_size=4).map(tuple),
    pool=st.sampled_from(["avg", "spp"]),
    stem=st.sampled_from(["cifar", "imagenet"]),
    image_shape=st.tuples(st.integers(1, 3), st.integers(4, 17), st.integers(4, 17)),
)
def test_measure_costs_agrees_with_counting_layer_by_layer(exit_after, pool, stem, image_shape):
    net = resnet18(width=2, in_channels=image_shape[0], pool=pool, stem=stem, exit_after=exit_after)
    costs = measure_costs(net, image_shape)
    up_to_each_exit = [truncate(net, index) for index in range(net.num_exits)]
    assert costs.cumulative_macs.tolist() == [macs_by_hand(short, image_shape) for short in up_to_each_exit]
    assert costs.cumulative_params.tolist() == [
        sum(parameter.numel() for parameter in short.parameters()) for short in up_to_each_exit
    ]


def test_measure_costs_by_hand():
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


def test_measure_costs_counts_attention_and_no_custom_operators():
    net = MultiExitNet([Custom(), Attention()], {1: nn.Sequential(nn.Flatten(), nn.Linear(144, 2))})
    assert measure_costs(net, (3, 8, 8)).unit_macs.tolist() == [0, 2 * 36 * 36 * 4]


def test_measure_costs_of_resnet18_are_those_published():
    costs = measure_costs(resnet18(), (3, 32, 32))
    assert costs.cumulative_macs.item() == pytest.approx(555.4e6, rel=1e-4)
    assert costs.cumulative_params.item() == 11_173_962
    after_layers = costs.unit_macs.cumsum(0)[[2, 4, 6]] / costs.cumulative_macs
    assert after_layers.tolist() == pytest.approx([0.275, 0.517, 0.758], abs=5e-4)
    assert exit_costs(resnet18(stem="imagenet"), (3, 32, 32)).item() == pytest.approx(37.0e6, rel=2e-3)


@pytest.mark.parametrize("training", [True, False])
def test_measure_costs_leaves_the_network_as_it_was_and_its_hooks_alone(training):
    net = resnet18_3exits(width=2).train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for module in net.modules():
        module.register_forward_hook(lambda *_: pytest.fail("called"))
        module.register_forward_pre_hook(lambda *_: pytest.fail("called"))
    measure_costs(net, (3, 8, 8))
    assert net.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(module._forward_hooks and module._forward_pre_hooks for module in net.modules())


def test_measure_costs_does_not_depend_on_precision_freezing_and_parametrisation():
    net = resnet18_3exits(width=2)
    expected = measure_costs(net, (3, 8, 8))
    costs = measure_costs(net.half().requires_grad_(False), (3, 8, 8))
    assert torch.equal(costs.cumulative_macs, expected.cumulative_macs)
    assert torch.equal(costs.cumulative_params, expected.cumulative_params)
    net = MultiExitNet([nn.Conv2d(3, 4, 3)], {0: nn.Sequential(nn.Flatten(), nn.Linear(144, 2))})
    expected = exit_costs(net, (3, 8, 8))
    weight_norm(net.units[0])
    assert torch.equal(exit_costs(net, (3, 8, 8)), expected)


def test_measure_costs_keeps_the_hooks_of_pruning():
    net = MultiExitNet([nn.Conv2d(3, 4, 3)], {0: nn.Sequential(nn.Flatten(), nn.Linear(144, 2))})
    expected = exit_costs(net, (3, 8, 8))
    prune.l1_unstructured(net.units[0], "weight", 0.5)
    net.units[0].weight = net.units[0].weight.detach()  # a copy cannot be made of one with a gradient
    assert torch.equal(exit_costs(net, (3, 8, 8)), expected)


class OnlyWithNumbers(nn.Module):
    """Looks at the values in the map."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2 if x.max() > 1 else x


class Chosen(nn.Module):
    """Looks at the values in the map, by a mask."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x.mean((1, 2, 3)) > 0]


class OnlySquare(nn.Module):
    """Asserts."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] == x.shape[3], "Wrong height!"
        return x


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (OnlyWithNumbers(), r"OnlyWithNumbers.*measure_seconds"),
        (Chosen(), r"Chosen.*measure_seconds"),
        (OnlySquare(), r"\(3, 8, 4\).*OnlySquare.*Wrong height!"),
    ],
)
def test_measure_costs_names_units_that_cannot_be_counted(unit, message):
    with pytest.raises(ValueError, match=message):
        exit_costs(MultiExitNet([unit], {0: nn.Flatten()}), (3, 8, 4))


class Centred(nn.Module):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean((2, 3), keepdim=True)
        return x


class Clamped(nn.Module):
    """Writes into its input through a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).clamp_(max=1.0)


class Rectified(nn.Module):
    """Writes into its input by a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True)


def with_head(*first: nn.Module) -> MultiExitNet:
    early, late = (nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    return MultiExitNet([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)], {0: nn.Sequential(*first, *early), 1: late})


@pytest.mark.parametrize(
    "layers",
    [[Centred()], [Clamped()], [Rectified()], [nn.Dropout(0.1), nn.ReLU6(inplace=True)]],
    ids=["minus", "clamp", "function", "behind dropout"],
)
@pytest.mark.parametrize("inference", [False, True])
def test_measure_costs_names_an_early_exit_that_works_in_place(layers, inference):
    net = with_head(*layers)
    with torch.inference_mode(inference), pytest.raises(ValueError, match="after unit 0"):
        measure_costs(net, (3, 8, 8))
    assert measure_costs(truncate(net, 0), (3, 8, 8)).exit_macs.tolist() == [288]  # no other reader, no harm


def test_measure_costs_accepts_a_head_that_begins_in_place():
    costs = measure_costs(with_head(nn.ReLU(inplace=True), Centred()), (3, 8, 8))
    assert torch.equal(costs.cumulative_macs, exit_costs(with_head(), (3, 8, 8)))


@pytest.mark.parametrize("name", list_models())
def test_measure_costs_takes_every_model(name):
    with torch.device("meta"):  # no weights to draw
        net = create_model(name)
    assert len(measure_costs(net, (3, 32, 32)).exit_macs) == net.num_exits


class Pair(nn.Module):
    """Hands on two maps."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x[:, :1]


@pytest.mark.parametrize(
    ("unit", "early", "part"),
    [
        (nn.Conv2d(4, 8, 3), create_exit("spp", 4, 10), r"\(8, 4, 4\).*exit after unit 1 \(SpatialPyramidExit\)"),
        (nn.Conv2d(4, 8, 3), nn.Sequential(nn.BatchNorm1d(8)), r"\(8, 4, 4\).*exit after unit 1 \(Sequential\)"),
        (nn.Conv2d(4, 8, 3), nn.ModuleList(), r"\(8, 4, 4\).*exit after unit 1 \(ModuleList\)"),
        (nn.Conv2d(5, 8, 3), create_exit("spp", 8, 10), r"\(4, 6, 6\).*unit 1 \(Conv2d\)"),
        (Pair(), nn.Conv2d(4, 8, 3), r"\(\(4, 6, 6\), \(1, 6, 6\)\).*\(Conv2d\)"),
    ],
)
def test_measure_costs_and_checked_answers_name_the_part_that_does_not_fit(unit, early, part):
    net = MultiExitNet([nn.Conv2d(3, 4, 3), unit, nn.Conv2d(8, 8, 3)], {1: early, 2: create_exit("avg", 8, 10)})
    for ask in (lambda: measure_costs(net, (3, 8, 8)), lambda: checked_answers(net, torch.zeros(2, 3, 8, 8))):
        with pytest.raises(ValueError, match=part) as caught:
            ask()
        assert "measure_seconds" not in str(caught.value)


def test_measure_costs_refuses_a_network_without_exits():
    with pytest.raises(TypeError, match="Conv2d"):
        measure_costs(nn.Conv2d(3, 4, 3), (3, 8, 8))
