"""Which part of a network a run trains: all of it, or its early exits on a backbone that stays as it is."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eeutils.models import MultiExitNet


def trained_part(net: MultiExitNet, trained: str) -> nn.Module:
    """What of `net` the optimiser sees: `net` itself ("all"), or its exits but for the last ("early_exits")."""
    return net if trained == "all" else nn.ModuleList(list(net.exits.values())[:-1])


def start_training(net: MultiExitNet, trained: str) -> None:
    """Training mode for what is trained; the rest in evaluation mode, so that BatchNorm's statistics stay, too."""
    net.eval()
    trained_part(net, trained).train()


def training_forward(net: MultiExitNet, trained: str) -> Callable[[Tensor], list[Tensor]]:
    """Images (N, C, H, W) -> logits of every exit, with gradients for what is trained and no others."""
    if trained == "all":
        return net
    *early, last = net.exits.values()

    def forward(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            features = net.forward_features(images)
            answer = last(features[-1])
        return [*(head(feature) for head, feature in zip(early, features[:-1], strict=True)), answer]

    return forward
