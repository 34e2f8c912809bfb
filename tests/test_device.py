"""Where to compute, and what is said where that is not there."""

import pytest
import torch

from eeutils.analysis.policies import ThresholdPolicy
from eeutils.analysis.predictions import predict
from eeutils.cascade import Cascade
from eeutils.classifier import load_classifier
from eeutils.data import ImageData, Normalization, Split
from eeutils.device import choose_device, cuda_indices, default_device, device_name
from eeutils.models import resnet18_2exits
from eeutils.training import fit, recipe
from eeutils.weights import list_weights, load_weights


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_the_default_is_a_gpu_if_there_is_one(monkeypatch, there, expected):
    monkeypatch.setattr("eeutils.device.default_device", default_device)  # the real one
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


def test_a_device_is_named_as_one_speaks_of_it(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")

    assert device_name(torch.device("cpu")) == "CPU, 3 thread(s)"
    assert device_name(torch.device("cuda:1")) == "GPU 1"


def test_random_numbers_of_a_gpu_are_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)

    assert [cuda_indices(torch.device(name)) for name in ("cpu", "cuda", "cuda:0")] == [[], [2], [0]]


IMAGES = Split(
    torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
    torch.tensor([0, 1]),
    ("a", "b"),
    Normalization((0.5,) * 3, (0.2,) * 3),
)
GIVEN_A_DEVICE = {
    "fit": lambda net, device: fit(net, ImageData("tiny", IMAGES, IMAGES, IMAGES), recipe("digits"), device=device),
    "predict": lambda net, device: predict(net, IMAGES, device=device),
    "Cascade": lambda net, device: Cascade(net, ThresholdPolicy((0.5,)), device=device),
    "load_weights": lambda net, device: load_weights(list_weights()[0], device),
    "load_classifier": lambda net, device: load_classifier("resnet18_2exits-spp-cifar10-w16", device=device),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("function", GIVEN_A_DEVICE)
def test_whoever_is_given_a_device_that_is_not_there_names_it_and_the_choices(function):
    ask = GIVEN_A_DEVICE[function]
    with pytest.raises(ValueError, match=r"device 'cuda' asked for, .*; choose 'cpu'"):
        ask(resnet18_2exits(width=2), "cuda")
    with pytest.raises(ValueError, match=r"unknown device 'gpu'; choose from \['cpu', 'cuda'\]"):
        ask(resnet18_2exits(width=2), "gpu")
