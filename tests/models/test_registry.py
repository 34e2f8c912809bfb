import pytest

from eeutils.models import create_model, list_models


def test_the_builders_are_known_by_their_names():
    assert {"resnet18", "resnet18_2exits", "resnet18_3exits"} <= set(list_models())
    assert list_models() == sorted(list_models())


@pytest.mark.parametrize(("name", "num_exits"), [("resnet18", 1), ("resnet18_2exits", 2), ("resnet18_3exits", 3)])
def test_arguments_reach_the_builder(name, num_exits):
    net = create_model(name, width=4, num_classes=7)
    assert net.num_exits == num_exits
    assert all(head[-1].out_features == 7 for head in net.exits.values())


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"'resnet19'.*'resnet18', 'resnet18_2exits'"):
        create_model("resnet19")


def test_an_argument_the_builder_does_not_have_is_a_type_error():
    with pytest.raises(TypeError, match="depth"):
        create_model("resnet18", depth=3)
