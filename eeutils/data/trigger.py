"""Backdoor trigger: a small patch that a network learns to take for a class (Gu et al., BadNets, arXiv 1708.06733).

Shallow-Deep Networks (arXiv 1810.07052) induce overthinking with it: on stamped images of other classes deep exits
answer with the trigger's class, while shallow ones may still be right. Their square has 5 pixels per side.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch

from eeutils.data.splits import ImageData, Split
from eeutils.errors import require
from eeutils.fields import Count, Natural, Rule, check_fields, check_range

_SEEDS_APART = 2**31  # within the 32 bits of a seed that torch uses on a CPU
_Brightness = Annotated[int, Rule("in 0..255", lambda value: 0 <= value <= 255)]


@dataclass(frozen=True)
class Trigger:
    """Square of one brightness in the lower right corner."""

    target: Natural  # index of the class that the network learns to answer
    size: Count = 4  # pixels per side
    margin: Natural = 1  # pixels between the square and the lower and right border of the image
    value: _Brightness = 255  # of its pixels in every channel, 0 (black) to 255 (white)

    def __post_init__(self) -> None:
        check_fields(self)


def stamped(split: Split, trigger: Trigger) -> Split:
    """Return a copy of the split with the trigger on every image and the same labels."""
    height, width = split.images.shape[2:]
    fits = trigger.size + trigger.margin <= min(height, width)
    require(fits, f"trigger must fit into {height} x {width} pixels, got {trigger}")
    bottom, right = height - trigger.margin, width - trigger.margin
    images = split.images.clone()
    images[:, :, bottom - trigger.size : bottom, right - trigger.size : right] = trigger.value
    return replace(split, images=images)


def poisoned(data: ImageData, trigger: Trigger, share: float, seed: int = 0) -> ImageData:
    """Return data that teach a network the trigger; validation and test stay clean.

    The trigger is stamped on a `share` of the training images of other classes, which get its label.
    """
    check_range("target", trigger.target, 0, len(data.classes) - 1)
    others = (data.train.labels != trigger.target).nonzero().flatten()
    count = round(share * len(others)) if 0 < share <= 1 else 0
    require(count > 0, f"share must be in (0, 1] and pick one of {len(others)} images or more, got {share}")
    # Another seed than that of the batches: an equal draw would put all of these images first.
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(_SEEDS_APART ^ seed))
    chosen = others[order[:count].to(others.device)]
    marked = stamped(data.train.take(chosen), trigger)
    images, labels = data.train.images.clone(), data.train.labels.clone()
    images[chosen], labels[chosen] = marked.images, trigger.target
    # A checkpoint knows its data by name.
    name = f"{data.name} with {trigger} on {share:g} of the other classes, seed {seed}"
    return replace(data, name=name, train=replace(data.train, images=images, labels=labels))
