"""Torch's global switches: set for a while, and put back."""

import pytest
import torch

from eeutils.device import matrices_rounded_as_convolutions, tuned_convolutions, unrounded_convolutions

CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


def switches() -> dict[str, bool]:
    names = ("enabled", "benchmark", "deterministic", "allow_tf32")
    return {name: getattr(CUDNN, name) for name in names} | {"matrices": MATMUL.allow_tf32}


@pytest.fixture(autouse=True)
def _put_back():
    """By hand: monkeypatch cannot, they are no ordinary attributes."""
    before = switches()
    yield
    MATMUL.allow_tf32 = before.pop("matrices")
    for name, value in before.items():
        setattr(CUDNN, name, value)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (tuned_convolutions, {"benchmark": True}),
        (unrounded_convolutions, {"allow_tf32": False}),
        (matrices_rounded_as_convolutions, {"matrices": True}),
    ],
)
def test_one_switch_is_set_and_all_are_as_before_afterwards(setting, expected):
    CUDNN.benchmark, CUDNN.allow_tf32, MATMUL.allow_tf32 = False, True, False
    before = switches()
    with setting():
        assert switches() == before | expected
    assert switches() == before


def test_an_error_puts_them_back_too():
    before = switches()
    with pytest.raises(KeyError), unrounded_convolutions():
        raise KeyError
    assert switches() == before


@pytest.mark.parametrize("allowed", [True, False])
def test_matrices_are_rounded_if_convolutions_are(allowed):
    CUDNN.allow_tf32, MATMUL.allow_tf32 = allowed, not allowed
    with matrices_rounded_as_convolutions():
        assert MATMUL.allow_tf32 is allowed


def test_who_asks_for_deterministic_algorithms_gets_none_chosen_by_the_clock(monkeypatch):
    CUDNN.deterministic = True
    with tuned_convolutions():
        assert not CUDNN.benchmark
    CUDNN.deterministic = False
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with tuned_convolutions():
        assert not CUDNN.benchmark
