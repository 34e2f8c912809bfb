"""Before the first step: do network, data and config fit, in which precision, compiled or not."""

import warnings

import torch

from eeutils.analysis.predictions import check_outputs
from eeutils.data import ImageData
from eeutils.data.augmentation import augmented_batch, shrunk
from eeutils.device import cuda_indices
from eeutils.errors import require
from eeutils.fields import check_choice, check_type
from eeutils.models import MultiExitNet
from eeutils.models.contracts import check_exits, checked_answers
from eeutils.models.memory import device_and_dtype, independent_copy
from eeutils.training.config import TrainConfig
from eeutils.training.losses import Loss, exit_weights
from eeutils.training.optimizer import set_modes, trained_part

_STEPS_THAT_PAY_FOR_COMPILING = 2_000  # torch.compile takes about a minute
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_fit(net: MultiExitNet, data: ImageData, config: TrainConfig, loss: Loss | None, world_size: int) -> None:
    """Raise TypeError or ValueError unless network, data, config and loss fit, tried on a batch and a copy of `net`."""
    check_exits(net)
    check_type("data", data, ImageData, "it has a training, a validation and a test split")
    check_type("config", config, TrainConfig, 'take recipe("slim")')
    learns = any(weight.requires_grad for weight in trained_part(net, config.trained).parameters())
    require(learns, f"trained must be a part of the network that is not frozen, got {config.trained!r}")
    others = {each.dtype for each in net.parameters() if each.is_floating_point()} - {torch.float32}
    require(not others, f"the network must be float32, got {others}; precision='bf16' computes in 16 bits")
    device, _ = device_and_dtype(net)
    share = max(1, config.batch_size // world_size)
    few = data.train.take(slice(0, min(share, 2))).to(device)  # BatchNorm may fail on one; two stand for any number
    draws = torch.Generator(device).manual_seed(config.seed)
    with torch.random.fork_rng(devices=cuda_indices(device)), torch.no_grad():
        images = augmented_batch(few.images, few.normalization, config.augmentation, draws)
        trial = independent_copy(net)
        set_modes(trial, config.trained)
        try:
            logits = checked_answers(trial, images)
            if config.small_images:
                images = shrunk(images)
                checked_answers(trial, images)
        except (RuntimeError, ValueError) as error:
            shape = tuple(images.shape[1:])
            raise ValueError(f"net must train on images of shape {shape}, {share} at a time: {error}") from error
    check_outputs(data.train, logits[0].shape[1])
    exit_weights(config.loss.weights, net.num_exits)
    if loss is not None:
        check_choice("loss shape", tuple(loss(logits, few.labels).shape), ((net.num_exits,), ()))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype that a `TrainConfig.precision` stands for on `device`."""
    if precision != "auto":
        return _DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)  # an A100; a T4 is (7, 5)
    return torch.bfloat16 if has_bf16 else torch.float16


def should_compile(choice: str, device: torch.device, steps: int) -> bool:
    """Decide whether to compile a run of so many steps; `choice` is a `TrainConfig.compile`."""
    if choice != "auto":
        return choice == "yes"
    return device.type == "cuda" and steps >= _STEPS_THAT_PAY_FOR_COMPILING and _can_compile(device)


def _can_compile(device: torch.device) -> bool:
    """Compile a trivial function, which needs a C compiler and on a GPU Triton; warn if that fails."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:  # each missing part raises its own
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"torch.compile does not work here, training goes on without it: {reason}", stacklevel=2)
        return False
    return True
