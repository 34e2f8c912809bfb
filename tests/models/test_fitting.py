import pytest
import torch

from eeutils.models import create_model, list_models
from eeutils.models.registry import fitting_arguments


@pytest.mark.parametrize("name", list_models())
def test_images_of_the_usual_size_ask_for_nothing_more(name):
    assert fitting_arguments(name, 7, (1, 32, 32)) == {"num_classes": 7, "in_channels": 1}


@pytest.mark.parametrize(
    "name", ["vgg16", "vgg16_sdn", "resnet56_sdn", "wideresnet32_4", "mobilenet_sdn", "resnet18_sdn"]
)
def test_builders_that_ask_are_told_the_size(name):
    assert fitting_arguments(name, 200, (3, 64, 64)) == {"num_classes": 200, "in_channels": 3, "image_size": 64}


@pytest.mark.parametrize("name", ["resnet18", "resnet18_2exits", "resnet18_3exits"])
def test_builders_that_do_not_ask_are_told_nothing(name):
    assert fitting_arguments(name, 200, (3, 64, 64)) == {"num_classes": 200, "in_channels": 3}


@pytest.mark.parametrize("name", ["vgg16_sdn", "resnet18_3exits"])
def test_what_is_built_with_them_reads_such_images(name):
    net = create_model(name, width=2, **fitting_arguments(name, 5, (1, 64, 64))).eval()
    assert {answer.shape for answer in net(torch.zeros(2, 1, 64, 64))} == {(2, 5)}


def test_a_builder_refuses_a_size_that_its_network_is_not_made_for():
    asked = fitting_arguments("vgg16", 10, (1, 28, 30))
    assert asked == {"num_classes": 10, "in_channels": 1, "image_size": 28}
    with pytest.raises(ValueError, match="unknown image_size 28"):
        create_model("vgg16", **asked)


@pytest.mark.parametrize("size", [32, 64])
def test_a_network_that_is_not_there_is_an_error(size):
    with pytest.raises(ValueError, match="unknown model 'nonsense'"):
        fitting_arguments("nonsense", 10, (3, size, size))
