"""How much of a device a training run uses."""

import pytest
import torch

from eeutils.training.throughput import matrix_peak, training_operations


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
