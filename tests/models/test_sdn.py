import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eeutils.analysis.costs import measure_costs
from eeutils.models import (
    SDN_SHARES,
    InternalClassifier,
    MixedPool,
    MultiExitNet,
    create_exit,
    create_model,
    exits_at_cost,
    resnet18,
    with_internal_classifiers,
)

NETWORKS = ["vgg16", "resnet56", "wideresnet32_4", "mobilenet", "resnet18"]
SHAPE = (3, 32, 32)


def published(name: str, **kwargs) -> MultiExitNet:
    with torch.device("meta"):
        return create_model(name, **kwargs)


def seeded(name: str, **kwargs) -> MultiExitNet:
    torch.manual_seed(3)
    return create_model(name, **{"width": 2, "num_classes": 5, **kwargs})


def snapshot(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


# Where the exits stand.


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("name", NETWORKS)
def test_six_exits_stand_where_the_backbones_cost_first_reaches_their_shares(name, image_size):
    net = published(f"{name}_sdn", image_size=image_size)
    *early, last = net.exit_after
    reached = measure_costs(net, (3, image_size, image_size)).unit_macs.cumsum(0)
    reached = (reached / reached[-1]).tolist()
    shares = SDN_SHARES if name != "resnet18" else (*SDN_SHARES[:-1], 0.85)
    assert len(early) == 6
    assert last == len(net.units) - 1
    for unit, share in zip(early, shares, strict=True):
        assert reached[unit] >= share
        assert unit == 0 or reached[unit - 1] < share


@pytest.mark.parametrize("name", NETWORKS)
def test_slim_networks_have_six_exits_too(name):
    for width in (2, 8):
        assert published(f"{name}_sdn", width=width).num_exits == 7


def test_shares_are_reached_by_units_counted_on_paper():
    units = [nn.Conv2d(1, 1, 1, bias=False) for _ in range(10)]  # each a tenth of the cost
    net = MultiExitNet(units, {9: nn.Flatten()})
    assert exits_at_cost(net, (0.1, 0.11, 0.85), (1, 4, 4)) == (0, 1, 8)
    assert exits_at_cost(net, (), (1, 4, 4)) == ()


def test_heads_do_not_move_the_places():
    plain, crowded = resnet18(width=2), resnet18(width=2, num_classes=1000, pool="spp", exit_after=(0, 1, 2))
    shares = (0.3, 0.6)
    assert exits_at_cost(plain, shares, SHAPE) == exits_at_cost(crowded, shares, SHAPE)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.5, 0.3), r"must rise .*\(0.5, 0.3\)"),
        ((0.5, 0.5), "must rise"),
        ((0.0, 0.5), "above 0 and below 1"),
        ((0.5, 1.0), "above 0 and below 1"),
        ((float("nan"),), "above 0 and below 1"),
        ((0.3, 0.95), r"no unit before the last reaches a share of 0.95.*\[0.25, 0.5, 0.75, 1.0\]"),
        ((0.3, 0.4), r"two exits after one unit \(units \(1, 1\)\)"),
    ],
)
def test_shares_without_a_place_are_named(shares, message):
    net = MultiExitNet([nn.Conv2d(1, 1, 1, bias=False) for _ in range(4)], {3: nn.Flatten()})
    with pytest.raises(ValueError, match=message):
        exits_at_cost(net, shares, (1, 4, 4))


def test_images_that_the_network_cannot_read_are_named():
    with pytest.raises(ValueError, match=r"shape \(1, 32, 32\) does not fit the network's unit 0 \(Sequential\)"):
        exits_at_cost(resnet18(width=2), SDN_SHARES, (1, 32, 32))


@pytest.mark.parametrize("name", NETWORKS)
def test_places_of_internal_classifiers_are_shares_of_the_cost_and_not_units(name):
    with pytest.raises(ValueError, match=rf"exit_after=\(1,\): .* shares, .* {name}\(exit_after=\.\.\.\)"):
        published(f"{name}_sdn", exit_after=(1,))


def test_a_unit_with_an_exit_gets_no_other():
    with pytest.raises(ValueError, match=r"\[2\] already have an exit; drop_exits\(\) first"):
        with_internal_classifiers(seeded("mobilenet", exit_after=(2,)), SHAPE, after=(2,))


# What the networks answer.


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_exit_answers_and_reads_its_own_map(name, image_size):
    net = seeded(f"{name}_sdn", image_size=image_size, in_channels=1).eval()
    images = torch.randn(2, 1, image_size, image_size)
    with torch.inference_mode():
        x, expected = images, []
        for unit, module in enumerate(net.units):
            x = module(x)
            if unit in net.exit_after:
                expected.append(net.exits[str(unit)](x.clone()))
        answers = net(images)  # here the heads come last: no unit may have written into the map before it
    assert [tuple(answer.shape) for answer in answers] == [(2, 5)] * 7
    for ours, other in zip(answers, expected, strict=True):
        torch.testing.assert_close(ours, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_backbone_does_not_depend_on_the_exits(name):
    plain, sdn = seeded(name), seeded(f"{name}_sdn")
    own = plain.state_dict()
    shared = {key: tensor for key, tensor in sdn.state_dict().items() if key in own}
    assert list(shared) == list(own)
    assert all(torch.equal(tensor, own[key]) for key, tensor in shared.items())
    assert plain.exit_after == sdn.exit_after[-1:]


@pytest.mark.parametrize("pool", ["avg", "spp", "mixed"])
def test_the_pool_is_that_of_the_early_exits(pool):
    net = seeded("mobilenet_sdn", pool=pool)
    heads = [type(head) for head in net.exits.values()]
    assert set(heads[:-1]) == {type(create_exit(pool, 2, 2))}
    assert heads[-1] is nn.Sequential


def test_the_forward_compiles_as_one_graph(compiled):
    net, images = seeded("mobilenet_sdn").eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        forward, graphs = compiled(net)
        for ours, expected in zip(forward(images), net(images), strict=True):
            torch.testing.assert_close(ours, expected)
    assert len(graphs) == 1


# Exits for a network that is there already.


@pytest.mark.parametrize("training", [True, False])
def test_a_network_gets_exits_and_the_original_is_untouched(training):
    net = seeded("mobilenet").train(training)
    before, images = snapshot(net), torch.randn(2, 3, 32, 32)
    sdn = with_internal_classifiers(net, SHAPE)
    assert sdn.exit_after[:-1] == exits_at_cost(net, SDN_SHARES, SHAPE)
    assert all(module.training is training for module in (*net.modules(), *sdn.modules()))
    assert torch.equal(sdn.eval()(images)[-1], net.eval()(images)[-1])
    optimizer = torch.optim.SGD(sdn.train().parameters(), lr=0.1)
    sum(answer.square().sum() for answer in sdn(images)).backward()
    optimizer.step()
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not torch.equal(sdn.units[0][0].weight, net.units[0][0].weight)


def test_exits_have_the_place_the_outputs_and_the_kind_of_numbers_of_the_network():
    net = seeded("mobilenet", num_classes=7).double()
    sdn = with_internal_classifiers(net, SHAPE, after=(4, 2), pool="avg")
    assert sdn.exit_after == (2, 4, 13)
    answers = sdn(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert [(tuple(answer.shape), answer.dtype) for answer in answers] == [((2, 7), torch.float64)] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"after": (14,)}, r"\[14\]: they follow units 0 to 12"),
        ({"after": 3}, r"a sequence, such as \(3,\), got 3"),
        ({"after": (-1, 3)}, r"\[-1\]: they follow"),
        ({"after": (3, 3)}, r"two exits after one unit in \(3, 3\)"),
        ({"after": (13,)}, r"unit 13, the last, has the network's own classifier"),
        ({"after": (2,), "pool": "max"}, "unknown pool 'max'"),
        ({"after": (2,), "image_shape": (1, 32, 32)}, "does not fit the network"),
    ],
)
def test_exits_that_cannot_be_added_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        with_internal_classifiers(**{"net": seeded("mobilenet"), "image_shape": SHAPE, **arguments})


@pytest.mark.parametrize("after", [None, (1,)])
def test_a_network_without_exits_is_named(after):
    with pytest.raises(TypeError, match="Sequential has no exits; cut it into units"):
        with_internal_classifiers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), SHAPE, after=after)


def test_each_exit_may_have_a_pool_of_its_own_the_shallowest_first():
    sdn = with_internal_classifiers(seeded("mobilenet"), SHAPE, after=(5, 2), pool="conv+avg")
    assert [type(sdn.exits[unit][0]) for unit in ("2", "5")] == [nn.Sequential, nn.AdaptiveAvgPool2d]
    built = seeded("vgg16", exit_after=(6, 1, 3), pool="spp+mixed+avg")
    kinds = [type(create_exit(pool, 2, 2)) for pool in ("spp", "mixed", "avg")]
    assert [type(built.exits[unit]) for unit in ("1", "3", "6")] == kinds
    with pytest.raises(ValueError, match="names 2 heads for a network with 3 exits"):
        seeded("vgg16", exit_after=(1, 3, 6), pool="conv+mixed")


def test_the_grid_of_an_exit_has_no_more_cells_than_the_shorter_side_of_its_map_has_pixels():
    sdn = with_internal_classifiers(seeded("resnet18"), (3, 8, 32), after=(0, 6))  # maps of 8 x 32 and 2 x 8
    assert [sdn.exits[unit].pool.grid for unit in ("0", "6")] == [4, 2]


def test_convolutions_of_added_heads_begin_like_those_of_a_built_network():
    torch.manual_seed(0)
    sdn = with_internal_classifiers(resnet18(width=16), SHAPE, after=(3,), pool="conv")
    built = resnet18(width=16, exit_after=(3,), pool="conv+avg")
    added, expected = (float(net.exits["3"][0][0].weight.detach().std()) for net in (sdn, built))
    assert added == pytest.approx(expected, rel=0.05)


class Twice(nn.Module):
    """Hands on two maps."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x[:, :1]


class OfFirst(nn.Linear):
    """Reads the first of two maps."""

    def forward(self, x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return super().forward(x[0].flatten(1))


@pytest.mark.parametrize(
    ("unit", "after_it", "shape"),
    [
        (nn.Flatten(), nn.Linear(3072, 8), r"\(3072,\)"),
        (Twice(), OfFirst(3072, 8), r"\(\(3, 32, 32\), \(1, 32, 32\)\)"),
    ],
)
def test_heads_that_read_feature_maps_are_refused_other_tensors(unit, after_it, shape):
    net = MultiExitNet([unit, after_it], {1: nn.Linear(8, 2)})
    with pytest.raises(ValueError, match=rf"unit 0 gives tensors of shape {shape} .*add_exits"):
        with_internal_classifiers(net, SHAPE, after=(0,))


# The internal classifier.


@pytest.mark.parametrize("size", [4, 8, 16, 32])
@pytest.mark.parametrize("mix", [0.0, 0.5, 0.8, 1.0])
def test_mixed_pooling_is_a_mix_of_max_and_average_pooling(size, mix):
    pool, x = MixedPool(4), torch.randn(2, 3, size, size)
    nn.init.constant_(pool.mix, mix)
    kernel = size // 4
    torch.testing.assert_close(pool(x), mix * F.max_pool2d(x, kernel) + (1 - mix) * F.avg_pool2d(x, kernel))


def test_the_mix_starts_in_the_middle_and_learns():
    pool = MixedPool(1)
    assert pool.mix.item() == 0.5
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert pool(x).item() == (6 + 3) / 2
    pool(x).sum().backward()
    assert pool.mix.grad.item() == 6 - 3


def test_the_mix_takes_the_maps_numbers_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert MixedPool(2)(torch.randn(1, 2, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert InternalClassifier(2, 4, 3)(torch.randn(1, 2, 4, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize(("size", "grid"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (32, 4)])
def test_an_internal_classifier_is_linear_on_at_most_4x4_cells(size, grid):
    head, x = InternalClassifier(3, size, 7), torch.randn(2, 3, size, size)
    assert head.linear.in_features == 3 * grid**2
    pooled = F.adaptive_max_pool2d(x, grid) / 2 + F.adaptive_avg_pool2d(x, grid) / 2
    torch.testing.assert_close(head(x), F.linear(pooled.flatten(1), head.linear.weight, head.linear.bias))


def test_a_grid_must_be_positive():
    with pytest.raises(ValueError, match="grid must be positive, got 0"):
        MixedPool(0)


def test_the_printed_layer_says_its_grid():
    assert "grid=3" in repr(MixedPool(3))
