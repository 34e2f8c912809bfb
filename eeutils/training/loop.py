"""One training run: `fit`, an epoch, a step, and how a run is saved and resumed."""

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm.auto import tqdm

from eeutils.analysis.predictions import collect_logits
from eeutils.data import ImageData, TrainBatches
from eeutils.data.augmentation import shrunk
from eeutils.data.splits import seed_of
from eeutils.device import choose_device, cuda_indices, tuned_convolutions
from eeutils.errors import TrainingDivergedError
from eeutils.files import exclusive, save_state
from eeutils.models import MultiExitNet, whiten
from eeutils.models.memory import channels_last, check_weights
from eeutils.models.multiexit import uncompiled
from eeutils.training.checkpoint import difference, fingerprint, load_checkpoint, sigterm_noted
from eeutils.training.config import TrainConfig
from eeutils.training.history import History, by_exit, show
from eeutils.training.losses import Loss, exit_losses, exit_weights
from eeutils.training.optimizer import (
    WeightAverage,
    create_optimizer,
    frozen_tensors,
    gradients_for,
    learning_rate,
    restore_optimizer,
    set_modes,
    trained_part,
)
from eeutils.training.parallel import Workers
from eeutils.training.preflight import autocast_dtype, check_fit, should_compile

_SECONDS_BETWEEN_REPORTS = 1.0
_SECONDS_BETWEEN_CHECKPOINTS = 10.0  # on a large GPU an epoch takes a second, and so does writing 100 MB
# Validation keeps no activations, so it has room for larger batches than training.
_VALIDATION_BATCHES, _MOST_VALIDATION_IMAGES = 4, 500
_IMAGES_TO_WHITEN = 5_000
_DROPOUT_SEED = 0x5EED  # unlike the seeds of the batches


def fit(
    net: MultiExitNet,
    data: ImageData,
    config: TrainConfig,
    *,
    loss: Loss | None = None,
    on_epoch: Callable[[History], object] | None = None,
    checkpoint: Path | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> History:
    """Train `net` in place on `data.train`; measure it on `data.val` after each epoch.

    With `checkpoint`, the run is saved after epochs, at most every ten seconds; SIGTERM saves it after the current step
    and raises SystemExit. Called again, `fit` resumes the run, or only loads a finished one. On a CPU, the weights are
    bit-equal to those of an undisturbed run. For several GPUs see `eeutils.training.parallel`.

    Args:
        net: the network; it ends in evaluation mode, on its device and in its memory format.
        config: such as `recipe("slim")`.
        loss: a function of the logits of all exits, E times (N, C) float32, and labels (N,). It returns the loss of
            each exit (E,), which `config.loss.weights` add up, or their sum (). By default `exit_losses`.
        on_epoch: called with the history so far after each epoch; an exception ends the run.
        checkpoint: a file for this run only; it identifies the network by shapes of tensors, and `loss` by name.
        device: where to train; by default a GPU if there is one.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: if network, data, config and checkpoint do not fit together, or a weight is NaN or infinite.
        IntegrityError: if the checkpoint is damaged.
        StorageError: if the checkpoint cannot be written, or another process is training into it.
        TrainingDivergedError: if the loss becomes NaN or infinite; the last checkpoint is from before.
    """
    device, net, workers = choose_device(device), uncompiled(net), Workers.of_this_run()
    path = None if checkpoint is None else Path(checkpoint)
    check_fit(net, data, config, loss, workers.world_size)
    home = next(net.parameters()).device
    try:
        with (
            exclusive(path, wait=False) if path and workers.is_first else nullcontext(),
            sigterm_noted(path) as sigterm,
            channels_last(net.to(device)),
            gradients_for(net, config.trained),
            tuned_convolutions(),
            torch.random.fork_rng(devices=cuda_indices(device)),
        ):
            run = _Run(net, data, config, loss, path, device, workers, sigterm)
            run.resume()
            shown = progress and workers.is_first
            if run.epoch == config.epochs and shown:
                print(f"{path} is finished: nothing is trained", file=sys.stderr)
            total, size = config.epochs * len(run.batches), run.batches.batch_size
            options = {"unit": "img", "unit_scale": True, "smoothing": 0.05, "file": sys.stderr, "disable": not shown}
            with tqdm(total=total * size, initial=run.steps_done * size, **options) as bar:
                while run.epoch < config.epochs and not run.stopped:
                    run.train_epoch(bar)
                    if on_epoch and not run.step:
                        on_epoch(History(tuple(run.rows)))
            net.load_state_dict(run.result.state_dict())
    finally:
        net.eval().to(home)
    return History(tuple(run.rows))


@dataclass
class _Run:
    """State of one training run; a checkpoint holds all of it."""

    net: MultiExitNet
    data: ImageData
    config: TrainConfig
    loss: Loss | None
    path: Path | None
    device: torch.device
    workers: Workers
    sigterm: Event

    def __post_init__(self) -> None:
        net, data, config, device = self.net, self.data, self.config, self.device
        self.loss_name = getattr(self.loss, "__qualname__", type(self.loss).__name__)
        self.loss = self.loss or partial(exit_losses, config=config.loss)
        if config.trained == "all":
            whiten(net, data.normalization(data.train.images[:_IMAGES_TO_WHITEN].to(device)))
        self.fingerprint = fingerprint(data) if self.path else {}
        options = asdict(self.workers)
        self.batches = TrainBatches(data.train, config.batch_size, config.augmentation, device, config.seed, **options)
        self.small_steps = round(config.small_images * config.epochs * len(self.batches))
        self.val = data.val.to(device)
        self.optimizer = create_optimizer(trained_part(net, config.trained), config, device)
        dtype = autocast_dtype(config.precision, device)
        self.autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        is_compiled = should_compile(config.compile, device, config.epochs * len(self.batches))
        self.forward = self.workers.wrapped(torch.compile(net) if is_compiled else net, device)
        self.average = WeightAverage(net, config.average_decay) if config.average_decay else None
        self.epoch, self.step, self.stopped = 0, 0, False
        self.losses = torch.zeros((), device=device)  # sum over the steps of this epoch, (E,) or ()
        self.rows: list[dict[str, float]] = []
        self.saved_at = time.perf_counter()

    @property
    def steps_done(self) -> int:
        return self.epoch * len(self.batches) + self.step

    @property
    def result(self) -> MultiExitNet:
        """The network as `fit` returns it: the average, if weights are averaged."""
        return self.net if self.average is None else self.average.net

    def train_epoch(self, bar: tqdm) -> None:
        """Pass over the rest of the training split, validate, add a row to the history, save."""
        bar.set_description(f"epoch {self.epoch + 1}/{self.config.epochs}")
        set_modes(self.net, self.config.trained)
        progress = (self.epoch + 1) / self.config.epochs
        weights = exit_weights(self.config.loss.weights, self.net.num_exits, progress)
        self.weights = torch.tensor(weights, dtype=torch.float32, device=self.device)
        first_step, started = self.step, time.perf_counter()
        reported_at = started
        for images, labels in islice(self.batches.epoch(self.epoch), self.step, None):
            self.losses = self.losses + self.train_step(images, labels)
            self.step += 1
            if self._must_stop() or time.perf_counter() - reported_at > _SECONDS_BETWEEN_REPORTS:
                self._report(bar, self.losses / self.step)  # raises if the run diverged
                reported_at = time.perf_counter()
            if self.stopped:
                self.workers.average(self.losses)
                self.save()
                return
        losses = self.losses / self.step
        self.workers.average(losses)
        self.workers.copy_from_first([*self.net.buffers(), *self.result.buffers()])
        self._report(bar, losses)
        speed = (self.step - first_step) * self.batches.batch_size / (time.perf_counter() - started)
        rate = learning_rate(self.config, self.steps_done, len(self.batches))
        row = {"epoch": self.epoch + 1, "learning_rate": rate, "train_loss": float(self._objective(losses))}
        row |= by_exit("train_loss", losses) | by_exit("val_accuracy", self._validate())
        row |= {"images_per_second": speed, "seconds": time.perf_counter() - started}
        self.rows.append(row)
        self.epoch, self.step, self.losses = self.epoch + 1, 0, torch.zeros_like(losses)
        show(bar, row["train_loss"], self.rows)
        is_due = time.perf_counter() - self.saved_at >= _SECONDS_BETWEEN_CHECKPOINTS
        if self._must_stop() or is_due or self.epoch == self.config.epochs:
            self.save()

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Update the weights once and return the losses, (E,) or (). Nothing waits for the device."""
        number = self.steps_done
        if number < self.small_steps:
            images = shrunk(images)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, number + 1, len(self.batches)) * group["lr_factor"]
        # Dropout draws from the global generator. Seeded at each step, a resumed run draws the same.
        torch.manual_seed(seed_of((self.config.seed * 1_000_003 + number) ^ _DROPOUT_SEED, self.workers.rank))
        with self.autocast:
            logits = self.forward(images)
        losses = self.loss([each.float() for each in logits], labels)
        self.scaler.scale(self._objective(losses)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(number)
        return losses.detach()

    def _objective(self, losses: Tensor) -> Tensor:
        """Sum the exits' losses (E,) with their weights; a sum () stays."""
        return losses @ self.weights if losses.ndim else losses

    def _must_stop(self) -> bool:
        """Return True in all processes once SIGTERM has reached any of them."""
        self.stopped = self.workers.any(self.sigterm.is_set())
        if self.stopped:
            self.sigterm.set()
        return self.stopped

    def _validate(self) -> Tensor:
        """Return the accuracy of each exit on the validation split, (E,)."""
        images = min(_VALIDATION_BATCHES * self.config.batch_size, _MOST_VALIDATION_IMAGES)
        with self.autocast:
            logits = collect_logits(self.result, self.val, batch_size=images)
        if not logits.isfinite().all():  # the last step may spoil weights after the last loss was computed
            self._stop_diverged("the logits became NaN or infinite")
        return (logits.argmax(-1) == self.val.labels).float().mean(1)

    def _report(self, bar: tqdm, losses: Tensor) -> None:
        """Move the bar on, or stop a diverged run. This waits for the device, so call it once a second at most."""
        loss = float(self._objective(losses))
        if not math.isfinite(loss):
            self._stop_diverged(f"the loss became {loss}")
        show(bar, loss, self.rows)
        bar.update(self.steps_done * self.batches.batch_size - bar.n)

    def _stop_diverged(self, what: str) -> NoReturn:
        now = f"in epoch {self.epoch + 1} at learning rate {self.optimizer.param_groups[0]['lr']:.3g}"
        hint = f"lower learning_rate={self.config.learning_rate} or check the images"
        raise TrainingDivergedError(f"{what} {now}; {hint}")

    def resume(self) -> None:
        """Continue from the checkpoint if it exists; write it, so that a full disk shows before training."""
        exists = self.path is not None and self.workers.is_first and self.path.exists()
        if state := self.workers.share_from_first(load_checkpoint(self.path) if exists else None):
            self._restore(state)
        check_weights(self.net)  # before a network that diverged is written over a checkpoint
        if self.epoch < self.config.epochs:
            self.save()

    def save(self) -> None:
        """Write the checkpoint, if one is wanted."""
        if self.path is not None and self.workers.is_first:
            save_state(self.path, self._state())
            self.saved_at = time.perf_counter()

    def _state(self) -> dict[str, Any]:
        return {
            "net": self.result.state_dict(),
            "raw": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "rows": self.rows,
            "config": json.loads(json.dumps(asdict(self.config))),  # lists for tuples
            "loss": self.loss_name,
            "data": self.fingerprint,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        # Compared first: load_state_dict changes weights before it objects.
        if reason := difference(state, self._state(), frozen_tensors(self.net, self.config.trained)):
            if state["epoch"] == state["step"] == 0:
                return  # nothing is lost
            raise ValueError(f"checkpoint {self.path} must be of this run, got {reason}; remove it, or use another")
        self.net.load_state_dict(state["raw"])
        self.result.load_state_dict(state["net"])
        restore_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"].keys() == self.scaler.state_dict().keys():  # precision may have changed
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.rows = state["epoch"], state["step"], list(state["rows"])
        self.losses = state["losses"].to(self.device)
