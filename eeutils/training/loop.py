"""Training: one loop for every network and recipe."""

import math
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from eeutils.analysis.predictions import collect_logits
from eeutils.data import ImageData, TrainBatches
from eeutils.data.batches import seed_of
from eeutils.device import choose_device, cuda_indices, tuned_convolutions
from eeutils.errors import TrainingDivergedError
from eeutils.models import MultiExitNet, whiten
from eeutils.models.memory import channels_last, check_weights
from eeutils.models.multiexit import uncompiled
from eeutils.training.checkpoint import data_identity, difference_between, load_checkpoint, save_checkpoint
from eeutils.training.checks import check_fit
from eeutils.training.compute import (
    autocast_dtype,
    compute_capability,
    frozen_tensors,
    should_compile,
    start_training,
    trained_part,
    training_forward,
)
from eeutils.training.config import TrainConfig
from eeutils.training.history import History
from eeutils.training.losses import exit_losses, exit_weights
from eeutils.training.optimizer import WeightAverage, create_optimizer, learning_rate, restore_optimizer
from eeutils.training.parallel import Workers

_SECONDS_BETWEEN_REPORTS = 1.0
# Where epochs take a second, on a large GPU, writing a hundred megabytes after each would be a good part of the time.
_SECONDS_BETWEEN_CHECKPOINTS = 10.0
# Validation keeps no activations for a way back, so that it has room for more images at a time than training.
_IMAGES_TO_WHITEN = 5_000
_VALIDATION_BATCHES, _MOST_VALIDATION_IMAGES = 4, 500
# Apart from the batches' own draws, which begin with the same seed.
_DROPOUT_SEED = 0x5EED


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

    With `checkpoint`, the run is saved there after every epoch, or every ten seconds where epochs are shorter, and at
    the end. If the file exists, the run is resumed from it: killed and resumed, a run on the CPU ends with the very
    weights that it would have had undisturbed. It may be resumed on another device and in another precision. If it is
    finished, nothing is trained, and `net` gets its weights. A network is known by the names and shapes of its tensors
    alone: give each variant with the same ones (another activation, stride or first weights) a file of its own.

    In processes that torch.distributed has made known to each other all train one network together, see
    `eeutils.training.parallel`; the first of them shows the progress and writes the checkpoint.

    Args:
        net: the network; it ends on the device it came from and in the memory format it had, in evaluation mode. Of one
            that `torch.compile` made, what it wraps is trained: whether training is compiled, `config.compile` says.
        data: images and labels.
        config: see `TrainConfig`; `recipe(name)` has some.
        checkpoint: a file of this run's own.
        device: where to train; by default a GPU if there is one.
        progress: show a bar with loss, validation accuracy of every exit, images/s and the time left; and say on stderr
            if the checkpoint is of a finished run.

    Raises:
        TypeError: if `net` has no exits, `data` are no data set, or `config` is no config.
        ValueError: if there is no such device, if network, data and augmentation do not fit together, if nothing is to
            be trained, if a weight is NaN or infinite and no checkpoint replaces it, or if the checkpoint has epochs of
            another config, network or data set (other training images, labels or normalization, whatever its name);
            or, where exits alone are trained, of another backbone, or of another last exit if it stays, too.
        IntegrityError: if the checkpoint is damaged.
        TrainingDivergedError: if the loss becomes NaN or infinite; the last checkpoint is from before.
        StorageError: if a checkpoint cannot be written; the one before is still there.
        KeyboardInterrupt: passed on; the last checkpoint stands.
    """
    device, net, workers = choose_device(device), uncompiled(net), Workers.of_this_run()
    check_fit(net, data, config, workers.world_size)
    path = None if checkpoint is None else Path(checkpoint)
    home = next(net.parameters()).device
    try:
        with channels_last(net.to(device)), tuned_convolutions():
            run = _Run(net, data, config, device, workers)
            run.resume(path)
            if run.epoch == config.epochs and progress and workers.writes:
                print(f"{path} has all {config.epochs} epochs of this run: nothing is trained", file=sys.stderr)
            with run.bar(progress) as bar:
                while run.epoch < config.epochs:
                    run.train_epoch(bar)
                    if run.is_worth_saving():
                        run.save(path)
            run.finish()
    except KeyboardInterrupt:
        kept = f"{path} has the epochs saved before; call fit again to go on" if path else "nothing was saved"
        if workers.writes:
            print(f"training was interrupted: {kept}", file=sys.stderr)
        raise
    finally:
        net.eval().to(home)
    return History(tuple(run.rows))


class _Run:
    """The moving parts of one training run; between epochs its state is exactly what a checkpoint holds."""

    def __init__(
        self, net: MultiExitNet, data: ImageData, config: TrainConfig, device: torch.device, workers: Workers
    ) -> None:
        self.net, self.data, self.config, self.device, self.workers = net, data, config, device, workers
        if config.trained == "all":
            whiten(net, data.normalization(data.train.images[:_IMAGES_TO_WHITEN].to(device)))
        workers.follow_first([*net.parameters(), *_statistics(net)])
        rank, world_size = workers.rank, workers.world_size
        self.batches = TrainBatches(
            data.train, config.batch_size, config.augmentation, device, config.seed, rank=rank, world_size=world_size
        )
        self.val = data.val.to(device)
        self.trained = trained_part(net, config.trained)
        self.parameters = list(self.trained.parameters())  # once: to walk the modules at every step would take its time
        self.optimizer = create_optimizer(self.trained, config, device)
        dtype = autocast_dtype(config.precision, compute_capability(device))
        self.average = WeightAverage(self.net, config.average_decay) if config.average_decay else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
        steps = config.epochs * len(self.batches)
        forward = training_forward(net, config.trained)
        self.compiled = torch.compile(forward) if should_compile(config.compile, device, steps) else forward
        self.epoch = 0
        self.weights = self._exit_weights()
        self.rows: list[dict[str, float]] = []
        self.saved_at = time.perf_counter()

    @property
    def images_per_epoch(self) -> int:
        return len(self.batches) * self.batches.batch_size

    def bar(self, shown: bool) -> tqdm:
        return tqdm(
            total=self.config.epochs * self.images_per_epoch,
            initial=self.epoch * self.images_per_epoch,
            unit="img",
            unit_scale=True,
            smoothing=0.05,
            disable=not (shown and self.workers.writes),
            file=sys.stderr,
        )

    def train_epoch(self, bar: tqdm) -> None:
        """One pass over the training split and one over the validation split; adds a row to the history."""
        bar.set_description(f"epoch {self.epoch + 1}/{self.config.epochs}")
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
        self._show(bar, row["train_loss"])

    def _pass_over_training_split(self, bar: tqdm) -> Tensor:
        """Mean loss of each exit over the epoch, (E,) on the CPU."""
        start_training(self.net, self.config.trained)
        self.weights = self._exit_weights()
        total = torch.zeros(self.net.num_exits, dtype=torch.float32, device=self.device)
        reported, pending = time.perf_counter(), 0
        # Dropout and the like draw from the global generator: theirs, too, depends on the epoch's number alone.
        with torch.random.fork_rng(devices=cuda_indices(self.device)):
            seed = (self.config.seed * 1_000_003 + self.epoch) ^ _DROPOUT_SEED
            torch.manual_seed(seed_of(seed, self.workers.rank))
            for step, (images, labels) in enumerate(self.batches.epoch(self.epoch)):
                total += self._step(images, labels, self.epoch * len(self.batches) + step)
                pending += self.batches.batch_size
                if time.perf_counter() - reported > _SECONDS_BETWEEN_REPORTS:
                    self._report(bar, total / (step + 1), pending)
                    reported, pending = time.perf_counter(), 0
        mean = total / len(self.batches)
        self._agree(mean)
        self._report(bar, mean, pending)
        return mean.cpu()

    def _step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """One update of the weights. Nothing here waits for the device. Returns the exits' losses, (E,)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step + 1) * group["lr_factor"]
        with self.autocast:
            losses = exit_losses(self.compiled(images), labels, self.config.loss)
        self.scaler.scale(losses @ self.weights).backward()
        self.workers.average_gradients(self.parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step)
        return losses.detach()

    def _agree(self, losses: Tensor) -> None:
        """Give all processes the mean of their losses, (E,), and of what BatchNorm has seen where it was trained."""
        self.workers.average([losses, *_statistics(self.trained)])
        if self.average is not None:
            self.workers.average(_statistics(trained_part(self.average.net, self.config.trained)))

    def _report(self, bar: tqdm, losses: Tensor, images: int) -> None:
        """Move the bar on; about once a second, so that reading the losses costs nothing. Stops a diverged run."""
        loss = float(losses @ self.weights)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}")
        self._show(bar, loss)
        bar.update(images)

    def _show(self, bar: tqdm, loss: float) -> None:
        parts = [f"loss {loss:.3f}"]
        if self.rows:
            accuracy = [share for name, share in self.rows[-1].items() if name.startswith("val_accuracy")]
            parts.append("val " + " ".join(f"{share:.1%}" for share in accuracy))
        bar.set_postfix_str(", ".join(parts))

    def _diverged(self, what: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"{what} in epoch {self.epoch + 1} at learning rate {self.optimizer.param_groups[0]['lr']:.3g}; lower "
            f"learning_rate (now {self.config.learning_rate}) or check the images. The network's weights are spoilt; "
            "a checkpoint, if any, is from before"
        )

    def _validate(self) -> Tensor:
        """Accuracy of each exit on the validation split, (E,)."""
        net = self.net if self.average is None else self.average.net
        images = min(_VALIDATION_BATCHES * self.config.batch_size, _MOST_VALIDATION_IMAGES)
        with self.autocast:
            logits = collect_logits(net, self.val, batch_size=images)
        if not logits.isfinite().all():  # the epoch's very last update can spoil weights without a loss that shows it
            raise self._diverged("the network's answers became NaN or infinite")
        return (logits.argmax(-1) == self.val.labels).float().mean(1).cpu()

    def _exit_weights(self) -> Tensor:
        """The weight of each exit's loss in the coming epoch, (E,) on the device."""
        progress = (self.epoch + 1) / self.config.epochs
        weights = exit_weights(self.config.loss.weights, self.net.num_exits, progress)
        return torch.tensor(weights, dtype=torch.float32, device=self.device)

    def _learning_rate(self, step: int) -> float:
        return learning_rate(self.config, step, len(self.batches))

    def finish(self) -> None:
        """Let the network end as what was validated."""
        if self.average is not None:
            self.net.load_state_dict(self.average.net.state_dict())

    def resume(self, path: Path | None) -> None:
        """Go on from `path` if it is there; if there is something to train, see that it can be written."""
        if path is not None and path.exists():
            self._restore(path)
        check_weights(self.net)  # before they are written over a checkpoint: a run that diverged leaves such behind
        if path is None:
            return
        # All have read by then what the first one is about to replace.
        if len(set(self.workers.gather(self.epoch))) > 1:
            raise ValueError(f"{path} is not the same for all processes: they need one folder that all can read")
        if self.epoch < self.config.epochs:
            self.save(path)  # an unwritable path is found out now, not after an epoch

    def is_worth_saving(self) -> bool:
        """Whether this is the end, or enough has been done since the last time to be a loss."""
        is_long_ago = time.perf_counter() - self.saved_at >= _SECONDS_BETWEEN_CHECKPOINTS
        return is_long_ago or self.epoch == self.config.epochs

    def save(self, path: Path | None) -> None:
        """Write all that changes in a run to `path`, if there is one."""
        if path is None or not self.workers.writes:
            return
        save_checkpoint(path, self._state())
        self.saved_at = time.perf_counter()

    def _state(self) -> dict[str, Any]:
        state = {
            "epoch": self.epoch,
            "rows": self.rows,
            "config": asdict(self.config),
            "data": self.data_identity,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.average is not None:
            state["average"] = self.average.net.state_dict()
        return state

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path)
        # Looked at beforehand: load_state_dict would have changed some weights by the time it objects.
        frozen = frozen_tensors(self.net, self.config.trained)
        if difference := difference_between(state, self._state(), frozen):
            if state["epoch"] == 0:
                return  # nothing was learnt there that would be lost
            raise ValueError(f"{path} is of {difference}; use another file, or remove it")
        self.net.load_state_dict(state["net"])
        if self.average is not None:
            self.average.net.load_state_dict(state["average"])
        restore_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"].keys() == self.scaler.state_dict().keys():  # none is kept where losses are not scaled
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.rows = state["epoch"], list(state["rows"])

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        """By what a checkpoint is told from one on other data; once a run, because the images are hashed."""
        return data_identity(self.data)


def _statistics(part: nn.Module) -> list[Tensor]:
    """Floating buffers, BatchNorm's statistics for one; its count of batches is the same for all."""
    return [tensor for tensor in part.buffers() if tensor.is_floating_point()]
