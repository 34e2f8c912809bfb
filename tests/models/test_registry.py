import pytest
import torch
from torch import nn

from eeutils.models import create_model, list_models, register_model, registry
from eeutils.models.registry import takes_argument


def test_the_builders_are_known_by_their_names():
    assert {"resnet18", "resnet18_2exits", "resnet18_3exits"} <= set(list_models())
    assert list_models() == sorted(list_models())


@pytest.mark.parametrize(("name", "num_exits"), [("resnet18", 1), ("resnet18_2exits", 2), ("resnet18_3exits", 3)])
def test_arguments_reach_the_builder(name, num_exits):
    net = create_model(name, width=4, num_classes=7)
    assert net.num_exits == num_exits
    assert all(head[-1].out_features == 7 for head in net.exits.values())


@pytest.mark.parametrize("name", [name for name in list_models() if not name.startswith("airnet")])
def test_convolutions_begin_with_weights_that_keep_the_size_of_gradients(name):
    """He et al., 2015: of variance 2 / (outputs x kernel elements)."""
    net = create_model(name, width=8)
    convolutions = [module.weight.detach() for module in net.modules() if isinstance(module, nn.Conv2d)]
    scaled = torch.cat([(weight * (weight[:, 0].numel() / 2) ** 0.5).flatten() for weight in convolutions])
    assert scaled.std().item() == pytest.approx(1, abs=0.05)


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"'resnet19'.*'resnet18', 'resnet18_2exits'"):
        create_model("resnet19")


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))


@pytest.mark.usefixtures("own_registry")
def test_a_name_that_is_taken_is_refused():
    shipped = create_model.__globals__["_BUILDERS"]["resnet18"]

    def resnet18():
        raise AssertionError("not this one")

    with pytest.raises(ValueError, match=r"'resnet18' .* eeutils\.models\.resnet already"):
        register_model(resnet18)
    assert registry._BUILDERS["resnet18"] is shipped


@pytest.mark.usefixtures("own_registry")
def test_a_builder_of_ones_own_can_be_registered_and_defined_anew():
    for width in (2, 3):

        @register_model
        def own_net(width=width):
            return create_model("resnet18", width=width)

        assert create_model("own_net").units[0][0].out_channels == width


def test_a_builder_is_asked_for_arguments_of_its_own():
    assert takes_argument("vgg16_sdn", "image_size")
    assert not takes_argument("resnet18_2exits", "image_size")
    with pytest.raises(ValueError, match="'resnet19'"):
        takes_argument("resnet19", "image_size")


def test_an_argument_the_builder_does_not_have_is_a_type_error():
    with pytest.raises(TypeError, match="depth"):
        create_model("resnet18", depth=3)
