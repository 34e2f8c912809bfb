"""Small tables of predictions."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from eeutils import Predictions


def from_probs(probs: list, labels: Sequence[int] | None = None, costs: Sequence[float] | None = None) -> Predictions:
    """A table whose softmax is `probs` (E, N, C); all labels 0 and costs 1, 2, ... unless given."""
    probs = torch.tensor(probs, dtype=torch.float64)
    labels = torch.zeros(probs.shape[1], dtype=torch.int64) if labels is None else torch.tensor(labels)
    costs = torch.arange(1, len(probs) + 1) if costs is None else torch.tensor(costs)
    return Predictions(probs.log().float(), labels, costs.double())


def right_with(probs: list[list[float]], costs: Sequence[float] = (1e6, 2e6)) -> Predictions:
    """Exits that give `probs` (E, N) to the right one of two classes."""
    return from_probs([[[right, 1 - right] for right in of_exit] for of_exit in probs], costs=costs)


def right_on(counts: Sequence[int], sure: Sequence[int] = (), costs: Sequence[float] = (1e6, 2e6)) -> Predictions:
    """Exits that are right on the first so many of four images, the first one surer of the images `sure`."""
    labels = [0, 1, 2, 0]
    answers = [[(label + (image >= count)) % 3 for image, label in enumerate(labels)] for count in counts]
    surety = torch.ones(len(counts), 4)
    surety[0, list(sure)] = 5.0
    return answering(answers, labels, costs, surety)


def answering(answers: list[list[int]], labels: list[int], costs: Sequence[float], sure: object = 4.0) -> Predictions:
    """Exits that predict `answers` (E, N) of three classes, with the logits `sure` against 0."""
    logits = torch.as_tensor(sure)[..., None] * torch.nn.functional.one_hot(torch.tensor(answers).long(), 3).float()
    return Predictions(logits, torch.tensor(labels), torch.tensor(costs, dtype=torch.float64))


def random_table(shape: tuple[int, int, int], seed: int = 0, scale: float = 2.0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * scale
    labels = torch.randint(0, shape[2], (shape[1],), generator=generator)
    return Predictions(logits, labels, torch.arange(1, shape[0] + 1).double())


@st.composite
def tables(draw, max_exits: int = 4, max_images: int = 12) -> Predictions:
    """Random tables, in half of which scores tie and some answers are certain beyond rounding."""
    num_exits, num_images = draw(st.integers(1, max_exits)), draw(st.integers(1, max_images))
    table = random_table((num_exits, num_images, draw(st.integers(2, 4))), draw(st.integers(0, 9999)))
    logits = table.logits
    if draw(st.booleans()):
        few = torch.tensor([0.0, 1.0, 2.0, 400.0])
        logits = few[logits.abs().long().clamp_max(3)]
    costs = torch.tensor(draw(st.lists(st.integers(1, 100), min_size=num_exits, max_size=num_exits))).cumsum(0)
    return Predictions(logits, table.labels, costs.double())
