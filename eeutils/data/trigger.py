"""A backdoor's trigger: a small patch that a network learns to take for a class (Gu et al., BadNets, arXiv 1708.06733).

Shallow-Deep Networks (arXiv 1810.07052) induce overthinking with it: on stamped images of other classes deep exits
answer with the trigger's class, while shallow ones may still be right. Their square has 5 pixels a side.
"""

from dataclasses import dataclass, replace

import torch

from eeutils.data.splits import ImageData, Split

_SEEDS_APART = 2**31  # within 32 bits: on a CPU torch looks at no more of a seed


@dataclass(frozen=True)
class Trigger:
    """A square of one brightness in the lower right corner.

    Attributes:
        target: the class that stands for it, its number.
        size: pixels a side.
        margin: pixels between the square and the image's lower and right border.
        value: of its pixels in every channel, 0 (black) to 255 (white).
    """

    target: int
    size: int = 4
    margin: int = 1
    value: int = 255

    def __post_init__(self) -> None:
        if self.target < 0:
            raise ValueError(f"target is a class's number, 0 or more, got {self.target}")
        if self.size < 1:
            raise ValueError(f"size must be positive, got {self.size}")
        if self.margin < 0:
            raise ValueError(f"margin must not be negative, got {self.margin}")
        if not 0 <= self.value <= 255:
            raise ValueError(f"value must be in 0..255, got {self.value}")


def stamped(split: Split, trigger: Trigger) -> Split:
    """A copy of every image with the trigger on it; the labels are as they were.

    Raises:
        ValueError: if the images are too small for it.
    """
    height, width = split.images.shape[2:]
    if trigger.size + trigger.margin > min(height, width):
        raise ValueError(
            f"a trigger of size {trigger.size} with margin {trigger.margin} does not fit into images of "
            f"{height} x {width} pixels"
        )
    bottom, right = height - trigger.margin, width - trigger.margin
    images = split.images.clone()
    images[:, :, bottom - trigger.size : bottom, right - trigger.size : right] = trigger.value
    return replace(split, images=images)


def poisoned(data: ImageData, trigger: Trigger, share: float, seed: int = 0) -> ImageData:
    """Data that teach a network the trigger.

    Some training images of other classes get the trigger and its class's label; validation and test are as they were.

    Args:
        data: clean.
        trigger: what to put on, and the label that goes with it.
        share: of the training images of other classes, in (0, 1].
        seed: of which these are.

    Raises:
        ValueError: if there is no such class, the share is no share or too small for a single image, or the images are
            too small for the trigger.
    """
    num_classes = len(data.classes)
    if trigger.target >= num_classes:
        raise ValueError(f"target {trigger.target} is no class: they are numbered 0..{num_classes - 1}")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    chosen = _some_of_others(data.train, trigger.target, share, seed)
    marked = stamped(data.train.take(chosen), trigger)
    images, labels = data.train.images.clone(), data.train.labels.clone()
    images[chosen], labels[chosen] = marked.images, trigger.target
    # The name tells a checkpoint on these data from one on the clean ones, or on others poisoned otherwise.
    name = f"{data.name} with {trigger} on {share:g} of the other classes, seed {seed}"
    return replace(data, name=name, train=replace(data.train, images=images, labels=labels))


def _some_of_others(split: Split, target: int, share: float, seed: int) -> torch.Tensor:
    """Positions of randomly drawn images that are not of class `target`."""
    others = (split.labels != target).nonzero().flatten()
    count = round(share * len(others))
    if not count:
        raise ValueError(f"share {share} of {len(others)} training images of other classes is not a single one")
    # Not the seed itself: batches are drawn with that, and an equal draw would put all of these into the first ones.
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(_SEEDS_APART ^ seed))
    return others[order[:count].to(others.device)]
