import pytest
import torch

from eeutils.training import choose_device, default_device
from eeutils.training.device import autocast_dtype, compute_capability, should_compile


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
    ("choice", "capability", "steps", "expected"),
    [
        ("auto", None, 10**6, False),
        ("auto", (7, 5), 10, False),
        ("auto", (7, 5), 10**6, True),
        ("yes", None, 1, True),
        ("no", (9, 0), 10**6, False),
    ],
)
def test_compiling_has_to_pay(choice, capability, steps, expected):
    assert should_compile(choice, capability, steps) is expected


def test_a_cpu_has_no_capability():
    assert compute_capability(torch.device("cpu")) is None


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_the_default_is_a_gpu_if_there_is_one(monkeypatch, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert default_device().type == expected
    assert choose_device().type == expected


def test_a_device_is_taken_by_name_or_as_it_is():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda:1' asked for, but torch finds no GPU"):
        choose_device("cuda:1")


def test_an_unknown_device_lists_the_choices():
    with pytest.raises(ValueError, match=r"'gpu'.*\['cpu', 'cuda'\]"):
        choose_device("gpu")
