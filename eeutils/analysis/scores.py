"""How sure an answer is: scores from 0 to 1, computed from logits."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def confidence(logits: Tensor) -> Tensor:
    """(..., C) -> (...), the largest softmax probability (Shallow-Deep Networks, arXiv 1810.07052)."""
    return logits.softmax(-1).amax(-1)


def certainty(logits: Tensor) -> Tensor:
    """(..., C) -> (...), one minus the softmax's entropy as a share of the largest (BranchyNet, arXiv 1709.01686)."""
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return (1 - entropy / math.log(logits.shape[-1])).clamp(0, 1)  # rounding puts an even softmax a little below 0


def margin(logits: Tensor) -> Tensor:
    """(..., C) -> (...), the largest softmax probability minus the second largest."""
    best = logits.softmax(-1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def ensemble_confidence(logits: Tensor) -> Tensor:
    """(E, ..., C), exits first -> (E, ...), the mean probability, over the exits so far, of the class an exit names."""
    return _given_to_named(logits, _running_mean(logits.softmax(-1)))


def geometric_confidence(logits: Tensor) -> Tensor:
    """(E, ..., C), exits first -> (E, ...), the same with the geometric mean, normalised again to sum to 1.

    One exit that gives a class next to nothing vetoes it (Zero Time Waste, arXiv 2106.05409, weighs the exits as well).
    """
    return _given_to_named(logits, _running_mean(logits.log_softmax(-1)).softmax(-1))


def _running_mean(values: Tensor) -> Tensor:
    counts = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    return values.cumsum(0) / counts.view(-1, *[1] * (values.ndim - 1))


def _given_to_named(logits: Tensor, probs: Tensor) -> Tensor:
    """The exit's own answer is what an image leaves with, so that is the class to be sure of."""
    return probs.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)


Score = Callable[[Tensor], Tensor]

_SHARED_SCORES = {"ensemble": ensemble_confidence, "geometric": geometric_confidence}  # of an exit and those before it
_SCORES: dict[str, Score] = {"confidence": confidence, "entropy": certainty, "margin": margin} | _SHARED_SCORES


def register_score(score: Score) -> Score:
    """Make `score` known under its own name, wherever a score is named (a decorator).

        @register_score
        def energy(logits: Tensor) -> Tensor:
            return (logits.logsumexp(-1) / 10).sigmoid()

        choice = choose_one_threshold(predictions, 0.005, "energy")

    Args:
        score: logits (..., C) -> (...) in [0, 1], larger is surer: every search for thresholds looks between 0 and 1,
            and refuses scores beyond. It scores every answer by itself, whatever else is in `logits`; a rule that looks
            at several exits is a `Policy`.

    Raises:
        ValueError: if another score has that name; the same one defined anew (a notebook's cell run again) may.
    """
    known = _SCORES.get(score.__name__, score)
    if (known.__module__, known.__qualname__) != (score.__module__, score.__qualname__):
        raise ValueError(f"{score.__name__!r} is the name of a score in {known.__module__} already; give yours another")
    _SCORES[score.__name__] = score
    return score


def check_score(name: str) -> None:
    """Raise a ValueError with the choices unless `name` is a score."""
    if name not in _SCORES:
        raise ValueError(f"unknown score {name!r}; choose from {sorted(_SCORES)}, or add yours with register_score")


def score_of(logits: Tensor, name: str = "confidence") -> Tensor:
    """How sure an answer is: logits (..., C) -> (...) in 0 (not at all) to 1.

    For "ensemble" and "geometric" the first dimension has to be the exits, from the first one on: an exit's score
    takes into account what the exits before it said.

    Raises:
        ValueError: if `name` is not "confidence", "entropy", "margin", "ensemble", "geometric" or registered
            (`register_score`), or a registered one does not answer one number for each answer.
    """
    check_score(name)
    scores = _SCORES[name](logits)
    if scores.shape != logits.shape[:-1]:
        of, made = tuple(logits.shape), tuple(scores.shape)
        raise ValueError(f"score {name!r} must make (...) of logits (..., C), but of {of} it made {made}")
    return scores


def latest_score(logits: Tensor, name: str) -> Tensor:
    """`score_of` the deepest exit alone: logits (e + 1, n, C) of the exits 0..e -> (n,)."""
    seen = logits if name in _SHARED_SCORES else logits[-1:]  # where earlier exits do not count, they cost nothing
    return score_of(seen, name)[-1]
