import pytest

from eeutils.data import Augmentation
from eeutils.training import LossConfig, TrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 2.5),
        ("learning_rate", float("inf")),
        ("filter_learning_rate", 0.0),
        ("warmup", 1.0),
        ("momentum", 1.0),
        ("nesterov", "no"),
        ("weight_decay", -1e-4),
        ("seed", -1),
        ("seed", 2**32),
        ("schedule", "cosine"),
        ("drops", (0.5, 1.0)),
        ("trained", "last_exit"),
        ("precision", "fp8"),
        ("loss", print),
        ("augmentation", "mixup"),
    ],
)
def test_train_config_names_a_value_that_does_not_fit(field, value):
    with pytest.raises(ValueError, match=rf"^{field} ") as error:
        TrainConfig(**{field: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"), [("distillation", 1.0), ("label_smoothing", 1.5), ("temperature", 0.0), ("weights", None)]
)
def test_loss_config_names_a_value_that_does_not_fit(field, value):
    with pytest.raises(ValueError, match=f"^{field} .*{value}"):
        LossConfig(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("flip", "no"), ("translate", 1.5), ("cutout", -1), ("contrast", 1.5)])
def test_augmentation_names_a_value_that_does_not_fit(field, value):
    with pytest.raises(ValueError, match=f"^{field} .*{value}"):
        Augmentation(**{field: value})
