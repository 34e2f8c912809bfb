"""Which part of a network a run trains: all of it, or exits on a frozen backbone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eeutils.models import MultiExitNet


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
