import pytest
import torch

from eeutils.training import choose_device, default_device
from eeutils.training.device import autocast_dtype, can_compile, compute_capability, should_compile


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
    monkeypatch.setattr("eeutils.training.device.can_compile", lambda device: works)
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


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_the_default_is_a_gpu_if_there_is_one(monkeypatch, there, expected):
    monkeypatch.setattr("eeutils.training.device.default_device", default_device)  # the real one
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert default_device().type == expected
    assert choose_device().type == expected


def test_a_device_is_taken_by_name_or_as_it_is():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda:1' asked for, but torch finds no GPU"):
        choose_device("cuda:1")


def test_a_gpu_beyond_the_last_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1").index == 1
    with pytest.raises(ValueError, match="'cuda:2' asked for, but the last one is 'cuda:1'"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "mps"])
def test_an_unknown_device_lists_the_choices(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*\['cpu', 'cuda'\]"):
        choose_device(name)
