from dataclasses import replace

import pytest

from eeutils.training import LossConfig, fit, list_recipes, recipe


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_changes_fields(name):
    assert recipe(name, epochs=3, seed=7) == replace(recipe(name), epochs=3, seed=7)


def test_recipe_lists_the_choices():
    with pytest.raises(ValueError, match=r"'digits'.*'upf'.*'fast'"):
        recipe("fast")


def test_recipe_upf_is_the_published_one():
    upf = recipe("upf")
    assert (upf.learning_rate, upf.momentum, upf.weight_decay, upf.batch_size) == (0.1, 0.6, 5e-4, 256)
    assert (upf.schedule, upf.halve_every, upf.nesterov, upf.augmentation.cutout) == ("halving", 25, False, 0)


def test_recipes_of_shallow_deep_networks_are_the_published_ones():
    cnn, sdn, exits = recipe("cnn_vgg16"), recipe("sdn_vgg16"), recipe("ic_only")
    assert replace(cnn, loss=LossConfig(weights="sdn")) == sdn
    assert (sdn.epochs, sdn.learning_rate, sdn.momentum, sdn.nesterov) == (100, 0.1, 0.9, False)
    assert [drop * sdn.epochs for drop in sdn.drops] == [35, 60, 85]
    assert (exits.epochs, exits.optimizer, exits.learning_rate, exits.trained) == (25, "adam", 1e-3, "early_exits")
    assert [drop * exits.epochs for drop in exits.drops] == [15]
    assert {sdn.schedule, cnn.schedule, exits.schedule} == {"steps"}


@pytest.mark.parametrize("name", ["cnn_resnet56", "sdn_wideresnet32_4", "ic_only"])
def test_recipes_of_shallow_deep_networks_run(dropout_net, tiny_data, name):
    assert len(fit(dropout_net(), tiny_data, recipe(name, epochs=1, batch_size=16), progress=False).rows) == 1
