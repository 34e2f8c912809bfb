"""How much of a device a training run uses."""

import pytest
import torch

from eeutils.training.compute import (
    matrix_peak,
    share_of_peak,
    training_operations,
    training_peak,
)


def test_a_step_is_three_forward_passes_of_two_operations_a_multiply_add():
    assert training_operations(555_000_000) == 3_330_000_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_what_a_product_of_matrices_reaches(dtype, monkeypatch):
    """A fake clock: whatever is multiplied takes 2 s."""
    taken = type("Measurement", (), {"median": 2.0})
    monkeypatch.setattr("torch.utils.benchmark.Timer.blocked_autorange", lambda timer, min_run_time: taken)

    assert matrix_peak(torch.device("cpu"), dtype) == 2 * 2048**3 / 2.0


def test_the_peak_is_measured():
    assert matrix_peak(torch.device("cpu"), torch.float32) > 1e8


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_the_peak_is_measured_in_what_training_computes_in(precision, dtype, monkeypatch):
    peaks = {torch.float32: 1.0, torch.bfloat16: 2.0}
    monkeypatch.setattr("eeutils.training.compute.matrix_peak", lambda device, dtype: peaks[dtype])

    assert training_peak(precision, torch.device("cpu")) == peaks[dtype]


def test_the_share_of_the_peak_by_hand():
    # 1,000 images/s of 6 * 50 million operations are 0.3 TFLOPS.
    assert share_of_peak(50_000_000, 1000.0, 1.2e12) == pytest.approx(0.25)
