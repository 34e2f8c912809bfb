import pytest
import torch
from torch.nn import AdaptiveAvgPool2d
from torchvision.models import resnet18 as torchvision_resnet18

from eeutils.models import MultiExitNet, create_model, resnet18, resnet18_2exits, resnet18_3exits
from eeutils.models.exits import SpatialPyramidExit


def key_in_torchvision(key: str) -> str:
    """Where torchvision's ResNet18 keeps what is `key` here."""
    part, unit, rest = key.split(".", 2)
    if part == "exits":
        return rest.replace("2.", "fc.")
    if unit == "0":
        return rest.replace("0.", "conv1.", 1) if rest.startswith("0.") else rest.replace("1.", "bn1.", 1)
    layer, block = divmod(int(unit) - 1, 2)
    module, index, name = rest.split(".")
    if module == "shortcut":
        return f"layer{layer + 1}.{block}.downsample.{index}.{name}"
    inside = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}[index]
    return f"layer{layer + 1}.{block}.{inside}.{name}"


@pytest.mark.parametrize("training", [False, True])
def test_with_torchvisions_weights_it_answers_what_torchvision_answers(training):
    torch.manual_seed(0)
    theirs = torchvision_resnet18(num_classes=10).train(training)
    ours = resnet18(stem="imagenet").train(training)
    state = theirs.state_dict()
    keys = {key: key_in_torchvision(key) for key in ours.state_dict()}
    assert sorted(keys.values()) == sorted(state)
    ours.load_state_dict({key: state[other] for key, other in keys.items()})
    images = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(ours(images)[0], theirs(images))


def test_it_has_the_published_number_of_parameters():
    assert sum(parameter.numel() for parameter in resnet18().parameters()) == 11_173_962


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("pool", ["avg", "spp"])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (33, 20)])
def test_every_exit_answers_images_of_any_size(stem, pool, size):
    net = resnet18(width=2, in_channels=1, num_classes=5, pool=pool, stem=stem, exit_after=(0, 3))
    answers = net(torch.randn(3, 1, *size))
    assert [tuple(answer.shape) for answer in answers] == [(3, 5)] * 3


@pytest.mark.parametrize(
    ("builder", "places"), [(resnet18, (8,)), (resnet18_2exits, (4, 8)), (resnet18_3exits, (3, 5, 8))]
)
def test_exits_stand_where_the_curve_is_best(builder, places):
    assert builder(width=2).exit_after == places


def test_exits_can_stand_elsewhere():
    assert resnet18_3exits(width=2, exit_after=(6, 1)).exit_after == (1, 6, 8)


def test_heads_go_to_the_exits_in_their_order():
    net = resnet18_3exits(width=2, pool="conv+spp+avg", exit_after=(5, 3))

    conv, pyramid, average = net.exits.values()
    assert (type(conv[1]), type(pyramid), type(average[0])) == (
        SpatialPyramidExit,
        SpatialPyramidExit,
        AdaptiveAvgPool2d,
    )


def test_the_same_seed_gives_the_same_weights():
    def fresh() -> MultiExitNet:
        torch.manual_seed(5)
        return resnet18_3exits(width=2, pool="spp")

    first, second = fresh().state_dict(), fresh().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_forward_compiles_as_one_graph(compiled):
    net, images = resnet18_3exits(width=2, pool="spp").eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        forward, graphs = compiled(net)
        for ours, expected in zip(forward(images), net(images), strict=True):
            torch.testing.assert_close(ours, expected)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be positive, got 0"),
        ({"width": 16.5}, "width must be a whole number, got 16.5"),
        ({"width": "16"}, "width must be a whole number, got '16'"),
        ({"num_classes": 0}, "num_classes must be positive, got 0"),
        ({"exit_after": 4}, r"a sequence, such as \(4,\), got 4"),
        ({"in_channels": -3}, "in_channels must be positive, got -3"),
        ({"pool": "mean"}, r"'mean'.*\['avg', 'conv', 'mixed', 'spp'\]"),
        ({"stem": "large"}, r"'large'.*\['cifar', 'imagenet'\]"),
        ({"exit_after": (3, 3)}, r"two exits after one unit.*\(3, 3\)"),
        ({"exit_after": (8,)}, r"\[8\].*0 to 7"),
        ({"exit_after": (-1, 2)}, r"\[-1\].*0 to 7"),
    ],
)
def test_values_that_make_no_network_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet18(**{"width": 2, **arguments})


@pytest.mark.parametrize("name", ["resnet18_2exits", "resnet18_3exits"])
def test_a_single_unit_for_the_exits_is_no_sequence(name):
    with pytest.raises(ValueError, match=r"a sequence, such as \(3,\), got 3"):
        create_model(name, width=2, exit_after=3)


@pytest.mark.parametrize(("name", "count"), [("resnet18_2exits", 2), ("resnet18_3exits", 3)])
def test_the_number_of_exits_is_what_the_name_says(name, count):
    with pytest.raises(ValueError, match=f"a network with {count} exits has {count - 1} early ones"):
        create_model(name, width=2, exit_after=(0, 1, 2))
