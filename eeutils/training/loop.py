"""Training: one loop for every network and recipe."""

import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from eeutils.analysis.predictions import collect_logits
from eeutils.data import ImageData, TrainBatches
from eeutils.errors import TrainingDivergedError
from eeutils.models import MultiExitNet
from eeutils.training.checkpoint import load_checkpoint, save_checkpoint
from eeutils.training.config import TrainConfig
from eeutils.training.history import History
from eeutils.training.losses import exit_losses, exit_weights

# torch.compile takes a minute or so; a run has to have this many steps to win it back.
_STEPS_THAT_PAY_FOR_COMPILING = 2_000
_SECONDS_BETWEEN_REPORTS = 1.0


def fit(
    net: MultiExitNet,
    data: ImageData,
    config: TrainConfig,
    *,
    checkpoint: Path | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> History:
    """Train `net` in place on `data.train`; after each epoch measure it on `data.val`.

    With `checkpoint`, the run is saved there after every epoch and, if the file exists, taken up from it: killed and
    resumed, a run on the CPU ends with the very weights that it would have had undisturbed.

    Args:
        net: the network; it ends on the device it came from, in evaluation mode.
        data: images and labels.
        config: see `TrainConfig`; `recipe(name)` has some.
        checkpoint: a file of this run's own.
        device: where to train; by default a GPU if there is one.
        progress: show a bar with loss, validation accuracy of every exit, images/s and the time left.

    Raises:
        ValueError: if network and data do not fit, or the checkpoint is of another config or network.
        TrainingDivergedError: if the loss becomes NaN or infinite; the last checkpoint is from before.
        StorageError: if a checkpoint cannot be written; the one before is still there.
        KeyboardInterrupt: passed on; the checkpoint of the last finished epoch stands.
    """
    _check_fit(net, data)
    home = next(net.parameters()).device
    run = _Run(net, data, config, torch.device(device or default_device()))
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        run.restore(path)
    elif path is not None:
        run.save(path)  # an unwritable path is found out now, not after an epoch
    bar = tqdm(
        total=config.epochs * run.images_per_epoch,
        initial=run.epoch * run.images_per_epoch,
        unit="img",
        unit_scale=True,
        smoothing=0.05,
        disable=not progress,
        file=sys.stderr,
    )
    try:
        with bar:
            while run.epoch < config.epochs:
                run.train_epoch(bar)
                if path is not None:
                    run.save(path)
    except KeyboardInterrupt:
        kept = f"{path} has its first {run.epoch} epochs; call fit again to go on" if path else "nothing was saved"
        print(f"training was interrupted: {kept}", file=sys.stderr)
        raise
    finally:
        net.eval().to(home)
    return History(tuple(run.rows))


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Run:
    """The moving parts of one training run; between epochs its state is exactly what a checkpoint holds."""

    def __init__(self, net: MultiExitNet, data: ImageData, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.net = net.to(device, memory_format=torch.channels_last)
        self.batches = TrainBatches(data.train, config.batch_size, config.augmentation, device, config.seed)
        self.val = data.val.to(device)
        self.weights = torch.tensor(exit_weights(config.loss.weights, net.num_exits), device=device)
        self.optimizer = _optimizer(net, config, device)
        dtype = _autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
        self.forward = torch.compile(net) if self._compiles() else net
        self.epoch = 0
        self.rows: list[dict[str, float]] = []

    @property
    def images_per_epoch(self) -> int:
        return len(self.batches) * self.batches.batch_size

    def train_epoch(self, bar: tqdm) -> None:
        """One pass over the training split and one over the validation split; adds a row to the history."""
        started = time.perf_counter()
        losses = self._pass_over_training_split(bar)
        seconds_training = time.perf_counter() - started
        accuracy = self._validate()
        self.epoch += 1
        row = {"epoch": self.epoch, "learning_rate": self._learning_rate(self.epoch * len(self.batches))}
        row["train_loss"] = float(losses @ self.weights.cpu())
        row |= {f"train_loss_exit{number}": loss for number, loss in enumerate(losses.tolist(), 1)}
        row |= {f"val_accuracy_exit{number}": share for number, share in enumerate(accuracy.tolist(), 1)}
        row["images_per_second"] = self.images_per_epoch / seconds_training
        row["seconds"] = time.perf_counter() - started
        self.rows.append(row)
        bar.set_description(f"epoch {self.epoch}/{self.config.epochs}")

    def save(self, path: Path) -> None:
        state = {
            "epoch": self.epoch,
            "rows": self.rows,
            "config": asdict(self.config),
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(path, state)

    def restore(self, path: Path) -> None:
        state = load_checkpoint(path)
        here = asdict(self.config)
        changed = [name for name in here if state["config"].get(name) != here[name]]
        if changed:
            raise ValueError(f"{path} is of a run with another {', '.join(changed)}; use another file, or remove it")
        try:
            self.net.load_state_dict(state["net"])
        except RuntimeError as error:
            raise ValueError(f"{path} is of another network: {error}") from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.rows = state["epoch"], list(state["rows"])

    def _pass_over_training_split(self, bar: tqdm) -> Tensor:
        """Mean loss of each exit over the epoch, (E,) on the CPU."""
        self.net.train()
        total = torch.zeros(self.net.num_exits, device=self.device)
        reported, pending = time.perf_counter(), 0
        # Dropout and the like draw from the global generator: theirs, too, depends on the epoch's number alone.
        with torch.random.fork_rng(devices=_cuda_indices(self.device)):
            torch.manual_seed(self.config.seed * 1_000_003 + self.epoch)
            for step, (images, labels) in enumerate(self.batches.epoch(self.epoch)):
                total += self._step(images, labels, self.epoch * len(self.batches) + step)
                pending += len(labels)
                if time.perf_counter() - reported > _SECONDS_BETWEEN_REPORTS:
                    self._report(bar, total / (step + 1), pending)
                    reported, pending = time.perf_counter(), 0
        mean = total / len(self.batches)
        self._report(bar, mean, pending)
        return mean.cpu()

    def _step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """One update of the weights. Nothing here waits for the device. Returns the exits' losses, (E,)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step + 1)
        with self.autocast:
            losses = exit_losses(self.forward(images), labels, self.config.loss)
        self.scaler.scale(losses @ self.weights).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return losses.detach()

    def _report(self, bar: tqdm, losses: Tensor, images: int) -> None:
        """Update the bar; about once a second, so that reading the losses costs nothing. Stops a diverged run."""
        loss = float(losses @ self.weights)
        if not loss - loss == 0:  # neither NaN nor infinite
            raise TrainingDivergedError(
                f"the loss became {loss} in epoch {self.epoch + 1} at learning rate "
                f"{self.optimizer.param_groups[0]['lr']:.3g}; lower learning_rate (now {self.config.learning_rate}) or "
                "check the images. The network's weights are spoilt; a checkpoint, if any, is from before"
            )
        accuracy = [value for name, value in (self.rows[-1] if self.rows else {}).items() if "accuracy" in name]
        bar.set_postfix_str(f"loss {loss:.3f}, val " + " ".join(f"{share:.1%}" for share in accuracy), refresh=False)
        bar.update(images)

    def _validate(self) -> Tensor:
        """Accuracy of each exit on the validation split, (E,)."""
        with self.autocast:
            logits = collect_logits(self.net, self.val)
        return (logits.argmax(-1) == self.val.labels).float().mean(1).cpu()

    def _learning_rate(self, step: int) -> float:
        """For the `step`-th update, counted from 1."""
        config, total = self.config, self.config.epochs * len(self.batches)
        if config.schedule == "halving":
            return config.learning_rate * 0.5 ** ((step - 1) // (config.halve_every * len(self.batches)))
        rising = config.warmup * total
        return config.learning_rate * min(step / max(rising, 1), (total - step) / (total - rising))

    def _compiles(self) -> bool:
        if self.config.compile != "auto":
            return self.config.compile == "yes"
        steps = self.config.epochs * len(self.batches)
        return self.device.type == "cuda" and steps >= _STEPS_THAT_PAY_FOR_COMPILING


def _optimizer(net: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.SGD:
    weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    norms_and_biases = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": norms_and_biases, "weight_decay": 0.0},
    ]
    # The fused kernel takes the loss scaler's verdict on the device; the others would ask the host at every step.
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, fused=device.type == "cuda"
    )


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        native_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native_bf16 else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _cuda_indices(device: torch.device) -> list[int]:
    return [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []


def _check_fit(net: MultiExitNet, data: ImageData) -> None:
    with torch.inference_mode():
        first, _ = next(data.val.take(slice(0, 1)).batches(1))
        was_training = net.training
        try:
            answers = net.eval()(first.to(next(net.parameters()).device))
        except RuntimeError as error:
            raise ValueError(f"the network cannot take images of shape {tuple(first.shape[1:])}: {error}") from error
        finally:
            net.train(was_training)
    if answers[-1].shape[1] < len(data.classes):
        raise ValueError(f"the network has {answers[-1].shape[1]} outputs, the data {len(data.classes)} classes")
