"""Early-exit inference that saves real time: an image that is done leaves the batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eeutils.analysis.costs import exit_costs
from eeutils.analysis.decisions import Decisions, check_fallback, fallback_logits
from eeutils.analysis.policies import Policy, ThresholdPolicy, check_policy, leaving, switched_off
from eeutils.analysis.predictions import check_outputs, checked_costs
from eeutils.data.augmentation import Normalization, check_normalized
from eeutils.data.splits import Split, check_split
from eeutils.engines import PreparedNet, Stages
from eeutils.models import MultiExitNet


@dataclass(frozen=True)
class CascadeResult:
    """Answers of a cascade."""

    logits: Tensor  # (N, C) float32 of the exit at which each image left, or of the fallback where none let it go
    exit_index: Tensor  # (N,) int64, that exit

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.exit_index):,} images of {self.logits.shape[-1]} classes)"

    @property
    def predicted(self) -> Tensor:
        """(N,) int64."""
        return self.logits.argmax(-1)

    @property
    def confidence(self) -> Tensor:
        """(N,) float32, the probability of the predicted class."""
        return self.logits.softmax(-1).amax(-1)


class Cascade:
    """A network that stops computing for an image as soon as `policy` lets it go.

    After each exit only the images that stay are carried on, so a batch shrinks on its way down; when it is empty the
    rest of the network does not run. `eeutils.analysis.decisions.decide` gives the same answers from saved predictions.
    An exit that `policy` has switched off, by a threshold of infinity, does not run either.

    The cascade works on a copy of `net` made for inference. Several threads may ask it at once.

        cascade = Cascade(net, choice.policy, normalization=data.normalization)
        cascade(load_image("photo.jpg", size=32)).predicted

    Args:
        net: the network, which is not changed; or one that is ready for an engine (`eeutils.engines.PreparedNet`),
            which has taken the arguments from `device` on.
        policy: who leaves where.
        fallback: whose answer counts for an image that no early exit let go, "last" or "most_confident": see
            `eeutils.analysis.decisions.fallback_logits`.
        normalization: of the images that the network was trained on, such as `data.normalization`. The cascade then
            takes uint8 images and normalises them; without it, it takes floats that you normalised.
        device: where to compute; by default where the network is.
        engine: what runs the stages: "torch", "compile", "openvino", "onnxruntime" or one of your own; see
            `eeutils.engines.PreparedNet`, also for the arguments below.
        precision: "fp32", "bf16" or "int8"; by default that of the weights. Choose thresholds for "int8" on
            `predict` with the same engine and precision; those chosen on float32 serve bf16 nearly as well.
        threads: of OpenVINO and ONNX Runtime.
        calibration: validation images for "int8".

    Raises:
        ValueError: if an argument is unknown or does not fit the network, or a weight is missing, NaN or infinite.
        ModuleNotFoundError: if the engine is not installed.
    """

    def __init__(
        self,
        net: MultiExitNet | PreparedNet,
        policy: Policy,
        *,
        fallback: str = "last",
        normalization: Normalization | None = None,
        device: torch.device | str | None = None,
        engine: str = "torch",
        precision: str | None = None,
        threads: int | None = None,
        calibration: Split | None = None,
    ) -> None:
        if not isinstance(net, PreparedNet):
            net = PreparedNet(net, engine, precision=precision, device=device, threads=threads, calibration=calibration)
        check_policy(policy, net.num_exits)
        check_fallback(fallback)
        self._policy = policy
        self.fallback = fallback
        self.normalization = normalization
        self.device = net.device
        self.net = net.net
        self._exits, self._rule = _in_use(policy, fallback, net.num_exits)
        self._ready = net.keeping(self._exits) if len(self._exits) < net.num_exits else net
        self._costs: dict[tuple[int, ...], Tensor] = {}  # of images by their shape, as far as asked for

    @property
    def policy(self) -> Policy:
        """The policy. For another one make another cascade: which exits run follows from it."""
        return self._policy

    def __call__(self, images: Tensor) -> CascadeResult:
        """Images (N, C, H, W), one or more -> logits and exits, on the cascade's device.

        Raises:
            ValueError: if images were never normalised or do not fit, or an answer is NaN or infinite.
        """
        with self._ready.undisturbed(images):
            check_normalized(images)
            if self.normalization is not None:
                images = self.normalization(images.to(self.device))
            elif not images.is_floating_point():
                raise ValueError(f"images must be floats, got {images.dtype}; Cascade(..., normalization=) takes uint8")
            return self._answer(images)

    def run(self, split: Split, *, batch_size: int = 256, costs: Tensor | Sequence[float] | None = None) -> Decisions:
        """The cascade over a whole split of uint8 images, in its order.

        Args:
            split: images and labels; normalised by the cascade's own normalization, or else by the split's.
            batch_size: images at a time.
            costs: (E,) of one image up to and including each exit, as `predict` takes them; by default multiply-adds.
                An exit that is switched off counts as run, as it does in `predict`.
        """
        check_split(split)
        split = split if self.normalization is None else replace(split, normalization=self.normalization)
        costs = self._costs_of(split) if costs is None else checked_costs(costs, self.net.num_exits)
        with self._ready.undisturbed(split.images):
            results = [self._answer(images) for images, _ in split.batches(batch_size, self.device)]
        logits = torch.cat([result.logits for result in results])
        check_outputs(split, logits.shape[-1])
        exit_index = torch.cat([result.exit_index for result in results])
        return Decisions(exit_index.cpu(), logits.argmax(-1).cpu(), split.labels.cpu(), costs)

    def _costs_of(self, split: Split) -> Tensor:
        shape = tuple(split.images.shape[1:])
        if shape not in self._costs:
            self._costs[shape] = exit_costs(self.net, shape)
        return self._costs[shape]

    def _answer(self, images: Tensor) -> CascadeResult:
        stages = self._ready.stages_for(images)
        with torch.inference_mode():
            groups = self._descend(stages, images)
        # Put together outside inference mode, so that the caller may do with them what one may do with a tensor.
        logits, exit_index = _gathered(groups)
        _check_answers(logits)
        return CascadeResult(logits, exit_index)

    def _descend(self, stages: Stages, images: Tensor) -> list["_Group"]:
        """Images (N, C, H, W) -> those that left together, exit by exit."""
        x, last = stages.read(images), len(stages.run) - 1
        rows: Tensor | None = None  # whose images are still in, (n,); None for all
        answers: list[Tensor] = []  # of every exit so far, for those images: (n, classes)
        groups: list[_Group] = []
        for index, run in enumerate(stages.run):
            x, logits = run(x)
            answers.append(logits)
            history = torch.stack(answers) if index else logits[None]
            if index == last:
                groups.append((rows, fallback_logits(history, self.fallback), self._exits[index]))
                break
            leaves = leaving(self._rule, history)
            num_leaving = int(leaves.count_nonzero() if len(leaves) > 1 else leaves)
            if num_leaving == len(leaves):
                groups.append((rows, logits, self._exits[index]))
                break
            if num_leaving:
                left, staying = leaves.nonzero().flatten(), (~leaves).nonzero().flatten()
                groups.append((left if rows is None else rows[left], logits[left], self._exits[index]))
                rows = staying if rows is None else rows[staying]
                x, answers = stages.take(x, staying), [answer[staying] for answer in answers]
        return groups


def _in_use(policy: Policy, fallback: str, num_exits: int) -> tuple[list[int], Policy]:
    """The exits that have to run, and the policy for a network with those alone."""
    off = switched_off(policy, num_exits) if fallback == "last" else []
    kept = [index for index in range(num_exits) if index not in off]
    if isinstance(policy, ThresholdPolicy) and isinstance(policy.thresholds, tuple):
        policy = replace(policy, thresholds=tuple(policy.thresholds[index] for index in kept[:-1]))
    return kept, policy


_Group = tuple[Tensor | None, Tensor, int]
"""Images that left together: their rows (n,), None for all; logits (n, classes); the exit."""


def _gathered(groups: Sequence[_Group]) -> tuple[Tensor, Tensor]:
    """Return logits and exits of all images, in their order."""
    rows, logits, exits = zip(*groups, strict=True)
    if len(groups) == 1:
        return logits[0].clone(), torch.full((len(logits[0]),), exits[0], device=logits[0].device)
    order = torch.cat(rows)
    of_groups = torch.cat([torch.full_like(each, index) for each, index in zip(rows, exits, strict=True)])
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return torch.cat(logits)[place], of_groups[place]


def _check_answers(logits: Tensor) -> None:
    """A NaN reaches no threshold: its image gets to the last exit, and here."""
    if not math.isfinite(logits.sum()) and not logits.isfinite().all():
        rows = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
        raise ValueError(f"the answers for images {rows[:10]} of the batch are NaN or infinite; are the images finite?")
