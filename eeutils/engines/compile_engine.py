"""Stages through torch.compile."""

from types import FunctionType

import torch
from torch import Tensor

from eeutils.engines.registry import Engine, Settings, Stages
from eeutils.engines.torch_engine import DTYPES, Run, torch_stages
from eeutils.models import MultiExitNet, StageModule, stage_modules
from eeutils.models.multiexit import Features, map_tensors, tensors_of

# A convolution in torch may take another path from 16 images on, so a graph serves either fewer or as many.
_BATCH = 16


def prepare(net: MultiExitNet, images: Tensor, settings: Settings) -> Stages:
    """Compile each stage with weights frozen into it: one graph for single images, one for 16 or more.

    Batches between are computed image by image.
    """
    net.to(settings.device, DTYPES.get(settings.precision))  # before the weights are frozen
    return torch_stages(net, settings, [_run(stage, index) for index, stage in enumerate(stage_modules(net))])


def _run(stage: StageModule, index: int) -> Run:
    def forward(x: Features) -> tuple[Features, Tensor]:
        features, logits = stage(x)
        return features, logits.float()

    # torch.compile counts recompilations by code object, and stages that shared one would soon reach its limit.
    code = forward.__code__.replace(co_name=f"stage_{index}")
    own = FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
    compiled = torch.compile(own, options={"freezing": True})

    def run(x: Features) -> tuple[Features, Tensor]:
        num_images = len(tensors_of(x)[0])
        with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode would be one more graph
            if num_images == 1:
                return compiled(x)
            if num_images >= _BATCH:
                return compiled(map_tensors(_of_any_number, x))
            return _together([compiled(_image(x, position)) for position in range(num_images)])

    return run


def _of_any_number(x: Tensor) -> Tensor:
    x = x.detach()  # the mark is on the tensor, which may be the caller's
    torch._dynamo.maybe_mark_dynamic(x, 0)
    return x


def _image(x: Features, position: int) -> Features:
    return map_tensors(lambda tensor: tensor[position : position + 1], x)


def _together(parts: list[tuple[Features, Tensor]]) -> tuple[Features, Tensor]:
    """Features and logits of single images -> of all of them."""
    tensors = zip(*(tensors_of(features) for features, _ in parts), strict=True)
    features = map_tensors(lambda _: torch.cat(next(tensors)), parts[0][0])
    return features, torch.cat([logits for _, logits in parts])


ENGINE = Engine(prepare, ("fp32", "bf16"), ("cpu", "cuda"))
