from contextlib import suppress

import pytest
import torch

from eeutils.analysis.policies import ThresholdPolicy
from eeutils.analysis.predictions import predict
from eeutils.cascade import Cascade
from eeutils.classifier import load_classifier
from eeutils.data import ImageData, Normalization, Split
from eeutils.device import (
    choose_device,
    cuda_indices,
    default_device,
    device_name,
    matrix_peak,
    share_of_peak,
    tuned_convolutions,
    unrounded_convolutions,
)
from eeutils.models import resnet18_2exits
from eeutils.training import fit, recipe
from eeutils.weights import load_weights

CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


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


def test_choose_device_warns_of_mps(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="PYTORCH_ENABLE_MPS_FALLBACK"):
        assert choose_device("mps").type == "mps"
    assert device_name(torch.device("mps"))


def test_device_name_tells_gpus_and_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert [device_name(torch.device(name)) for name in ("cpu", "cuda:1")] == ["CPU, 3 thread(s)", "GPU 1"]


def test_matrix_peak_counts_two_operations_per_multiply_add(monkeypatch):
    taken = type("Measurement", (), {"median": 2.0})
    monkeypatch.setattr("torch.utils.benchmark.Timer.blocked_autorange", lambda timer, min_run_time: taken)
    assert matrix_peak(torch.device("cpu"), torch.float32) == 2 * 2048**3 / 2.0


def test_share_of_peak_by_hand():
    # 1,000 images/s of 6 * 50 million operations are 0.3 TFLOPS.
    assert share_of_peak(50_000_000, 1000.0, 1.2e12) == pytest.approx(0.25)


def test_cuda_indices_names_the_gpu_of_a_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert [cuda_indices(torch.device(name)) for name in ("cpu", "cuda", "cuda:0")] == [[], [2], [0]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_choose_device_speaks_for_every_front_door(device):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.tensor([0, 1]), ("a", "b"), Normalization((0.5,) * 3, (0.2,) * 3))
    net, data = resnet18_2exits(width=2), ImageData("tiny", split, split, split)
    for ask in (
        lambda: fit(net, data, recipe("digits"), device=device),
        lambda: predict(net, split, device=device),
        lambda: Cascade(net, ThresholdPolicy((0.5,)), device=device),
        lambda: load_weights("resnet18_2exits-spp-cifar10-w16", device),
        lambda: load_classifier("resnet18_2exits-spp-cifar10-w16", device=device),
    ):
        with pytest.raises(ValueError, match=rf"\['cpu'\], got '{device}'"):
            ask()


@pytest.fixture
def switches():
    """The switches, put back by hand: monkeypatch cannot, because they are not ordinary attributes."""

    def values() -> dict[str, bool]:
        names = ("enabled", "benchmark", "deterministic", "allow_tf32")
        return {name: getattr(CUDNN, name) for name in names} | {"matrices": MATMUL.allow_tf32}

    before = values()
    yield values
    MATMUL.allow_tf32 = before.pop("matrices")
    for name, value in before.items():
        setattr(CUDNN, name, value)


@pytest.mark.parametrize(
    ("setting", "tf32", "expected"),
    [
        (tuned_convolutions, True, {"benchmark": True}),
        (unrounded_convolutions, True, {"allow_tf32": False}),
    ],
)
def test_switches_are_put_back(switches, setting, tf32, expected):
    CUDNN.benchmark, CUDNN.allow_tf32, MATMUL.allow_tf32 = False, tf32, not tf32
    before = switches()
    with suppress(KeyError), setting():
        assert switches() == before | expected
        raise KeyError
    assert switches() == before


@pytest.mark.parametrize("by_cudnn", [True, False])
def test_tuned_convolutions_respects_deterministic_algorithms(switches, monkeypatch, by_cudnn):
    CUDNN.deterministic = by_cudnn
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: not by_cudnn)
    with tuned_convolutions():
        assert not CUDNN.benchmark
