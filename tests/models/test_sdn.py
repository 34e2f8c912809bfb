import pytest
import torch
from torch import nn
from torchvision.ops import Permute

from eeutils import MultiExitNet, create_model, with_internal_classifiers
from eeutils.analysis import measure_costs
from eeutils.models import SDN_SHARES, create_exit, drop_exits, exits_at_cost
from tests.toys import carrying_net, unchanged

SHAPE = (3, 32, 32)
# VGG16 and ResNet56 as in the authors' code.
PLACES = {
    "vgg16": (1, 3, 5, 6, 8, 9),
    "resnet56": (4, 8, 12, 16, 20, 24),
    "wideresnet32_4": (2, 5, 7, 9, 11, 14),
    "mobilenet": (2, 4, 7, 8, 10, 12),
    "resnet18": (1, 2, 4, 5, 6, 7),
}


def seeded(name: str, **kwargs) -> MultiExitNet:
    torch.manual_seed(3)
    return create_model(name, **{"width": 2, "num_classes": 5, **kwargs})


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize(("name", "places"), PLACES.items())
def test_sdn_places_are_nearest_to_shares_of_the_cost(name, places, image_size):
    with torch.device("meta"):
        net = create_model(f"{name}_sdn", image_size=image_size)
    assert net.exit_after == (*places, len(net.units) - 1)
    reached = measure_costs(net, (3, image_size, image_size)).unit_macs.cumsum(0)
    distances = (reached[:-1] / reached[-1] - torch.tensor(SDN_SHARES)[:, None]).abs()
    assert tuple(distances.argmin(1).tolist()) == places


def test_exits_at_cost_are_those_counted_on_paper():
    units = [nn.Conv2d(1, 1, 1, bias=False) for _ in range(10)]  # each a tenth of the cost
    net = MultiExitNet(units, {9: nn.Flatten()})
    assert exits_at_cost(net, (0.1, 0.24, 0.26, 0.99), (1, 4, 4)) == (0, 1, 2, 8)
    assert exits_at_cost(net, (), (1, 4, 4)) == ()


@pytest.mark.parametrize("shares", [(0.5, 0.3), (0.0, 0.5), (float("nan"),), (0.7, 0.8)])
def test_exits_at_cost_names_shares_without_a_place_each(shares):
    net = MultiExitNet([nn.Conv2d(1, 1, 1, bias=False) for _ in range(4)], {3: nn.Flatten()})
    with pytest.raises(ValueError, match=str(shares[0])):
        exits_at_cost(net, shares, (1, 4, 4))


@pytest.mark.parametrize("name", PLACES)
def test_sdn_exits_answer_and_read_their_own_maps(name):
    net = seeded(f"{name}_sdn", in_channels=1).eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        x, expected = images, []
        for unit, module in enumerate(net.units):
            x = module(x)
            if unit in net.exit_after:
                expected.append(net.exits[str(unit)](x.clone()))
        answers = net(images)  # here heads read later: no unit may have written into the map before it
    assert [tuple(answer.shape) for answer in answers] == [(2, 5)] * 7
    torch.testing.assert_close(answers, expected)


@pytest.mark.parametrize("name", PLACES)
def test_sdn_backbones_are_those_of_the_cnn(name):
    plain, sdn = seeded(name), seeded(f"{name}_sdn")
    own = plain.state_dict()
    shared = {key: tensor for key, tensor in sdn.state_dict().items() if key in own}
    assert list(shared) == list(own)
    assert all(torch.equal(tensor, own[key]) for key, tensor in shared.items())
    assert plain.exit_after == sdn.exit_after[-1:]


def test_with_internal_classifiers_copies_the_network_and_its_mode():
    net, images = seeded("mobilenet").eval(), torch.randn(2, 3, 32, 32)
    sdn = with_internal_classifiers(net, SHAPE)
    assert sdn.exit_after[:-1] == exits_at_cost(net, SDN_SHARES, SHAPE)
    assert not any(module.training for module in (*net.modules(), *sdn.modules()))
    assert torch.equal(sdn(images)[-1], net(images)[-1])
    with unchanged(net), torch.no_grad():
        for parameter in sdn.parameters():
            parameter.zero_()


def test_with_internal_classifiers_fits_heads_to_the_network():
    net = seeded("mobilenet", num_classes=7).double()
    sdn = with_internal_classifiers(net, SHAPE, after=(5, 2), pool="conv+avg")
    assert sdn.exit_after == (2, 5, 13)
    assert [type(sdn.exits[unit][0]) for unit in ("2", "5")] == [nn.Sequential, nn.AdaptiveAvgPool2d]
    answers = sdn(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert [(tuple(answer.shape), answer.dtype) for answer in answers] == [((2, 7), torch.float64)] * 3
    sdn = with_internal_classifiers(seeded("resnet18"), (3, 8, 32), after=(0, 6))  # maps of 8 x 32 and 2 x 8
    assert [sdn.exits[unit].pool.grid for unit in ("0", "6")] == [4, 2]


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"after": (13,)}, r"\(13,\)"),
        ({"after": (5,)}, r"\[5\]"),
        ({"after": (2,), "image_shape": (1, 32, 32)}, r"unit 0"),
    ],
)
def test_with_internal_classifiers_names_what_does_not_fit(arguments, got):
    with pytest.raises(ValueError, match=got):
        with_internal_classifiers(**{"net": seeded("mobilenet", exit_after=(5,)), "image_shape": SHAPE, **arguments})
    with pytest.raises(TypeError, match="Sequential"):
        with_internal_classifiers(nn.Sequential(nn.Conv2d(3, 4, 3)), SHAPE)


def test_with_internal_classifiers_reads_feature_maps_only():
    flat = MultiExitNet([nn.Flatten(), nn.Linear(3072, 8)], {1: nn.Linear(8, 2)})
    with pytest.raises(ValueError, match=r"unit 0 .*\(3072,\)"):
        with_internal_classifiers(flat, SHAPE, after=(0,))
    with pytest.raises(ValueError, match=r"unit 0 .*'map': \(4, 32, 32\)"):
        with_internal_classifiers(drop_exits(carrying_net(), [0]), SHAPE, after=(0,))
    turned = [nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Permute([0, 2, 3, 1])), Permute([0, 3, 1, 2])]
    with pytest.raises(ValueError, match=r"\(32, 32, 8\)"):
        with_internal_classifiers(MultiExitNet(turned, {1: create_exit("avg", 8, 4)}), SHAPE, after=(0,))
