import math
import signal
import threading
from operator import mul

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from eeutils import data_from_tensors, fit, predict
from eeutils.data import TrainBatches
from eeutils.errors import TrainingDivergedError
from eeutils.models import airnet
from eeutils.models.airnet import Whitening
from eeutils.training import History, LossConfig, loop
from eeutils.training.checkpoint import load_checkpoint
from eeutils.training.loop import _Run
from eeutils.training.losses import exit_losses, exit_weights
from eeutils.training.optimizer import trained_part
from eeutils.training.parallel import Workers
from tests.toys import at_step, changed, interrupt, terminate, weights

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
EARLY = {"trained": "early_exits", "loss": LossConfig(weights="equal")}
ADAM = {**EARLY, "optimizer": "adam", "learning_rate": 0.01, "schedule": "steps", "drops": (0.6,)}


def test_fit_learns_and_records_history(tiny_net, tiny_data, tiny_config):
    net = tiny_net()
    frame = fit(net, tiny_data, tiny_config(epochs=6), progress=False).frame()
    losses, accuracies = ([f"{kind}_exit{number}" for number in (1, 2, 3)] for kind in ("train_loss", "val_accuracy"))
    assert list(frame) == ["learning_rate", "train_loss", *losses, *accuracies, "images_per_second", "seconds"]
    assert frame.index.tolist() == list(range(1, 7))
    assert frame["train_loss"].iloc[-1] < 0.8 * frame["train_loss"].iloc[0]
    assert (frame[losses] @ [0.2, 0.3, 0.5]).tolist() == pytest.approx(frame["train_loss"].tolist(), rel=1e-5)
    assert (frame[["images_per_second", "seconds"]] > 0).all(axis=None)
    assert not net.training
    assert frame.iloc[-1][accuracies].tolist() == pytest.approx(predict(net, tiny_data.val).accuracy.tolist())


def test_fit_first_step_is_sgd_on_the_weighted_loss(tiny_net, tiny_data, tiny_config):
    config = tiny_config(epochs=1, batch_size=len(tiny_data.train), warmup=0.0, schedule="halving", weight_decay=0.01)
    net, reference = tiny_net(), tiny_net().train()
    images, labels = next(TrainBatches(tiny_data.train, 10**6, config.augmentation, "cpu", config.seed).epoch(0))
    losses = [nn.functional.cross_entropy(answer, labels) for answer in reference(images)]
    (0.2 * losses[0] + 0.3 * losses[1] + 0.5 * losses[2]).backward()
    fit(net, tiny_data, config, progress=False)
    trained = dict(net.named_parameters())
    for name, parameter in reference.named_parameters():
        step = parameter.grad + (0.01 * parameter if parameter.ndim > 1 else 0)
        expected = parameter - config.learning_rate * 1.9 * step  # Nesterov's first step: 1 + momentum gradients
        torch.testing.assert_close(trained[name], expected, rtol=1e-4, atol=1e-5)


def test_fit_takes_a_loss_per_exit_or_their_sum(tiny_net, tiny_data, tiny_config, results):
    def per_exit(logits: list[Tensor], labels: Tensor) -> Tensor:
        assert {each.dtype for each in logits} == {torch.float32}
        return exit_losses(logits, labels, LossConfig())

    def total(logits: list[Tensor], labels: Tensor) -> Tensor:
        return exit_losses(logits, labels, LossConfig()) @ torch.tensor([0.2, 0.3, 0.5])

    config = tiny_config(precision="bf16")
    default, own, summed = tiny_net(), tiny_net(), tiny_net()
    expected = fit(default, tiny_data, config, progress=False)
    history = fit(own, tiny_data, config, loss=per_exit, progress=False)
    assert results(history) == results(expected)
    history = fit(summed, tiny_data, config, loss=total, progress=False)
    assert changed(own, weights(default)) == changed(summed, weights(default)) == set()
    assert not [name for name in history.rows[0] if name.startswith("train_loss_")]


def test_fit_calls_on_epoch_and_shows_progress(tiny_net, tiny_data, tiny_config, capsys):
    seen: list[History] = []
    history = fit(tiny_net(), tiny_data, tiny_config(), on_epoch=seen.append)
    assert [len(each.rows) for each in seen] == [1, 2, 3]
    assert seen[-1] == history
    shown = capsys.readouterr().err.split("\r")[-1]
    assert all(part in shown for part in ("epoch 3/3", "loss", "img/s", "<00:00"))
    assert shown.split("val")[1].count("%") == 3


def test_fit_depends_on_the_seed_only(tiny_net, tiny_data, tiny_config):
    nets = [tiny_net(), tiny_net(), tiny_net()]
    for drawn_before, (net, seed) in enumerate(zip(nets, (1, 1, 2), strict=True)):
        torch.manual_seed(drawn_before)
        expected = torch.rand(3)
        torch.manual_seed(drawn_before)
        fit(net, tiny_data, tiny_config(epochs=1, seed=seed), progress=False)
        assert torch.equal(torch.rand(3), expected)  # the caller's random numbers go on undisturbed
    assert changed(nets[0], weights(nets[1])) == set()
    assert "units.0.0.weight" in changed(nets[0], weights(nets[2]))


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"precision": "fp16"}, {"average_decay": 0.9}])
def test_fit_learns_in_16_bits_and_with_averaged_weights(tiny_net, tiny_data, tiny_config, settings):
    net = tiny_net()
    history = fit(net, tiny_data, tiny_config(epochs=4, **settings), progress=False)
    assert history.rows[-1]["train_loss"] < history.rows[0]["train_loss"]
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32, torch.int64}
    if "precision" not in settings:
        accuracy = predict(net, tiny_data.val).accuracy.tolist()
        assert [history.rows[-1][f"val_accuracy_exit{number}"] for number in (1, 2, 3)] == pytest.approx(accuracy)


def test_fit_follows_the_ramp_of_exit_weights(tiny_net, tiny_data, tiny_config):
    config = tiny_config(loss=LossConfig(weights="sdn", distillation=0.5))
    for row in fit(tiny_net(), tiny_data, config, progress=False).rows:
        losses = [row[f"train_loss_exit{number}"] for number in (1, 2, 3)]
        assert row["train_loss"] == pytest.approx(sum(map(mul, exit_weights("sdn", 3, row["epoch"] / 3), losses)))


@pytest.mark.parametrize(
    ("trained", "settings"),
    [("early_exits", ADAM), ("exits", {"precision": "bf16"}), ("exits", {"average_decay": 0.9})],
)
def test_fit_changes_the_trained_part_only(dropout_net, tiny_data, tiny_config, trained, settings):
    net = dropout_net()
    before = weights(net)
    history = fit(net, tiny_data, tiny_config(**{**settings, "trained": trained}), progress=False)
    places = tuple(f"exits.{unit}." for unit in (net.exit_after if trained == "exits" else net.exit_after[:-1]))
    part = {name for name in before if name.startswith(places) and "num_batches" not in name}
    assert {name for name in changed(net, before) if "num_batches" not in name} == part
    assert history.rows[-1]["train_loss_exit1"] < history.rows[0]["train_loss_exit1"]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert not any(module.training for module in net.modules())


class _Operations(TorchDispatchMode):
    """Records every operation that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
def test_train_step_never_waits_for_the_device(tiny_net, tiny_data, tiny_config, device):
    config, device = tiny_config(loss=LossConfig(distillation=0.5), average_decay=0.9), torch.device(device)
    run = _Run(tiny_net().to(device), tiny_data, config, None, None, device, Workers(), threading.Event())
    run.weights = torch.ones(3, device=device)
    batches = run.batches.epoch(0)
    run.train_step(*next(batches))
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _Operations() as operations:
            run.train_step(*next(batches))
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert "aten.convolution.default" in operations.names
    assert not [name for name in operations.names if "local_scalar" in name or "nonzero" in name]


@pytest.mark.parametrize(("share", "small"), [(0.0, 0), (0.3, 6), (0.6, 13)])
def test_fit_starts_on_small_images(tiny_net, tiny_data, tiny_config, share, small):
    net, sizes = tiny_net(), []
    net.units[0].register_forward_pre_hook(lambda unit, inputs: sizes.append((unit.training, *inputs[0].shape)))
    fit(net, tiny_data, tiny_config(small_images=share), progress=False)
    steps = [shape for training, *shape in sizes if training and shape[0] == 16]  # not the trial before the run
    assert steps == [[16, 3, 6, 6]] * small + [[16, 3, 8, 8]] * (21 - small)
    assert {tuple(shape[1:]) for training, *shape in sizes if not training} == {(3, 8, 8)}


RESUMED = {
    "sgd": {},
    "dropout": {},
    "averaged": {"average_decay": 0.9, "bias_learning_rate": 4.0},
    "muon": {"optimizer": "muon"},
    "small images": {"small_images": 0.6},  # 12.6 of 21 steps
    "fp16": {"precision": "fp16"},
    "ramp": {"loss": LossConfig(weights="sdn")},
    "early exits": ADAM,
}


@pytest.mark.parametrize(("name", "end"), [*((name, "terminated") for name in RESUMED), ("dropout", "interrupted")])
def test_fit_resumes_exactly(tiny_net, dropout_net, tiny_data, tiny_config, path, monkeypatch, results, name, end):
    build, config = dropout_net if name in ("dropout", "early exits") else tiny_net, tiny_config(**RESUMED[name])
    undisturbed, stopped, resumed = build(), build(), build()
    expected = fit(undisturbed, tiny_data, config, progress=False)
    at_step(monkeypatch, 1, 3, interrupt if end == "interrupted" else terminate)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt if end == "interrupted" else SystemExit):
        fit(stopped, tiny_data, config, checkpoint=path, progress=False)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not stopped.training
    state = load_checkpoint(path)
    assert (state["epoch"], state["step"]) == ((1, 0) if end == "interrupted" else (1, 4))
    for parameter in trained_part(resumed, config.trained).parameters():
        nn.init.zeros_(parameter)  # the checkpoint replaces them
    history = fit(resumed, tiny_data, config, checkpoint=path, progress=False)
    assert changed(resumed, weights(undisturbed)) == set()
    assert results(history) == results(expected)


def test_fit_saves_at_sigterm_after_an_epoch(tiny_net, tiny_data, tiny_config, path, monkeypatch):
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_CHECKPOINTS", math.inf)
    validate = _Run._validate
    monkeypatch.setattr(_Run, "_validate", lambda run: (run.epoch == 1 and terminate(), validate(run))[1])
    with pytest.raises(SystemExit) as exit:
        fit(tiny_net(), tiny_data, tiny_config(), checkpoint=path, progress=False)
    assert exit.value.code == 143
    assert (load_checkpoint(path)["epoch"], load_checkpoint(path)["step"]) == (2, 0)


def test_fit_saves_at_intervals_and_at_the_end(tiny_net, tiny_data, tiny_config, path, monkeypatch):
    epochs = []
    monkeypatch.setattr(loop, "save_state", lambda path, state: epochs.append(state["epoch"]))
    fit(tiny_net(), tiny_data, tiny_config(), checkpoint=path, progress=False)
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_CHECKPOINTS", math.inf)
    fit(tiny_net(), tiny_data, tiny_config(), checkpoint=path, progress=False)
    assert epochs == [0, 1, 2, 3, 0, 3]


def test_fit_only_loads_a_finished_run(tiny_net, tiny_data, tiny_config, path, monkeypatch, capsys):
    net, again = tiny_net(), tiny_net()
    history = fit(net, tiny_data, tiny_config(), checkpoint=str(path), progress=False)
    content = path.read_bytes()
    monkeypatch.setattr(TrainBatches, "epoch", None)
    with torch.no_grad():
        next(again.parameters()).fill_(math.nan)  # as a run that diverged leaves it
    assert fit(again, tiny_data, tiny_config(), checkpoint=path) == history
    assert changed(again, weights(net)) == set()
    assert path.read_bytes() == content
    assert str(path) in capsys.readouterr().err


def test_fit_replaces_a_checkpoint_without_a_step(tiny_net, tiny_data, tiny_config, path, monkeypatch):
    at_step(monkeypatch, 0, 0, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_net(), tiny_data, tiny_config(), checkpoint=path, progress=False)
    fit(tiny_net(width=3), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)
    assert load_checkpoint(path)["epoch"] == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("first", "then"), [("fp32", "fp16"), ("fp16", "fp32")])
def test_fit_resumes_in_another_precision_and_on_another_device(
    tiny_net, tiny_data, tiny_config, path, monkeypatch, first, then, device
):
    net = tiny_net()
    at_step(monkeypatch, 2, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_net(), tiny_data, tiny_config(precision=first), checkpoint=path, device="cpu", progress=False)
    kept = load_checkpoint(path)["rows"]
    config = tiny_config(precision=then, compile="no")
    history = fit(net, tiny_data, config, checkpoint=path, device=device, progress=False)
    assert (list(history.rows[:2]), len(history.rows)) == (kept, 3)
    assert bool(load_checkpoint(path)["scaler"]) == (then == "fp16")
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


@pytest.mark.parametrize("last_step", [False, True])
def test_fit_stops_when_it_diverges(tiny_net, tiny_data, tiny_config, path, monkeypatch, last_step):
    """Also when the last step of an epoch spoils the weights without a loss that shows it."""

    def blow_up(config, step, steps_per_epoch):
        if last_step:
            return 1e-3 if step < 2 * steps_per_epoch else math.inf
        return 1e-3 if step <= steps_per_epoch else 1e30

    monkeypatch.setattr(loop, "learning_rate", blow_up)
    net = tiny_net()
    with pytest.raises(TrainingDivergedError, match=r"(nan|NaN|inf).* in epoch 2"):
        fit(net, tiny_data, tiny_config(), checkpoint=path, progress=False)
    content = path.read_bytes()
    state = load_checkpoint(path)
    assert state["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in state["net"].values())
    assert save(net.state_dict())  # takes contiguous tensors only: the memory format is back
    with pytest.raises(ValueError, match="NaN or infinity"):
        fit(net, tiny_data, tiny_config(), checkpoint=path.with_name("other.pt"), progress=False)
    assert path.read_bytes() == content


def test_fit_trains_what_torch_compile_wraps(tiny_net, tiny_data, tiny_config, path):
    wrapped, plain = torch.compile(tiny_net(), backend="eager"), tiny_net()
    fit(wrapped, tiny_data, tiny_config(), checkpoint=path, progress=False)
    fit(plain, tiny_data, tiny_config(), checkpoint=path, progress=False)
    assert changed(plain, weights(wrapped._orig_mod)) == set()
    assert not wrapped.training


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fit_keeps_the_memory_format(tiny_net, tiny_data, tiny_config, memory_format):
    net = tiny_net().to(memory_format=memory_format)
    fit(net, tiny_data, tiny_config(epochs=1, average_decay=0.9), progress=False)
    assert all(tensor.is_contiguous(memory_format=memory_format) for tensor in net.parameters() if tensor.ndim == 4)


@NEEDS_GPU
@pytest.mark.parametrize("compiled", ["yes", "no"])
@pytest.mark.parametrize("trained", ["all", "exits", "early_exits"])
def test_fit_learns_on_a_gpu(tiny_net, tiny_data, tiny_config, trained, compiled):
    net, config = tiny_net(), tiny_config(epochs=6, trained=trained, compile=compiled)
    losses = fit(net, tiny_data, config, device="cuda", progress=False).frame()["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    there, here = (predict(net, tiny_data.val, device=device) for device in ("cuda", "cpu"))
    assert (there.predicted == here.predicted).double().mean() > 0.9


def test_fit_shows_the_stem_normalised_training_images(tiny_data, tiny_config, monkeypatch):
    images = F.interpolate(tiny_data.train.images.float(), 16).byte()
    data = data_from_tensors(images, tiny_data.train.labels, tiny_data.classes)
    shown, original = [], Whitening.whiten
    monkeypatch.setattr(Whitening, "whiten", lambda layer, images: (shown.append(images), original(layer, images)))
    net = airnet(width=2, num_classes=4)
    fit(net, data, tiny_config(epochs=1), progress=False)
    stem = net.units[0][0].weight.clone()
    fit(net, data, tiny_config(epochs=1, trained="exits"), progress=False)  # the backbone stays as it is
    assert len(shown) == 1
    assert torch.equal(shown[0], data.normalization(data.train.images))
    assert torch.equal(net.units[0][0].weight, stem)
