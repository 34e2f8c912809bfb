import re
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from eeutils.training import LossConfig, TrainConfig, list_recipes, recipe


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_is_a_config_of_which_fields_can_be_changed(name):
    assert recipe(name, epochs=3, seed=7) == replace(recipe(name), epochs=3, seed=7)


def test_the_published_recipe_of_upf_dl_2020():
    upf = recipe("upf")
    assert (upf.learning_rate, upf.momentum, upf.weight_decay, upf.batch_size) == (0.1, 0.6, 5e-4, 256)
    assert (upf.schedule, upf.halve_every, upf.nesterov, upf.augmentation.cutout) == ("halving", 25, False, 0)


def test_the_published_recipes_of_shallow_deep_networks():
    cnn, sdn, exits = recipe("cnn_vgg16"), recipe("sdn_vgg16"), recipe("ic_only")
    assert replace(cnn, loss=LossConfig(weights="sdn")) == sdn
    assert (sdn.epochs, sdn.learning_rate, sdn.momentum, sdn.nesterov) == (100, 0.1, 0.9, False)
    assert [drop * sdn.epochs for drop in sdn.drops] == [35, 60, 85]
    assert (exits.epochs, exits.optimizer, exits.learning_rate, exits.trained) == (25, "adam", 1e-3, "early_exits")
    assert [drop * exits.epochs for drop in exits.drops] == [15]
    assert {sdn.schedule, cnn.schedule, exits.schedule} == {"steps"}


@pytest.mark.parametrize(
    ("net", "weight_decay"), [("vgg16", 5e-4), ("wideresnet32_4", 5e-4), ("resnet56", 1e-4), ("mobilenet", 1e-4)]
)
def test_each_network_has_its_weight_decay(net, weight_decay):
    assert recipe(f"cnn_{net}").weight_decay == recipe(f"sdn_{net}").weight_decay == weight_decay


@pytest.mark.parametrize(
    "name", ["ic_only", *(f"{kind}_{net}" for kind in ("cnn", "sdn") for net in ("vgg16", "resnet56", "mobilenet"))]
)
def test_tiny_imagenet_differs_in_augmentation_alone(name):
    small, large = recipe(name), recipe(f"{name}_tinyimagenet")
    assert replace(large, augmentation=small.augmentation) == small
    augmentation = large.augmentation
    assert replace(augmentation, translate=4, brightness=0, contrast=0, saturation=0) == small.augmentation
    jitter = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    assert (augmentation.translate, jitter) == (8, (0.2, 0.2, 0.2))


def test_an_unknown_network_of_shallow_deep_networks_lists_the_choices():
    with pytest.raises(ValueError, match=r"'sdn_vgg19'.*'sdn_mobilenet', .*'sdn_resnet56', .*'sdn_vgg16', "):
        recipe("sdn_vgg19")


def test_digits_are_not_mirrored():
    assert not recipe("digits").augmentation.flip


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        recipe("slim").epochs = 3


def test_an_unknown_recipe_lists_the_choices():
    with pytest.raises(
        ValueError, match=r"'fast'.*'digits', 'ic_only', 'ic_only_tinyimagenet', 'modern', 'muon', .*'slim', 'upf'"
    ):
        recipe("fast")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs must be positive, got 0"),
        ("batch_size", -1, "batch_size must be positive, got -1"),
        ("epochs", 1.5, "epochs must be a whole number, got 1.5"),
        ("batch_size", 2.5, "batch_size must be a whole number, got 2.5"),
        ("learning_rate", 0.0, "learning_rate must be positive"),
        ("filter_learning_rate", 0.0, "filter_learning_rate must be positive"),
        ("learning_rate", float("nan"), "learning_rate must be positive, got nan"),
        ("halve_every", 0, "halve_every must be positive"),
        ("warmup", 1.0, r"warmup .* \[0, 1\), got 1.0"),
        ("momentum", 1.0, r"momentum must be in \[0, 1\), got 1.0"),
        ("momentum", 0.0, "nesterov needs a momentum"),
        ("weight_decay", -1e-4, "weight_decay must not be negative"),
        ("seed", -1, "seed must be in"),
        ("seed", 2**64, "seed must be in"),
        ("seed", 1.0, "seed must be a whole number, got 1.0"),
        ("seed", float("nan"), "seed must be a whole number, got nan"),
        ("schedule", "cosine", r"'cosine'.*\['linear', 'halving', 'steps'\]"),
        ("drops", (0.5, 1.0), r"drops are shares .*\(0.5, 1.0\)"),
        ("trained", "last_exit", r"'last_exit'.*\['all', 'exits', 'early_exits'\]"),
        ("optimizer", "rmsprop", "'rmsprop'"),
        ("precision", "fp8", r"'fp8'.*\['auto', 'fp32', 'bf16', 'fp16'\]"),
        ("compile", "maybe", r"'maybe'.*\['auto', 'yes', 'no'\]"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("sequence", [tuple, list, np.array, torch.tensor, lambda each: list(np.array(each))])
def test_of_sequences_of_any_kind_become_tuples(sequence):
    loss, config = LossConfig(weights=sequence([0.25, 0.75])), TrainConfig(drops=sequence([0.5, 0.75]))
    assert loss == LossConfig(weights=(0.25, 0.75))
    assert hash(config) == hash(TrainConfig(drops=(0.5, 0.75)))


def test_of_numpys_numbers_and_words_become_pythons_own():
    loss = LossConfig(weights=np.str_("equal"), temperature=np.float64(2))
    config = TrainConfig(epochs=np.int64(3), learning_rate=np.logspace(-2, -1, 3)[1], nesterov=np.bool_(True))
    values = (loss.weights, loss.temperature, config.epochs, config.learning_rate, config.nesterov)
    assert [type(value) for value in values] == [str, float, int, float, bool]
    assert type(TrainConfig(seed=True).seed) is int


@pytest.mark.parametrize(("field", "kind"), [("loss", "LossConfig"), ("augmentation", "Augmentation")])
@pytest.mark.parametrize("value", [print, "mixup", None, {}])
def test_a_loss_or_augmentation_of_ones_own_is_referred_to_a_loop_of_ones_own(field, kind, value):
    with pytest.raises(TypeError, match=rf"{field} must be of type {kind}, got {re.escape(repr(value))}; .* loop"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("distillation", 1.0), ("distillation", -0.1), ("label_smoothing", 1.5), ("temperature", 0.0)]
)
def test_a_loss_that_makes_no_sense_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*{value}"):
        LossConfig(**{field: value})
