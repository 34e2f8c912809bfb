"""Check network, data and config before anything is trained."""

from pathlib import Path

import torch

from eeutils.analysis.predictions import check_outputs
from eeutils.data import ImageData
from eeutils.data.augmentation import augmented_batch
from eeutils.device import cuda_indices
from eeutils.models import MultiExitNet
from eeutils.models.contracts import check_exits, checked_answers
from eeutils.models.memory import device_and_dtype, independent_copy
from eeutils.training.config import TrainConfig
from eeutils.training.losses import Loss, exit_weights
from eeutils.training.optimizer import set_modes, trained_part


def check_fit(
    net: MultiExitNet, data: ImageData, config: TrainConfig, loss: Loss | None, path: Path | None, world_size: int
) -> None:
    """Try a training batch and its losses on a copy of `net`.

    Raises:
        TypeError: if `net` has no exits, or `data` or `config` is of another type.
        ValueError: if they do not fit together.
    """
    check_exits(net)
    for name, value, kind in (("data", data, ImageData), ("config", config, TrainConfig)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be of type {kind.__name__}, got {type(value).__name__}")
    if path is not None and path.is_dir():
        raise ValueError(f"checkpoint must be a file, got the folder '{path}'")
    trained = config.trained
    if not any(weight.requires_grad for weight in trained_part(net, trained).parameters()):
        raise ValueError(f"trained must be a part of the network that is not frozen, got {trained!r}")
    if others := {each.dtype for each in net.parameters() if each.is_floating_point()} - {torch.float32}:
        raise ValueError(f"the network must be float32, got {others.pop()}; precision='bf16' computes in 16 bits")
    device, _ = device_and_dtype(net)
    share = max(1, config.batch_size // world_size)
    few = data.train.take(slice(0, min(share, 2))).to(device)  # BatchNorm may fail on one; two stand for any number
    draws = torch.Generator(device).manual_seed(config.seed)
    with torch.random.fork_rng(devices=cuda_indices(device)), torch.no_grad():
        images = augmented_batch(few.images, few.normalization, config.augmentation, draws)
        trial = independent_copy(net)
        set_modes(trial, trained)
        try:
            logits = checked_answers(trial, images)
        except (RuntimeError, ValueError) as error:
            shape = data.image_shape
            raise ValueError(f"net must train on images of shape {shape}, {share} at a time: {error}") from error
    check_outputs(data.train, logits[0].shape[1])
    exit_weights(config.loss.weights, net.num_exits)
    if loss is not None and (losses := loss(logits, few.labels)).shape not in ((net.num_exits,), ()):
        raise ValueError(f"loss must return shape ({net.num_exits},) or (), got {tuple(losses.shape)}")
