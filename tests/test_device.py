from contextlib import suppress

import pytest
import torch

from eeutils.device import choose_device, default_device, share_of_peak, tuned_convolutions, unrounded_convolutions


def gpus(monkeypatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


@pytest.mark.parametrize(("number", "expected"), [(2, "cuda"), (0, "cpu")])
def test_choose_device_prefers_a_gpu(monkeypatch, number, expected):
    monkeypatch.setattr("eeutils.device.default_device", default_device)  # the real one
    gpus(monkeypatch, number)
    assert choose_device().type == default_device().type == expected


def test_choose_device_takes_names_and_devices(monkeypatch):
    gpus(monkeypatch, 2)
    for name in ("cpu", "cuda", "cuda:1"):
        assert choose_device(name) == choose_device(torch.device(name)) == torch.device(name)


@pytest.mark.parametrize(
    ("number", "name"), [(0, "cuda:1"), (0, "cuda"), (2, "cuda:2"), (2, "gpu"), (0, "mps"), (0, 7)]
)
def test_choose_device_lists_what_is_available(monkeypatch, number, name):
    gpus(monkeypatch, number)
    with pytest.raises(ValueError, match=rf"'cpu'.*'{name}'"):
        choose_device(name)


def test_share_of_peak_by_hand():
    # 1,000 images/s of 6 * 50 million operations are 0.3 TFLOPS.
    assert share_of_peak(50_000_000, 1000.0, 1.2e12) == pytest.approx(0.25)


@pytest.fixture
def cudnn():
    """The switches, put back by hand: monkeypatch cannot, because they are not ordinary attributes."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    yield cudnn
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before


@pytest.mark.parametrize("before", [True, False])
def test_unrounded_convolutions_puts_the_switch_back(cudnn, before):
    cudnn.allow_tf32 = before
    with suppress(KeyError), unrounded_convolutions():
        assert not cudnn.allow_tf32
        raise KeyError
    assert cudnn.allow_tf32 is before


@pytest.mark.parametrize("before", [True, False])
def test_tuned_convolutions_puts_the_switch_back(cudnn, before):
    cudnn.benchmark = before
    with suppress(KeyError), tuned_convolutions():
        assert cudnn.benchmark
        raise KeyError
    assert cudnn.benchmark is before


@pytest.mark.parametrize("by_cudnn", [True, False])
def test_tuned_convolutions_respects_deterministic_algorithms(cudnn, monkeypatch, by_cudnn):
    cudnn.deterministic = by_cudnn
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: not by_cudnn)
    with tuned_convolutions():
        assert not cudnn.benchmark
