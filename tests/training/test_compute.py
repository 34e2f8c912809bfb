import pytest
import torch

from eeutils.training.compute import autocast_dtype, can_compile, compute_capability, should_compile


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        (None, torch.float32),  # a CPU
        ((6, 1), torch.float16),  # GTX 1080
        ((7, 0), torch.float16),  # V100
        ((7, 5), torch.float16),  # T4
        ((8, 0), torch.bfloat16),  # A100
        ((8, 9), torch.bfloat16),  # L4
        ((10, 0), torch.bfloat16),  # B200
    ],
)
def test_auto_takes_what_the_device_is_fast_at(capability, expected):
    assert autocast_dtype("auto", capability) is expected


@pytest.mark.parametrize("capability", [None, (7, 5), (9, 0)])
@pytest.mark.parametrize(
    ("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_precision_asked_for_is_taken_on_every_device(precision, expected, capability):
    assert autocast_dtype(precision, capability) is expected


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
def test_compiling_has_to_pay_and_to_work(monkeypatch, choice, device, steps, works, expected):
    monkeypatch.setattr("eeutils.training.compute.can_compile", lambda device: works)
    assert should_compile(choice, torch.device(device), steps) is expected


def test_a_compiler_that_does_not_work_is_a_warning(monkeypatch):
    def broken(function):
        def run(images):
            raise RuntimeError("Failed to find C compiler.\nSet CC.")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match=r"goes on without: Failed to find C compiler\.$"):
        assert not can_compile(torch.device("cpu"))


def test_a_compiler_that_works_is_found(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert can_compile(torch.device("cpu"))


def test_a_cpu_has_no_capability():
    assert compute_capability(torch.device("cpu")) is None
