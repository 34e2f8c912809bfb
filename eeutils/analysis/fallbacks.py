"""Fallbacks: whose answer counts for an image that no early exit let go."""

from collections.abc import Callable

import torch
from torch import Tensor

from eeutils.analysis.predictions import Predictions
from eeutils.analysis.scores import confidence


def _last(logits: Tensor) -> Tensor:
    return logits[-1]


def _most_confident(logits: Tensor) -> Tensor:
    surest = confidence(logits).argmax(0)  # the first of those equally sure
    return logits[surest, torch.arange(len(surest), device=logits.device)]


_FALLBACKS: dict[str, Callable[[Tensor], Tensor]] = {"last": _last, "most_confident": _most_confident}


def check_fallback(name: str) -> None:
    """Raise a ValueError with the choices unless `name` is a fallback."""
    if name not in _FALLBACKS:
        raise ValueError(f"unknown fallback {name!r}; choose from {sorted(_FALLBACKS)}")


def fallback_logits(logits: Tensor, name: str) -> Tensor:
    """Logits (E, n, C) of all exits -> (n, C), what is answered for images that no early exit let go.

    Args:
        logits: of every exit.
        name: "last", the last exit's answer; or "most_confident", that of the exit with the largest softmax probability
            (as in the experiments of Shallow-Deep Networks). The whole network has been paid for either way.

    Raises:
        ValueError: if `name` is neither.
    """
    check_fallback(name)
    return _FALLBACKS[name](logits)


def with_fallback(predictions: Predictions, name: str) -> Predictions:
    """The table in which the last exit answers what the fallback `name` says, for sweeps and choices of thresholds.

    Raises:
        ValueError: see `fallback_logits`.
    """
    if name == "last":
        return predictions
    answers = fallback_logits(predictions.logits, name)
    return Predictions(torch.cat([predictions.logits[:-1], answers[None]]), predictions.labels, predictions.costs)
