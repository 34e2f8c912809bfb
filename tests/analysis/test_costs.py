import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops import DeformConv2d

from eeutils import Cascade, MultiExitNet, choose_thresholds, decide, measure_seconds, predict
from eeutils.analysis import exit_costs, measure_costs
from eeutils.analysis.costs import measure_head_seconds
from eeutils.data import Split
from eeutils.engines import PreparedNet
from eeutils.models import create_exit, resnet18, resnet18_3exits, truncate
from eeutils.models.contracts import checked_answers
from tests.toys import Applies, random_split, unchanged


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


@settings(max_examples=5)
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
    params = [sum(parameter.numel() for parameter in short.parameters()) for short in up_to_each_exit]
    assert costs.cumulative_params.tolist() == params


class Custom(nn.Module):
    """(N, 3, 8, 8) -> (N, 4, 6, 6) by an operator that torch does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = DeformConv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, x.new_zeros(len(x), 18, 6, 6))


def attention(x: Tensor) -> Tensor:
    """(N, C, H, W) -> the same, over the H x W places."""
    tokens = x.flatten(2).mT
    return F.scaled_dot_product_attention(tokens, tokens, tokens).mT.unflatten(2, x.shape[2:])


def test_measure_costs_counts_attention_and_no_custom_operators():
    net = MultiExitNet([Custom(), Applies(attention)], {1: create_exit("avg", 4, 2)})
    assert measure_costs(net, (3, 8, 8)).unit_macs.tolist() == [0, 2 * 36 * 36 * 4]


def test_measure_costs_of_resnet18_are_those_published():
    costs = measure_costs(resnet18(), (3, 32, 32))
    assert costs.cumulative_macs.item() == pytest.approx(555.4e6, rel=1e-4)
    assert costs.cumulative_params.item() == 11_173_962
    after_layers = costs.unit_macs.cumsum(0)[[2, 4, 6]] / costs.cumulative_macs
    assert after_layers.tolist() == pytest.approx([0.275, 0.517, 0.758], abs=5e-4)
    assert exit_costs(resnet18(stem="imagenet"), (3, 32, 32)).item() == pytest.approx(37.0e6, rel=2e-3)


def test_measure_costs_leaves_the_network_as_it_was_and_calls_no_hook():
    net = resnet18_3exits(width=2)
    for module in net.modules():
        module.register_forward_hook(lambda *_: pytest.fail("called"))
        module.register_forward_pre_hook(lambda *_: pytest.fail("called"))
    with unchanged(net):
        measure_costs(net, (3, 8, 8))
    assert net.training
    assert all(module._forward_hooks and module._forward_pre_hooks for module in net.modules())


def small() -> MultiExitNet:
    return MultiExitNet([nn.Conv2d(3, 4, 3)], {0: create_exit("avg", 4, 2)})


def test_measure_costs_ignores_precision_freezing_parametrisation_and_pruning():
    net, weighed, pruned = small(), small(), small()
    expected = exit_costs(net, (3, 8, 8))
    assert torch.equal(exit_costs(net.half().requires_grad_(False), (3, 8, 8)), expected)
    weight_norm(weighed.units[0])
    assert torch.equal(exit_costs(weighed, (3, 8, 8)), expected)
    prune.l1_unstructured(pruned.units[0], "weight", 0.5)  # computes the weight in a hook
    pruned.units[0].weight = pruned.units[0].weight.detach()  # a copy cannot be made of one with a gradient
    assert torch.equal(exit_costs(pruned, (3, 8, 8)), expected)


def by_value(x: Tensor) -> Tensor:
    return x if float(x.sum()) < 0 else -x


def square(x: Tensor) -> Tensor:
    assert x.shape[2] == x.shape[3], "Wrong height!"
    return x


@pytest.mark.parametrize(("function", "message"), [(by_value, "unit 0.*Applies"), (square, r"\(3, 8, 4\).*Applies")])
def test_measure_costs_names_units_that_cannot_be_counted(function, message):
    with pytest.raises(ValueError, match=message):
        exit_costs(MultiExitNet([Applies(function)], {0: nn.Flatten()}), (3, 8, 4))


CENTRED, CLAMPED = Applies(lambda x: x.sub_(x.mean((2, 3), keepdim=True))), Applies(lambda x: x.clamp_(max=1.0))


@pytest.mark.parametrize("layers", [[CENTRED], [nn.Flatten(), CLAMPED], [nn.Dropout(0.1), nn.ReLU6(inplace=True)]])
def test_measure_costs_names_an_early_exit_that_works_in_place(layers):
    early, late = nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 2)), create_exit("avg", 4, 2)
    net = MultiExitNet([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)], {0: early, 1: late})
    for inference in (False, True):
        with torch.inference_mode(inference), pytest.raises(ValueError, match="after unit 0"):
            measure_costs(net, (3, 8, 8))
    assert measure_costs(truncate(net, 0), (3, 8, 8)).exit_macs.tolist() == [288]  # no other reader, no harm


@pytest.mark.parametrize(
    ("unit", "early", "part"),
    [
        (nn.Conv2d(4, 8, 3), create_exit("spp", 4, 10), r"\(8, 4, 4\).*exit after unit 1 \(SpatialPyramidExit\)"),
        (nn.Conv2d(5, 8, 3), create_exit("spp", 8, 10), r"\(4, 6, 6\).*unit 1 \(Conv2d\)"),
    ],
)
def test_measure_costs_and_checked_answers_name_the_part_that_does_not_fit(unit, early, part):
    net = MultiExitNet([nn.Conv2d(3, 4, 3), unit, nn.Conv2d(8, 8, 3)], {1: early, 2: create_exit("avg", 8, 10)})
    for ask in (lambda: measure_costs(net, (3, 8, 8)), lambda: checked_answers(net, torch.zeros(2, 3, 8, 8))):
        with pytest.raises(ValueError, match=part):
            ask()


class Clock:
    """Stands still unless a layer lets time pass."""

    seconds = 0.0


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(Clock, "seconds", 0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: Clock.seconds)


class Takes(nn.Module):
    """Takes `of_call` seconds, `of_image` for each image, and `at_first` for each of its first two calls."""

    def __init__(self, of_call: float, of_image: float = 0.0, at_first: float = 0.0) -> None:
        super().__init__()
        self.of_call, self.of_image, self.at_first, self.calls = of_call, of_image, at_first, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        Clock.seconds += self.of_call + self.of_image * len(x) + self.at_first * (self.calls <= 2)
        return x


def head(*before: nn.Module) -> nn.Module:
    return nn.Sequential(*before, create_exit("avg", 3, 4))


@pytest.mark.parametrize(("batch_size", "count", "at_once"), [(1, 8, 1), (4, 8, 4), (4, 3, 3), (4, 5, 4)])
def test_measure_seconds_are_an_images_up_to_each_exit(clock, batch_size, count, at_once):
    """A smaller last batch is left out, unless it is the only one."""
    net = MultiExitNet([Takes(1, 2), Takes(8)], {0: head(), 1: head()})
    seconds = measure_seconds(net, random_split(count, num_classes=4), batch_size=batch_size)
    assert seconds.tolist() == pytest.approx([1 / at_once + 2, 1 / at_once + 2 + 8 / at_once])


def test_measure_head_seconds_are_what_early_exits_add(clock):
    net = MultiExitNet([Takes(2), Takes(8), Takes(1)], {0: head(Takes(2)), 1: head(Takes(4)), 2: head(Takes(8))})
    ready, split = PreparedNet(net), random_split(2, num_classes=4)
    seconds = measure_seconds(ready, split)
    assert measure_head_seconds(ready, split, seconds).tolist() == [3, 3, 0]


def test_measure_seconds_keeps_few_batches_and_does_not_count_the_first(clock, monkeypatch):
    made, batches = [], Split.batches
    monkeypatch.setattr(Split, "batches", lambda *given: (made.append(batch) or batch for batch in batches(*given)))
    net = MultiExitNet([Takes(3, at_first=100)], {0: head()})
    assert measure_seconds(net, random_split(90, num_classes=4), batch_size=3, batches=30).tolist() == [1]
    assert len(made) - 1 <= 4  # one is tried out first


def test_measure_seconds_computes_in_the_precision_asked_for():
    seen = []
    net = resnet18(width=2, exit_after=(2,))
    net.units[0].register_forward_hook(lambda unit, given, answer: seen.append((given[0].dtype, answer.dtype)))
    measure_seconds(net, random_split(2, num_classes=4), batches=1, precision="bf16")
    assert set(seen[2:]) == {(torch.bfloat16, torch.bfloat16)}  # the first two try whether the images fit
    seen.clear()
    measure_seconds(net.double(), random_split(2, num_classes=4), batches=1)
    assert set(seen) == {(torch.float64, torch.float64)}


def test_measure_seconds_takes_a_network_that_cannot_be_counted():
    net = MultiExitNet([Applies(by_value), nn.Conv2d(3, 3, 3)], {0: head(), 1: head()})
    split = random_split(10, num_classes=4)
    with pytest.raises(ValueError, match=r"Applies.*measure_seconds"):
        predict(net, split)
    predictions = predict(net, split, costs=measure_seconds(net, split, batches=2))
    policy = choose_thresholds(predictions, budget=1.0).policy
    with pytest.raises(ValueError, match="measure_seconds"):
        Cascade(net, policy).run(split)
    assert Cascade(net, policy).run(split, costs=predictions.costs).mean_cost == decide(predictions, policy).mean_cost


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"net": nn.Linear(3, 3)}, TypeError),
        ({"split": random_split(2, size=1)}, ValueError),
        ({"batches": 0}, ValueError),
    ],
)
def test_measure_seconds_refuses(wrong, error):
    given = {"net": MultiExitNet([nn.Conv2d(3, 3, 3)], {0: head()}), "split": random_split(2)} | wrong
    with pytest.raises(error):
        measure_seconds(**given)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_measure_seconds_times_a_gpu_by_its_own_clock():
    net = resnet18(width=2, exit_after=(2, 4))
    seconds = measure_seconds(net, random_split(4, num_classes=4), batch_size=4, batches=3, device="cuda")
    assert (seconds.diff(prepend=torch.zeros(1)) > 0).all()
    assert next(net.parameters()).device.type == "cpu"
