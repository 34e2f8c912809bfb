import pytest
import torch

from eeutils.training.compute import (
    autocast_dtype,
    can_compile,
    compute_capability,
    matrix_peak,
    share_of_peak,
    should_compile,
    training_peak,
)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        (None, torch.float32),  # a CPU
        ((7, 0), torch.float16),  # V100
        ((7, 5), torch.float16),  # T4
        ((8, 0), torch.bfloat16),  # A100
        ((10, 0), torch.bfloat16),  # B200
    ],
)
def test_autocast_dtype_auto_is_what_the_device_is_fast_at(capability, expected):
    assert autocast_dtype("auto", capability) is expected
    assert autocast_dtype("fp16", capability) is torch.float16


def test_compute_capability_of_a_cpu_is_none():
    assert compute_capability(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("choice", "device", "steps", "works", "expected"),
    [
        ("auto", "cpu", 10**6, True, False),
        ("auto", "cuda", 10, True, False),
        ("auto", "cuda", 10**6, True, True),
        ("auto", "cuda", 10**6, False, False),
        ("yes", "cpu", 1, False, True),
        ("no", "cuda", 10**6, True, False),
    ],
)
def test_should_compile_long_runs_where_it_works(monkeypatch, choice, device, steps, works, expected):
    monkeypatch.setattr("eeutils.training.compute.can_compile", lambda device: works)
    assert should_compile(choice, torch.device(device), steps) is expected


def test_can_compile_warns_of_a_compiler_that_fails(monkeypatch):
    def broken(function):
        def run(images):
            raise RuntimeError("Failed to find C compiler.\nSet CC.")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match=r"Failed to find C compiler\.$"):
        assert not can_compile(torch.device("cpu"))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert can_compile(torch.device("cpu"))


def test_matrix_peak_counts_two_operations_per_multiply_add(monkeypatch):
    taken = type("Measurement", (), {"median": 2.0})
    monkeypatch.setattr("torch.utils.benchmark.Timer.blocked_autorange", lambda timer, min_run_time: taken)
    assert matrix_peak(torch.device("cpu"), torch.float32) == 2 * 2048**3 / 2.0


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_training_peak_is_measured_in_the_dtype_of_training(precision, dtype, monkeypatch):
    peaks = {torch.float32: 1.0, torch.bfloat16: 2.0}
    monkeypatch.setattr("eeutils.training.compute.matrix_peak", lambda device, dtype: peaks[dtype])
    assert training_peak(precision, torch.device("cpu")) == peaks[dtype]


def test_share_of_peak_by_hand():
    # 1,000 images/s of 6 * 50 million operations are 0.3 TFLOPS.
    assert share_of_peak(50_000_000, 1000.0, 1.2e12) == pytest.approx(0.25)
