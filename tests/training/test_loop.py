import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from eeutils.analysis.predictions import collect_logits, predict
from eeutils.data import Augmentation, TrainBatches
from eeutils.errors import IntegrityError, StorageError, TrainingDivergedError
from eeutils.models import MultiExitNet, resnet18
from eeutils.training import History, LossConfig, fit, loop
from eeutils.training.checkpoint import load_checkpoint
from eeutils.training.loop import _Run
from eeutils.training.parallel import Workers

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
TIMES = ["images_per_second", "seconds"]


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def assert_same_weights(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(expected)
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []


def assert_same_results(ours: History, expected: History) -> None:
    assert ours.frame().drop(columns=TIMES).equals(expected.frame().drop(columns=TIMES))


@pytest.fixture
def interrupted(monkeypatch):
    """Make the third epoch of the next run end in Ctrl-C after two steps."""
    original = TrainBatches.epoch

    def epoch(self, number):
        for step, batch in enumerate(original(self, number)):
            if number == 2 and step == 2:
                monkeypatch.setattr(TrainBatches, "epoch", original)
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(TrainBatches, "epoch", epoch)


def test_a_run_learns_and_tells_what_happened(tiny_net, tiny_data, tiny_config):
    net, config = tiny_net(), tiny_config(epochs=8)
    frame = fit(net, tiny_data, config, progress=False).frame()
    assert list(frame.columns) == [
        "learning_rate",
        "train_loss",
        *(f"train_loss_exit{number}" for number in (1, 2, 3)),
        *(f"val_accuracy_exit{number}" for number in (1, 2, 3)),
        *TIMES,
    ]
    assert frame.index.tolist() == list(range(1, 9))
    assert frame["train_loss"].iloc[-1] < 0.7 * frame["train_loss"].iloc[0]
    exits = frame[["train_loss_exit1", "train_loss_exit2", "train_loss_exit3"]]
    assert (exits @ [0.2, 0.3, 0.5]).tolist() == pytest.approx(frame["train_loss"].tolist(), rel=1e-5)
    assert (frame[TIMES] > 0).all(axis=None)
    assert not net.training
    images, labels = next(tiny_data.val.batches(len(tiny_data.val)))
    accuracy = [(answer.argmax(1) == labels).float().mean().item() for answer in net(images)]
    assert frame.iloc[-1][[f"val_accuracy_exit{number}" for number in (1, 2, 3)]].tolist() == pytest.approx(accuracy)


def test_the_first_step_is_sgd_on_the_weighted_loss(tiny_net, tiny_data, tiny_config):
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


def test_the_same_seed_trains_the_same_weights_and_another_does_not(tiny_net, tiny_data, tiny_config):
    nets = [tiny_net(), tiny_net(), tiny_net()]
    for drawn_before, (net, seed) in enumerate(zip(nets, (1, 1, 2), strict=True)):
        torch.manual_seed(drawn_before)  # what the caller draws does not matter
        fit(net, tiny_data, tiny_config(epochs=1, seed=seed), progress=False)
    assert_same_weights(weights(nets[0]), weights(nets[1]))
    assert not torch.equal(nets[0].units[0][0].weight, nets[2].units[0][0].weight)


def test_training_leaves_the_callers_random_numbers_alone(tiny_net, tiny_data, tiny_config):
    net = tiny_net()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    fit(net, tiny_data, tiny_config(epochs=1), progress=False)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_train_too(tiny_net, tiny_data, tiny_config, precision):
    net = tiny_net()
    frame = fit(net, tiny_data, tiny_config(epochs=4, precision=precision), progress=False).frame()
    assert frame["train_loss"].iloc[-1] < frame["train_loss"].iloc[0]
    assert {tensor.dtype for tensor in weights(net).values()} == {torch.float32, torch.int64}


def test_self_distillation_trains(tiny_net, tiny_data, tiny_config):
    config = tiny_config(epochs=4, loss=LossConfig(weights="equal", distillation=0.5))
    frame = fit(tiny_net(), tiny_data, config, progress=False).frame()
    assert frame["train_loss_exit3"].iloc[-1] < frame["train_loss_exit3"].iloc[0]


class _Operations(TorchDispatchMode):
    """Writes down every operation that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_never_waits_for_the_device(tiny_net, tiny_data, tiny_config, device):
    config = tiny_config(loss=LossConfig(distillation=0.5), average_decay=0.9)
    run = _Run(tiny_net(), tiny_data, config, torch.device(device), Workers())
    batches = run.batches.epoch(0)
    run._step(*next(batches), 0)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _Operations() as operations:
            run._step(*next(batches), 1)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert "aten.convolution.default" in operations.names
    assert not [name for name in operations.names if "local_scalar" in name or "nonzero" in name]


def test_the_bar_shows_loss_accuracy_speed_and_time_left(tiny_net, tiny_data, tiny_config, capsys):
    fit(tiny_net(), tiny_data, tiny_config(epochs=2))
    shown = capsys.readouterr().err.split("\r")[-1]
    accuracies = shown.split("val")[1].split("]")[0].split()
    assert "epoch 2/2" in shown
    assert "loss" in shown
    assert len(accuracies) == 3
    assert all(share.endswith("%") for share in accuracies)
    assert "img/s" in shown
    assert "<00:00" in shown


def test_without_progress_nothing_is_printed(tiny_net, tiny_data, tiny_config, capsys):
    fit(tiny_net(), tiny_data, tiny_config(epochs=1), progress=False)
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    tiny_net, tiny_data, tiny_config, tmp_path, interrupted, capsys
):
    path, net = tmp_path / "checkpoint.pt", tiny_net()
    with pytest.raises(KeyboardInterrupt):
        fit(net, tiny_data, tiny_config(epochs=4), checkpoint=path, progress=False)
    assert "checkpoint.pt has the epochs saved before; call fit again" in capsys.readouterr().err
    assert not net.training
    assert load_checkpoint(path)["epoch"] == 2
    resumed, undisturbed = tiny_net(), tiny_net()
    nn.init.zeros_(resumed.units[0][0].weight)  # what counts is in the checkpoint
    history = fit(resumed, tiny_data, tiny_config(epochs=4), checkpoint=path, progress=False)
    expected = fit(undisturbed, tiny_data, tiny_config(epochs=4), progress=False)
    assert_same_weights(weights(resumed), weights(undisturbed))
    assert_same_results(history, expected)


def test_epochs_that_are_soon_done_are_not_saved_one_by_one(tiny_net, tiny_data, tiny_config, tmp_path, monkeypatch):
    """Written are: that it can be written, what has taken ten seconds, and the end."""
    now, epochs = [0.0], []

    def tick() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(loop.time, "perf_counter", tick)
    monkeypatch.setattr(loop, "save_checkpoint", lambda path, state: epochs.append(state["epoch"]))
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_CHECKPOINTS", math.inf)
    fit(tiny_net(), tiny_data, tiny_config(), checkpoint=tmp_path / "c.pt", progress=False)
    assert epochs == [0, 3]

    epochs.clear()
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_CHECKPOINTS", 1.0)
    fit(tiny_net(), tiny_data, tiny_config(), checkpoint=tmp_path / "c.pt", progress=False)
    assert epochs == [0, 1, 2, 3]


def test_an_interrupted_run_without_a_checkpoint_says_that_nothing_is_kept(
    tiny_net, tiny_data, tiny_config, interrupted, capsys
):
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_net(), tiny_data, tiny_config(), progress=False)
    assert "interrupted: nothing was saved" in capsys.readouterr().err


def test_a_finished_run_is_told_where_progress_is_shown(tiny_net, tiny_data, tiny_config, tmp_path, capsys):
    path, config = tmp_path / "checkpoint.pt", tiny_config(epochs=1)
    fit(tiny_net(), tiny_data, config, checkpoint=path)
    assert "nothing is trained" not in capsys.readouterr().err
    fit(tiny_net(), tiny_data, config, checkpoint=path, progress=False)
    assert capsys.readouterr() == ("", "")
    fit(tiny_net(), tiny_data, config, checkpoint=path)
    assert f"{path} has all 1 epochs of this run: nothing is trained\n" in capsys.readouterr().err


def test_a_finished_run_is_only_read(tiny_net, tiny_data, tiny_config, tmp_path, monkeypatch):
    path, net, again = tmp_path / "checkpoint.pt", tiny_net(), tiny_net()
    history = fit(net, tiny_data, tiny_config(), checkpoint=str(path), progress=False)
    content = path.read_bytes()
    monkeypatch.setattr(TrainBatches, "epoch", None)
    assert fit(again, tiny_data, tiny_config(), checkpoint=path, progress=False) == history
    assert_same_weights(weights(again), weights(net))
    assert path.read_bytes() == content


@pytest.fixture
def stopped_at_once(tiny_net, tiny_data, tiny_config, tmp_path, monkeypatch):
    """The checkpoint of a run that was interrupted in its first epoch."""

    def interrupt(self, number):
        raise KeyboardInterrupt

    path = tmp_path / "checkpoint.pt"
    with monkeypatch.context() as patched:
        patched.setattr(TrainBatches, "epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny_net(), tiny_data, tiny_config(), checkpoint=path, progress=False)
    assert load_checkpoint(path)["epoch"] == 0
    return path


@pytest.mark.parametrize(
    "changes", [{"config": {"learning_rate": 0.2}}, {"net": {"width": 3}}, {"data": {"name": "other"}}]
)
def test_a_checkpoint_without_an_epoch_gives_way_to_another_run(
    tiny_net, tiny_data, tiny_config, stopped_at_once, changes
):
    config = tiny_config(epochs=1, **changes.get("config", {}))
    data = replace(tiny_data, **changes.get("data", {}))
    net, undisturbed = tiny_net(**changes.get("net", {})), tiny_net(**changes.get("net", {}))
    fit(net, data, config, checkpoint=stopped_at_once, progress=False)
    fit(undisturbed, data, config, progress=False)
    assert_same_weights(weights(net), weights(undisturbed))
    assert load_checkpoint(stopped_at_once)["epoch"] == 1


@pytest.mark.parametrize("changed", [{"precision": "bf16"}, {"compile": "no"}])
def test_a_run_goes_on_with_another_precision_asked_for_and_without_the_compiler(
    tiny_net, tiny_data, tiny_config, tmp_path, interrupted, changed
):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_net(), tiny_data, tiny_config(epochs=3), checkpoint=path, progress=False)
    kept = load_checkpoint(path)["rows"]
    history = fit(tiny_net(), tiny_data, tiny_config(epochs=3, **changed), checkpoint=path, progress=False)
    assert list(history.rows[: len(kept)]) == kept
    assert len(history.rows) == 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("first", "then"), [(torch.float32, torch.float16), (torch.float16, torch.float32)])
def test_a_run_goes_on_in_another_precision_and_on_another_device(
    tiny_net, tiny_data, tiny_config, tmp_path, interrupted, monkeypatch, first, then, device
):
    path, net = tmp_path / "checkpoint.pt", tiny_net()
    monkeypatch.setattr("eeutils.training.loop.autocast_dtype", lambda *_: first)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_net(), tiny_data, tiny_config(epochs=4), checkpoint=path, device="cpu", progress=False)
    kept = load_checkpoint(path)
    assert bool(kept["scaler"]) == (first == torch.float16)
    monkeypatch.setattr("eeutils.training.loop.autocast_dtype", lambda *_: then)
    history = fit(net, tiny_data, tiny_config(epochs=4), checkpoint=path, device=device, progress=False)
    assert len(history.rows) == 4
    assert list(history.rows[:2]) == kept["rows"]
    assert bool(load_checkpoint(path)["scaler"]) == (then == torch.float16)
    assert all(tensor.isfinite().all() for tensor in weights(net).values())


def test_a_damaged_checkpoint_is_refused(tiny_net, tiny_data, tiny_config, tmp_path):
    path = tmp_path / "checkpoint.pt"
    fit(tiny_net(), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="remove it to start afresh"):
        fit(tiny_net(), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False)


def test_an_unwritable_checkpoint_is_found_out_before_the_first_epoch(tiny_net, tiny_data, tiny_config, tmp_path):
    (tmp_path / "file").touch()
    net = tiny_net()
    before = weights(net)
    with pytest.raises(StorageError, match=r"file/checkpoint\.pt"):
        fit(net, tiny_data, tiny_config(), checkpoint=tmp_path / "file" / "checkpoint.pt", progress=False)
    assert_same_weights(weights(net), before)


def test_a_checkpoint_that_has_become_unwritable_is_found_out_before_the_next_epoch(
    tiny_net, tiny_data, tiny_config, tmp_path, monkeypatch, interrupted
):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_net(), tiny_data, tiny_config(), checkpoint=path, progress=False)

    def refuse(state, target):
        raise PermissionError("read-only")

    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(TrainBatches, "epoch", None)
    with pytest.raises(StorageError, match="read-only"):
        fit(tiny_net(), tiny_data, tiny_config(), checkpoint=path, progress=False)


def test_a_diverged_run_stops_and_keeps_the_checkpoint_from_before(
    tiny_net, tiny_data, tiny_config, tmp_path, monkeypatch
):
    def blow_up(config, step, steps_per_epoch):
        return 1e-3 if step <= steps_per_epoch else 1e30

    monkeypatch.setattr("eeutils.training.loop.learning_rate", blow_up)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingDivergedError, match=r"became (nan|inf|-inf) in epoch 2 .*lower learning_rate"):
        fit(tiny_net(), tiny_data, tiny_config(), checkpoint=path, progress=False)
    state = load_checkpoint(path)
    assert state["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in state["net"].values())


def test_a_network_that_diverged_does_not_spoil_the_checkpoint(tiny_net, tiny_data, tiny_config, tmp_path):
    net, path = tiny_net(), tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingDivergedError):
        fit(net, tiny_data, tiny_config(learning_rate=1e30), checkpoint=path, progress=False)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"NaN or infinity in"):
        fit(net, tiny_data, tiny_config(), checkpoint=path, progress=False)
    assert path.read_bytes() == before


def test_a_checkpoint_replaces_weights_that_a_run_has_spoilt(tiny_net, tiny_data, tiny_config, tmp_path):
    path = tmp_path / "checkpoint.pt"
    fit(tiny_net(), tiny_data, tiny_config(), checkpoint=path, progress=False)
    net = tiny_net()
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    fit(net, tiny_data, tiny_config(), checkpoint=path, progress=False)
    assert all(weight.isfinite().all() for weight in net.parameters())


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_a_compiled_network_and_what_it_wraps_share_a_checkpoint(
    tiny_net, tiny_data, tiny_config, tmp_path, wrapped_first
):
    one, other = (torch.compile(tiny_net(), backend="eager"), tiny_net())[:: 1 if wrapped_first else -1]
    path = tmp_path / "checkpoint.pt"
    fit(one, tiny_data, tiny_config(), checkpoint=path, progress=False)
    history = fit(other, tiny_data, tiny_config(), checkpoint=path, progress=False)
    assert len(history.rows) == tiny_config().epochs
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    assert not one.training
    assert not other.training


def test_a_last_step_that_spoils_the_weights_is_not_saved(tiny_net, tiny_data, tiny_config, tmp_path, monkeypatch):
    def blow_up(config, step, steps_per_epoch):
        return 1e-3 if step < 2 * steps_per_epoch else float("inf")

    monkeypatch.setattr("eeutils.training.loop.learning_rate", blow_up)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingDivergedError, match="answers became NaN or infinite in epoch 2"):
        fit(tiny_net(), tiny_data, tiny_config(), checkpoint=path, progress=False)
    assert load_checkpoint(path)["epoch"] == 1


@pytest.mark.parametrize(
    ("net", "config", "message"),
    [
        ({"in_channels": 1}, {}, r"images of shape \(3, 8, 8\), 16 at a time: .* to have 1 channels"),
        ({"num_classes": 3}, {}, "the network has 3 outputs, the data 4 classes"),
        ({}, {"augmentation": Augmentation(translate=8, cutout=0)}, "got 8 and 0"),
        ({}, {"augmentation": Augmentation(translate=0, cutout=8)}, "got 0 and 8"),
        ({}, {"batch_size": 1}, "1 at a time: .*more than 1 value per channel"),
        ({}, {"loss": LossConfig(weights=(0.3, 0.7))}, r"2 exit weights .* with 3 exits"),
        ({}, {"loss": LossConfig(weights="deepest")}, "unknown weights 'deepest'"),
    ],
)
def test_what_does_not_fit_is_said_before_training(tiny_net, tiny_data, tiny_config, tmp_path, net, config, message):
    built = tiny_net(**net)
    before = weights(built)
    with pytest.raises(ValueError, match=message):
        fit(built, tiny_data, tiny_config(**config), checkpoint=tmp_path / "checkpoint.pt", progress=False)
    assert_same_weights(weights(built), before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_named(tiny_net, tiny_data, tiny_config, dtype):
    message = rf"'units\.0\.0\.weight' of the network is {dtype}; train in float32 \(`net\.float\(\)`\)"
    with pytest.raises(ValueError, match=message):
        fit(tiny_net().to(dtype), tiny_data, tiny_config(), progress=False)


class Dropped(nn.Module):
    """Writes into what it reads, only while it is trained."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.1, self.training, inplace=True)


def test_a_head_that_spoils_deeper_exits_is_named(tiny_net, tiny_data, tiny_config):
    net = tiny_net()
    net.exits["3"] = nn.Sequential(Dropped(), net.exits["3"])
    with pytest.raises(ValueError, match="the exit after unit 3 works in place on"):
        fit(net, tiny_data, tiny_config(), progress=False)


def test_what_is_no_config_is_named(tiny_net, tiny_data):
    with pytest.raises(TypeError, match=r"must be a TrainConfig, such as recipe\('slim'\), got 'slim'"):
        fit(tiny_net(), tiny_data, "slim", progress=False)


def test_every_exit_needs_an_output_for_every_class(tiny_data, tiny_config):
    whole = resnet18(width=2, num_classes=4)
    net = MultiExitNet(whole.units, {2: resnet18(width=2, num_classes=2).exits["8"], 8: whole.exits["8"]})
    net.exits["2"][-1] = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="2 outputs, the data 4 classes"):
        fit(net, tiny_data, tiny_config(), progress=False)


def test_a_network_with_more_outputs_than_there_are_classes_is_an_error(tiny_net, tiny_data, tiny_config):
    with pytest.raises(ValueError, match="the network has 9 outputs, the data 4 classes"):
        fit(tiny_net(num_classes=9), tiny_data, tiny_config(epochs=1), progress=False)


@pytest.mark.parametrize(("part", "word"), [("train", "training"), ("val", "validation")])
def test_a_split_without_a_class_is_an_error_that_names_it(tiny_net, tiny_data, tiny_config, part, word):
    split = getattr(tiny_data, part)
    few = replace(tiny_data, **{part: split.take((split.labels != 1) & (split.labels != 3))})
    with pytest.raises(ValueError, match=rf"the {word} split has 2 of 4 classes: no image is of \['b', 'd'\]"):
        fit(tiny_net(), few, tiny_config(), progress=False)


@pytest.mark.parametrize(("batch_size", "at_a_time"), [(4, 16), (112, 448), (128, 500), (10**6, 500)])
def test_validation_takes_few_images_at_a_time_where_training_does(
    tiny_net, tiny_data, tiny_config, monkeypatch, batch_size, at_a_time
):
    seen = []

    def collect(net, split, *, batch_size):
        seen.append(batch_size)
        return collect_logits(net, split, batch_size=batch_size)

    monkeypatch.setattr("eeutils.training.loop.collect_logits", collect)
    fit(tiny_net(), tiny_data, tiny_config(epochs=1, batch_size=batch_size), progress=False)
    assert seen == [at_a_time]


def test_a_run_of_one_step_changes_the_weights(tiny_net, tiny_data, tiny_config):
    net = tiny_net()
    before = weights(net)
    fit(net, tiny_data, tiny_config(epochs=1, batch_size=len(tiny_data.train)), progress=False)
    assert not torch.equal(net.units[0][0].weight, before["units.0.0.weight"])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("average_decay", [0.0, 0.9])
def test_the_network_keeps_its_memory_format(tiny_net, tiny_data, tiny_config, memory_format, average_decay):
    net = tiny_net().to(memory_format=memory_format)
    fit(net, tiny_data, tiny_config(epochs=1, average_decay=average_decay), progress=False)
    assert all(tensor.is_contiguous(memory_format=memory_format) for tensor in net.parameters() if tensor.ndim == 4)


def test_an_interrupted_network_keeps_its_memory_format(tiny_net, tiny_data, tiny_config, interrupted):
    net = tiny_net()
    with pytest.raises(KeyboardInterrupt):
        fit(net, tiny_data, tiny_config(), progress=False)
    assert save(net.state_dict())  # takes contiguous tensors and no others


def test_a_diverged_network_keeps_its_memory_format(tiny_net, tiny_data, tiny_config):
    net = tiny_net()
    with pytest.raises(TrainingDivergedError):
        fit(net, tiny_data, tiny_config(learning_rate=1e30), progress=False)
    assert save(net.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", ["yes", "no"])
@pytest.mark.parametrize("trained", ["all", "exits", "early_exits"])
def test_on_a_gpu_networks_learn_compiled_or_not(tiny_net, tiny_data, tiny_config, trained, compiled):
    net, config = tiny_net(), tiny_config(epochs=6, trained=trained, compile=compiled)
    losses = fit(net, tiny_data, config, device="cuda", progress=False).frame()["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    there, here = (predict(net, tiny_data.val, device=device) for device in ("cuda", "cpu"))
    assert (there.predicted == here.predicted).double().mean() > 0.9


def test_torchs_default_dtype_may_be_another(tiny_net, tiny_data, tiny_config):
    net, expected = tiny_net(), fit(tiny_net(), tiny_data, tiny_config(epochs=1), progress=False)
    torch.set_default_dtype(torch.float64)
    try:
        history = fit(net, tiny_data, tiny_config(epochs=1), progress=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert history.rows[0]["train_loss"] == pytest.approx(expected.rows[0]["train_loss"], rel=1e-3)
