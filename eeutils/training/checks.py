"""Whether network, data and config go together, found out before anything is trained."""

import torch

from eeutils.analysis.predictions import check_outputs
from eeutils.data import ImageData
from eeutils.data.augmentation import augmented_batch
from eeutils.data.splits import missing_classes
from eeutils.device import cuda_indices
from eeutils.models import MultiExitNet
from eeutils.models.contracts import check_exits, checked_answers
from eeutils.models.memory import device_and_dtype, independent_copy
from eeutils.training.compute import start_training, trained_part
from eeutils.training.config import TrainConfig


def check_fit(net: MultiExitNet, data: ImageData, config: TrainConfig, world_size: int = 1) -> None:
    """Try out a training batch and its forward pass on a copy; `net` and the random numbers stay as they are.

    Args:
        net: the network.
        data: what it is to learn.
        config: how.
        world_size: how many processes share its batches.

    Raises:
        TypeError: if `net` has no exits, `data` are no data set, or `config` is no config.
        ValueError: if the network, the data and the augmentation do not fit together, or nothing is to be trained.
    """
    check_exits(net)
    if not isinstance(data, ImageData):
        raise TypeError(
            f"{type(data).__name__} is no data set with splits, an ImageData such as load_data('cifar10'); of tensors "
            "make one: eeutils.data.data_from_tensors(images, labels, classes)"
        )
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig, such as recipe('slim'), got {config!r}")
    if config.trained == "early_exits" and net.num_exits == 1:
        raise ValueError("trained='early_exits', but the network has none before its last exit; add some first")
    if not any(weight.requires_grad for weight in trained_part(net, config.trained).parameters()):
        raise ValueError(
            f"trained={config.trained!r}, but all of that is frozen; thaw it with requires_grad_(True). (What "
            "prepared_for_inference makes is for answering only.)"
        )
    for name, weight in net.named_parameters():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            raise ValueError(
                f"{name!r} of the network is {weight.dtype}; train in float32 (`net.float()`): precision='bf16' "
                "computes in 16 bits"
            )
    shape, home = data.image_shape, device_and_dtype(net)[0]
    share = max(1, config.batch_size // world_size)
    # Two images stand for any number; a batch of one is special, BatchNorm may have a single value to learn from.
    few = data.train.images[: min(share, 2)].cpu()
    images = augmented_batch(few, data.normalization, config.augmentation, torch.Generator().manual_seed(0)).to(home)
    with torch.no_grad(), torch.random.fork_rng(devices=cuda_indices(home)):
        try:
            trial = independent_copy(net)
            start_training(trial, config.trained)
            answers = checked_answers(trial, images)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"the network cannot be trained on images of shape {shape}, {share} at a time: {error}"
            ) from error
    for answer in answers:
        check_outputs(data.train, answer.shape[1])
    for part, split in (("training", data.train), ("validation", data.val)):
        if missing := missing_classes(split):
            present = len(data.classes) - len(missing)
            raise ValueError(f"the {part} split has {present} of {len(data.classes)} classes: no image is of {missing}")
