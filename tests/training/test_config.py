from dataclasses import replace

import pytest

from eeutils import TrainConfig, recipe
from eeutils.training import LossConfig

WRONG = {"epochs": 0, "batch_size": 2.5, "warmup": 1.0, "seed": 2**32, "drops": (0.5, 1.0), "loss": print}
WRONG_LOSS = {"distillation": 1.0, "label_smoothing": 1.5, "temperature": 0.0}


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [*((TrainConfig, *each) for each in WRONG.items()), *((LossConfig, *each) for each in WRONG_LOSS.items())],
)
def test_config_names_a_value_that_does_not_fit(config, field, value):
    with pytest.raises(ValueError, match=rf"^{field} ") as error:
        config(**{field: value})
    assert repr(value) in str(error.value)


def test_recipe_upf_is_the_published_one():
    upf = recipe("upf")
    assert (upf.learning_rate, upf.momentum, upf.weight_decay, upf.batch_size) == (0.1, 0.6, 5e-4, 256)
    assert (upf.schedule, upf.halve_every, upf.nesterov, upf.augmentation.cutout) == ("halving", 25, False, 0)
    with pytest.raises(ValueError, match=r"'upf'.*'fast'"):
        recipe("fast")


def test_recipes_of_shallow_deep_networks_are_the_published_ones():
    cnn, sdn, exits = recipe("cnn_vgg16"), recipe("sdn_vgg16"), recipe("ic_only")
    assert replace(cnn, loss=LossConfig(weights="sdn")) == sdn
    assert (sdn.epochs, sdn.learning_rate, sdn.momentum, sdn.nesterov) == (100, 0.1, 0.9, False)
    assert [drop * sdn.epochs for drop in sdn.drops] == [35, 60, 85]
    assert (exits.epochs, exits.optimizer, exits.learning_rate, exits.trained) == (25, "adam", 1e-3, "early_exits")
    assert [drop * exits.epochs for drop in exits.drops] == [15]
    assert {sdn.schedule, cnn.schedule, exits.schedule} == {"steps"}
