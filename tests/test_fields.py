from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest
import torch

from eeutils.fields import Rule, check_fields, check_range


@dataclass(frozen=True)
class Config:
    count: int = 1
    rate: Annotated[float, Rule("positive", lambda value: value > 0)] = 0.5
    nesterov: bool = True
    kind: Literal["a", "b"] = "a"
    weights: tuple[float, ...] | str = "equal"

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", True), ("rate", float("inf")), ("rate", 0.0), ("rate", None), ("kind", "c"), ("weights", (0.5, "x"))],
)
def test_check_fields_refuses_a_value_of_another_kind(name, value):
    with pytest.raises(ValueError, match=rf"^{name} ") as error:
        Config(**{name: value})
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sequence", [tuple, list, np.array, torch.tensor])
def test_check_fields_makes_tuples_of_sequences(sequence):
    assert hash(Config(weights=sequence([0.25, 0.75]))) == hash(Config(weights=(0.25, 0.75)))


def test_check_fields_makes_python_numbers():
    config = Config(count=np.int64(3), rate=np.float32(0.5))
    assert [(type(value), value) for value in (config.count, config.rate)] == [(int, 3), (float, 0.5)]
    assert type(Config(rate=2).rate) is float


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.3, 0.386302, 1, r"0\.387\.\.1, got 0\.3"),
        (2, 0.386302, 1, r"0\.387\.\.1, got 2"),
        (-1, 0, 1 << 20, r"0\.\.1048576, got -1"),
    ],
)
def test_check_range_rounds_a_computed_bound_to_the_allowed_side(value, low, high, shown):
    with pytest.raises(ValueError, match=shown):
        check_range("budget", value, low, high)
