"""Policies: the rules by which an image leaves at an exit, and the scores they look at.

The table (`eeutils.analysis.decisions.decide`) and live inference (`eeutils.cascade.Cascade`) use the same code.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from eeutils.errors import require
from eeutils.fields import Count, Natural, check_choice, check_fields, check_type, described

# The grid of Shallow-Deep Networks (arXiv 1810.07052); the default of `accuracy_cost_curve` is finer.
SDN_THRESHOLDS = (0.1, 0.15, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)


@runtime_checkable
class Policy(Protocol):
    """A rule that sees the logits of all exits so far, for the images still in the network.

    It must judge every image alone, because the live cascade's batches shrink, and keep no state between calls, because
    exits are asked in any order: `decide` begins with the deepest, `Cascade` with the shallowest. Choose its settings
    on validation: `[Choice.of(Mine(t), validation) for t in grid]`.
    """

    def leaves(self, logits: Tensor) -> Tensor:
        """Logits (e + 1, n, C) of exits 0..e -> (n,) bool, True for the images that leave at exit e."""
        ...

    def check(self, num_exits: int) -> None:
        """Raise a ValueError if this policy does not fit a network with `num_exits` exits; a subclass fits any."""


@dataclass(frozen=True)
class ThresholdPolicy:
    """Leave at the first exit whose score reaches its threshold.

    Thresholds are in [0, 1], or infinite where no image may leave: a confidence can round to 1, so a threshold of 1
    does not ensure that. The score is "confidence", "entropy" (one minus its share of the maximum), "margin",
    "ensemble", "geometric", or one of `register_score`.
    """

    thresholds: float | Sequence[float] | Tensor  # one for all early exits, or one for each, shallowest first
    score: str = "confidence"

    def __post_init__(self) -> None:
        check_choice("score", self.score, sorted(_SCORES))
        try:
            numbers = torch.as_tensor(self.thresholds, dtype=torch.float64).tolist()
            thresholds = tuple(map(float, numbers)) if isinstance(numbers, list) else numbers
        except (TypeError, ValueError, RuntimeError):
            thresholds = math.nan
        values = thresholds if isinstance(thresholds, tuple) else (thresholds,)
        usable = all(0 <= value <= 1 or value == math.inf for value in values)
        require(usable, f"thresholds must be numbers in [0, 1] or infinity, got {self.thresholds!r}")
        object.__setattr__(self, "thresholds", thresholds)

    def check(self, num_exits: int) -> None:
        """Raise a ValueError unless there is one threshold, or one for each of the `num_exits - 1` early exits."""
        fits = not isinstance(self.thresholds, tuple) or len(self.thresholds) == num_exits - 1
        wanted = f"one number or {num_exits - 1}, one for each early exit"
        require(fits, f"thresholds must be {wanted}, got {self.thresholds}")

    def leaves(self, logits: Tensor) -> Tensor:
        index = len(logits) - 1
        threshold = self.thresholds[index] if isinstance(self.thresholds, tuple) else self.thresholds
        return latest_score(logits, self.score) >= threshold


@dataclass(frozen=True)
class PatiencePolicy(Policy):
    """Leave when the last `patience` + 1 exits predict the same class (PABEE: Zhou et al., 2020, arXiv 2006.04152).

    With 0 every image leaves at the first exit.
    """

    patience: Natural  # how many times in a row an exit must repeat the previous exit's prediction

    def __post_init__(self) -> None:
        check_fields(self)

    def leaves(self, logits: Tensor) -> Tensor:
        if len(logits) <= self.patience:
            return torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        predicted = logits[-self.patience - 1 :].argmax(-1)
        return (predicted == predicted[-1]).all(0)


@dataclass(frozen=True)
class AgreementPolicy(Policy):
    """Leave when `count` of the exits so far, in a row or not, predict the same class (Sun et al., arXiv 2105.13792).

    The exit that completes the vote takes part in it, so an image leaves with the class agreed on.
    """

    count: Count  # votes a class needs, 1 or more; with fewer early exits no image leaves early

    def __post_init__(self) -> None:
        check_fields(self)

    def leaves(self, logits: Tensor) -> Tensor:
        predicted = logits.argmax(-1)
        return (predicted == predicted[-1]).sum(0) >= self.count


def check_policy(policy: Policy, num_exits: int) -> None:
    """Raise TypeError unless `policy` is a `Policy`, and ValueError if it is for another number of exits."""
    check_type("policy", policy, Policy, "use ThresholdPolicy(0.9), or a choice's .policy")
    policy.check(num_exits)


def switched_off(policy: Policy, num_exits: int) -> list[int]:
    """Return the exits that need not run: no image may leave there, and no other exit looks at them."""
    if not isinstance(policy, ThresholdPolicy) or looks_back(policy.score):
        return []
    thresholds = policy.thresholds if isinstance(policy.thresholds, tuple) else (policy.thresholds,) * (num_exits - 1)
    return [index for index, threshold in enumerate(thresholds) if threshold == math.inf]


def leaving(policy: Policy, logits: Tensor) -> Tensor:
    """Return the answer (n,) bool of `policy` to logits (e + 1, n, C), which it may write into, or raise ValueError."""
    leaves, wanted = policy.leaves(logits), logits.shape[1:2]
    fits = isinstance(leaves, Tensor) and leaves.dtype == torch.bool and leaves.shape == wanted
    if not fits:  # not `require`: on single images the message would take as long as the rest
        name = f"{type(policy).__name__}.leaves"
        raise ValueError(f"{name} must return a {tuple(wanted)} bool tensor, got {described(leaves)}")
    return leaves


def confidence(logits: Tensor) -> Tensor:
    """(..., C) -> (...), the largest softmax probability (Shallow-Deep Networks, arXiv 1810.07052)."""
    return logits.softmax(-1).amax(-1)


def certainty(logits: Tensor) -> Tensor:
    """(..., C) -> (...), one minus the softmax's entropy as a share of the maximum (BranchyNet, arXiv 1709.01686)."""
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return (1 - entropy / math.log(logits.shape[-1])).clamp(0, 1)  # an even softmax rounds to a little below 0


def margin(logits: Tensor) -> Tensor:
    """(..., C) -> (...), the largest softmax probability minus the second largest."""
    best = logits.softmax(-1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def ensemble_confidence(logits: Tensor) -> Tensor:
    """(E, ..., C) -> (E, ...), mean probability over the exits so far of the class that each exit predicts."""
    return _of_predicted(logits, _running_mean(logits.softmax(-1)))


def geometric_confidence(logits: Tensor) -> Tensor:
    """(E, ..., C) -> (E, ...), as `ensemble_confidence` with the geometric mean, normalised to sum to 1.

    One exit that finds a class almost impossible vetoes it (Zero Time Waste, arXiv 2106.05409, also weighs the exits).
    """
    return _of_predicted(logits, _running_mean(logits.log_softmax(-1)).softmax(-1))


def _running_mean(values: Tensor) -> Tensor:
    counts = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    return values.cumsum(0) / counts.view(-1, *[1] * (values.ndim - 1))


def _of_predicted(logits: Tensor, probs: Tensor) -> Tensor:
    """Select from `probs` the class that each exit predicts, because an image leaves with that class."""
    return probs.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)


Score = Callable[[Tensor], Tensor]

_SHARED_SCORES = {"ensemble": ensemble_confidence, "geometric": geometric_confidence}  # these look at earlier exits too
_SCORES: dict[str, Score] = {"confidence": confidence, "entropy": certainty, "margin": margin} | _SHARED_SCORES


def register_score(score: Score) -> Score:
    """Register `score` under its function's name (a decorator).

        @register_score
        def energy(logits: Tensor) -> Tensor:
            return (logits.logsumexp(-1) / 10).sigmoid()

        choice = choose_thresholds(predictions, max_drop=0.005, score="energy")

    It maps logits (..., C) to (...) in [0, 1], larger for more certain answers, and judges every answer alone; a rule
    that looks at several exits is a `Policy`. A notebook's cell may define a score again.
    """
    known = _SCORES.get(score.__name__, score)
    same = (known.__module__, known.__qualname__) == (score.__module__, score.__qualname__)
    require(same, f"score must have a new name, got {score.__name__!r}, which is in {known.__module__}")
    _SCORES[score.__name__] = score
    return score


def score_of(logits: Tensor, name: str = "confidence") -> Tensor:
    """Score answers by their certainty: logits (..., C) -> (...) in 0 to 1.

    For "ensemble" and "geometric" the first dimension must be the exits, from the first one on: an exit's score depends
    on the exits before it.
    """
    check_choice("score", name, _SCORES)
    scores, wanted = _SCORES[name](logits), logits.shape[:-1]
    if scores.shape != wanted:  # as in `leaving`
        raise ValueError(f"score {name!r} must return {tuple(wanted)}, got {tuple(scores.shape)}")
    return scores


def looks_back(name: str) -> bool:
    """Return True if the score `name` of an exit takes earlier exits into account."""
    return name in _SHARED_SCORES


def latest_score(logits: Tensor, name: str) -> Tensor:
    """`score_of` the deepest exit alone: logits (e + 1, n, C) of exits 0..e -> (n,)."""
    seen = logits if looks_back(name) else logits[-1:]  # scoring earlier exits would be wasted
    return score_of(seen, name)[-1]
