import pytest
import torch
from torch import nn

from eeutils import MultiExitNet, fit
from eeutils.models import resnet18
from eeutils.training import LossConfig
from eeutils.training.optimizer import trained_part
from eeutils.training.preflight import autocast_dtype, check_fit, should_compile
from tests.toys import unchanged


@pytest.mark.parametrize(
    ("net", "config", "named"),
    [
        ({"in_channels": 1}, {}, r"\(3, 8, 8\), 16 at a time"),
        ({"num_classes": 3}, {}, r"\b3\b"),
        ({}, {"batch_size": 1}, "1 at a time"),
        ({}, {"loss": LossConfig(weights=(0.3, 0.7))}, r"3 numbers.*\(0.3, 0.7\)"),
    ],
)
def test_fit_names_a_misfit_before_training(tiny_net, tiny_data, tiny_config, tmp_path, net, config, named):
    built = tiny_net(**net)
    with unchanged(built), pytest.raises(ValueError, match=named):
        fit(built, tiny_data, tiny_config(**config), checkpoint=tmp_path / "checkpoint.pt", progress=False)
    assert not list(tmp_path.iterdir())


def test_fit_refuses_a_loss_of_another_shape_and_other_than_float32(tiny_net, tiny_data, tiny_config):
    with pytest.raises(ValueError, match=r"^loss .*\(3,\) or \(\), got \(16, 4\)|^loss .*got \(2, 4\)"):
        fit(tiny_net(), tiny_data, tiny_config(), loss=lambda logits, labels: logits[0], progress=False)
    with pytest.raises(ValueError, match="float64"):
        fit(tiny_net().double(), tiny_data, tiny_config(), progress=False)


class Dropped(nn.Module):
    """Overwrites its input, in training mode only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.1, self.training, inplace=True)


def test_fit_names_a_head_that_spoils_deeper_exits(tiny_net, tiny_data, tiny_config):
    net = tiny_net()
    net.exits["3"] = nn.Sequential(Dropped(), net.exits["3"])
    with pytest.raises(ValueError, match="the exit after unit 3"):
        fit(net, tiny_data, tiny_config(), progress=False)


def test_check_fit_tries_the_share_of_one_process(tiny_data, tiny_config):
    """With a batch of two, each of two processes gets one image, too few for a norm over single values."""
    units = [nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4))]
    net = MultiExitNet(units, {0: nn.Sequential(nn.Flatten(), nn.Linear(4, 4))})
    check_fit(net, tiny_data, tiny_config(batch_size=2), None, world_size=1)
    with pytest.raises(ValueError, match="1 at a time"):
        check_fit(net, tiny_data, tiny_config(batch_size=2), None, world_size=2)


def test_check_fit_tries_small_images(tiny_data, tiny_config):
    net = MultiExitNet([nn.Conv2d(3, 4, 7)], {0: nn.Sequential(nn.Flatten(), nn.Linear(16, 4))})
    check_fit(net, tiny_data, tiny_config(), None, 1)
    with pytest.raises(ValueError, match=r"\(3, 6, 6\)"):
        check_fit(net, tiny_data, tiny_config(small_images=0.1), None, 1)


@pytest.mark.parametrize("trained", ["all", "exits", "early_exits"])
def test_check_fit_needs_something_to_train(tiny_net, tiny_data, tiny_config, trained):
    net = tiny_net()
    trained_part(net, trained).requires_grad_(False)
    with pytest.raises(ValueError, match=f"'{trained}'"):
        check_fit(net, tiny_data, tiny_config(trained=trained), None, 1)
    next(trained_part(net, trained).parameters()).requires_grad_(True)
    check_fit(net, tiny_data, tiny_config(trained=trained), None, 1)
    with pytest.raises(ValueError, match="'early_exits'"):
        check_fit(resnet18(width=2, num_classes=4), tiny_data, tiny_config(trained="early_exits"), None, 1)


def test_autocast_dtype_auto_is_what_the_device_is_fast_at(monkeypatch):
    assert autocast_dtype("auto", torch.device("cpu")) is torch.float32
    for capability, expected in {(7, 5): torch.float16, (8, 0): torch.bfloat16, (10, 0): torch.bfloat16}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert autocast_dtype("auto", torch.device("cuda")) is expected
        assert autocast_dtype("fp16", torch.device("cuda")) is torch.float16


@pytest.mark.parametrize(
    ("choice", "device", "steps", "works", "expected"),
    [
        ("auto", "cpu", 10**6, True, False),
        ("auto", "cuda", 10, True, False),
        ("auto", "cuda", 10**6, True, True),
        ("auto", "cuda", 10**6, False, False),
        ("yes", "cpu", 1, False, True),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.compile does not work")
def test_should_compile_long_runs_if_it_works(monkeypatch, choice, device, steps, works, expected):
    def compiled(function):
        if not works:
            raise RuntimeError("Failed to find C compiler.\nSet CC.")
        return lambda images: images

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    assert should_compile(choice, torch.device(device), steps) is expected
