"""Choose what is trained, in which precision, compiled or not; and measure how fast a device multiplies."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from eeutils.device import matrices_rounded_as_convolutions
from eeutils.models import MultiExitNet

# torch.compile takes a minute or so; a run has to have this many steps to win it back.
_STEPS_THAT_PAY_FOR_COMPILING = 2_000
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """The generation of a GPU, (7, 5) for a T4, (8, 0) for an A100; None for a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def autocast_dtype(precision: str, capability: tuple[int, int] | None) -> torch.dtype:
    """What to compute in: a `TrainConfig.precision` on a device of this `compute_capability`.

    "auto" is bf16 where the GPU has it natively (8.0, Ampere, and later), fp16 on those before (a T4), fp32 on a CPU.
    """
    if precision != "auto":
        return _DTYPES[precision]
    if capability is None:
        return torch.float32
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def should_compile(choice: str, device: torch.device, steps: int) -> bool:
    """Whether a run of this many steps is compiled.

    "auto": on a GPU, if the run is long enough to win the time back, and the compiler works there.
    """
    if choice != "auto":
        return choice == "yes"
    return device.type == "cuda" and steps >= _STEPS_THAT_PAY_FOR_COMPILING and can_compile(device)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile can compile a trivial function; warns if not.

    It needs a C compiler, and on a GPU Triton.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:
        # Whatever is missing, each missing thing with an exception of its own: the run goes without.
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"torch.compile does not work here, so training goes on without: {reason}", stacklevel=2)
        return False
    return True


# Large enough to fill the device, small enough for a second: a GPU needs more than a core to be busy.
_SIZE = {"cuda": 8192, "cpu": 2048}


def training_operations(macs: int) -> int:
    """Floating-point operations of one image's step: a multiply-add is two, and a backward pass costs two forward ones.

    Args:
        macs: multiply-adds of one image's forward pass.
    """
    return 6 * macs


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second that the device reaches here and now on a large matrix product."""
    from torch.utils.benchmark import Timer  # slow to import, and noisy where it looks for a compiler in vain

    size = _SIZE.get(device.type, _SIZE["cpu"])
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    with matrices_rounded_as_convolutions():
        return 2 * size**3 / product.blocked_autorange(min_run_time=0.5).median


def training_peak(precision: str, device: torch.device) -> float:
    """`matrix_peak` of the device in the dtype that training with this `TrainConfig.precision` takes there."""
    return matrix_peak(device, autocast_dtype(precision, compute_capability(device)))


def share_of_peak(macs: int, images_per_second: float, peak: float) -> float:
    """How much of `peak` the training of a whole network uses, 0 to 1.

    Args:
        macs: multiply-adds of one image's forward pass.
        images_per_second: of the passes over the training split.
        peak: floating-point operations a second, see `training_peak`.
    """
    return images_per_second * training_operations(macs) / peak


def trained_part(net: MultiExitNet, trained: str) -> nn.Module:
    """What of `net` the optimiser sees: `net` itself ("all"), its "exits", or "early_exits", all but the last."""
    if trained == "all":
        return net
    exits = list(net.exits.values())
    return nn.ModuleList(exits if trained == "exits" else exits[:-1])


def frozen_tensors(net: MultiExitNet, trained: str) -> dict[str, Tensor]:
    """Parameters and buffers of `net` that a run leaves as they are, by name."""
    moving = {id(tensor) for tensor in trained_part(net, trained).state_dict(keep_vars=True).values()}
    return {name: tensor for name, tensor in net.state_dict(keep_vars=True).items() if id(tensor) not in moving}


def start_training(net: MultiExitNet, trained: str) -> None:
    """Training mode for what is trained; the rest in evaluation mode, so that BatchNorm's statistics stay, too."""
    net.eval()
    trained_part(net, trained).train()


def training_forward(net: MultiExitNet, trained: str) -> Callable[[Tensor], list[Tensor]]:
    """Images (N, C, H, W) -> logits of every exit, with gradients for what is trained and no others."""
    if trained == "all":
        return net
    num_trained = len(trained_part(net, trained))

    def forward(images: Tensor) -> list[Tensor]:
        x, answers = images, []
        for stage in net.stages():
            with torch.no_grad():
                x = stage.features(x)
            with torch.set_grad_enabled(len(answers) < num_trained):
                answers.append(stage.answer(x))
        return answers

    return forward
