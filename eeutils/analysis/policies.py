"""Who leaves where: the rules by which an image stops at an exit.

One piece of code decides for the table (`eeutils.analysis.decisions.decide`) and for live inference
(`eeutils.cascade.Cascade`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

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

        choice = choose_thresholds(predictions, max_drop=0.005, score="energy")

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


# The grid of Shallow-Deep Networks (arXiv 1810.07052); `accuracy_cost_curve`, by default, is finer.
SDN_THRESHOLDS = (0.1, 0.15, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)


class Policy(Protocol):
    """A rule that sees what every exit has said so far of the images still in the network.

    It has to judge every image by itself, whatever others are in the batch: then the live cascade, whose batches
    shrink, and the table agree. It answers from these logits alone and keeps nothing between calls: exits may be asked
    in any order (`decide` begins with the deepest, `Cascade` with the shallowest).

    A rule's settings are tried on validation: `[Choice.of(Mine(t), validation) for t in grid]`.

    Temperatures t (E,) go on the logits before any rule sees them. In a table that is
    `Predictions(p.logits / t[:, None, None], p.labels, p.costs)`, live a head that divides its logits.
    """

    def leaves(self, logits: Tensor) -> Tensor:
        """Logits (e + 1, n, C) of the exits 0..e -> (n,) bool, True for the images that leave at exit e."""
        ...

    def check(self, num_exits: int) -> None:
        """Raise a ValueError if this policy is not for a network with `num_exits` exits."""
        ...


@dataclass(frozen=True)
class ThresholdPolicy:
    """Leave at the first exit whose score reaches its threshold.

    Attributes:
        thresholds: one number for every early exit, or a sequence of one each, shallowest first, kept as a tuple: in
            [0, 1], or infinity where nobody is to leave (a network sure of itself scores 1 after rounding, so a
            threshold of 1 may still let images go).
        score: how sure an answer is, larger is surer: "confidence", "entropy" (one minus its share of the largest
            possible), "margin", "ensemble" or "geometric", see `score_of`, or one of your own,
            see `register_score`.

    Raises:
        ValueError: if thresholds are none of these, or the score is unknown.
    """

    thresholds: float | Sequence[float] | Tensor
    score: str = "confidence"

    def __post_init__(self) -> None:
        check_score(self.score)
        thresholds = _as_numbers(self.thresholds)
        object.__setattr__(self, "thresholds", thresholds)
        values = thresholds if isinstance(thresholds, tuple) else (thresholds,)
        wrong = [value for value in values if not (0 <= value <= 1 or value == math.inf)]
        if wrong:
            raise ValueError(f"thresholds must be in [0, 1], or infinite where nobody is to leave, got {wrong}")

    def check(self, num_exits: int) -> None:
        """Raise a ValueError unless there is one threshold, or one for each of the `num_exits - 1` early exits."""
        if isinstance(self.thresholds, tuple) and len(self.thresholds) != num_exits - 1:
            raise ValueError(
                f"{len(self.thresholds)} thresholds {self.thresholds}, but a network with {num_exits} exits has "
                f"{num_exits - 1} early ones"
            )

    def leaves(self, logits: Tensor) -> Tensor:
        """Logits (e + 1, n, C) -> (n,) bool."""
        index = len(logits) - 1
        threshold = self.thresholds[index] if isinstance(self.thresholds, tuple) else self.thresholds
        return latest_score(logits, self.score) >= threshold


def _as_numbers(thresholds: object) -> float | tuple[float, ...]:
    try:
        numbers = torch.as_tensor(thresholds, dtype=torch.float64).tolist()
        return tuple(map(float, numbers)) if isinstance(numbers, list) else numbers
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"thresholds must be a number, or a sequence of numbers, got {thresholds!r}") from error


@dataclass(frozen=True)
class PatiencePolicy:
    """Leave when the last `patience` + 1 exits name the same class (PABEE: Zhou et al., 2020, arXiv 2006.04152).

    With 0 everybody leaves at the first exit; where there are no more than `patience` early exits nobody leaves early.

    Attributes:
        patience: how often in a row an exit has to name what the one before it named.
    """

    patience: int

    def __post_init__(self) -> None:
        if not isinstance(self.patience, int) or self.patience < 0:
            raise ValueError(f"patience is a number of exits, 0 or more, got {self.patience!r}")

    def check(self, num_exits: int) -> None:
        """Never raises: patience goes with any number of exits."""

    def leaves(self, logits: Tensor) -> Tensor:
        """Logits (e + 1, n, C) -> (n,) bool."""
        if len(logits) <= self.patience:
            return torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        named = logits[-self.patience - 1 :].argmax(-1)
        return (named == named[-1]).all(0)


@dataclass(frozen=True)
class AgreementPolicy:
    """Leave when `count` of the exits so far, in a row or not, name the same class (Sun et al., arXiv 2105.13792).

    The exit at which that happens is one of them, so what an image leaves with is the class agreed on.

    Attributes:
        count: votes a class needs, 1 or more; in a network with fewer early exits nobody leaves early.
    """

    count: int

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"count is a number of exits, 1 or more, got {self.count!r}")

    def check(self, num_exits: int) -> None:
        """Never raises: a vote goes with any number of exits."""

    def leaves(self, logits: Tensor) -> Tensor:
        """Logits (e + 1, n, C) -> (n,) bool."""
        named = logits.argmax(-1)
        return (named == named[-1]).sum(0) >= self.count


def check_policy(policy: Policy, num_exits: int) -> None:
    """See that `policy` is one, and that it is for a network with `num_exits` exits.

    Raises:
        TypeError: if it lacks a method of `Policy`.
        ValueError: if it is for another number of exits.
    """
    kind, methods = type(policy).__name__, {"leaves": "leaves(logits)", "check": "check(num_exits)"}
    missing = [call for method, call in methods.items() if not hasattr(policy, method)]
    if len(missing) == 1:
        raise TypeError(f"{kind} has no {missing[0]}; see eeutils.analysis.Policy")
    if missing:
        remedy = "give its .policy" if hasattr(policy, "policy") else "give ThresholdPolicy(0.9), say, or choice.policy"
        raise TypeError(f"{kind} is no policy: {remedy}")
    policy.check(num_exits)


def leaving(policy: Policy, logits: Tensor) -> Tensor:
    """What `policy` says of logits (e + 1, n, C): (n,) bool.

    Raises:
        ValueError: if it says something else.
    """
    leaves = policy.leaves(logits)
    if leaves.dtype != torch.bool or leaves.shape != logits.shape[1:2]:
        raise ValueError(
            f"{type(policy).__name__}.leaves() must answer ({logits.shape[1]},) bool for logits of shape "
            f"{tuple(logits.shape)}, got {tuple(leaves.shape)} {leaves.dtype}"
        )
    return leaves
