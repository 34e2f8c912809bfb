"""Break things on purpose: `python -m tools.campaign --minutes 90 --seed 0`.

Three topics share the minutes: processes killed while they train, fetch and publish; single bits flipped in files that
have a checksum; mutations of every file format that is read. Each sample is drawn from the seed, its kind and its
number.
"""

import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import tyro

from eeutils.errors import message_instead_of_traceback
from eeutils.files import write_text
from tools.campaign.children import MOST_BYTES, MOST_SECONDS, Outcome, finish
from tools.campaign.formats import flips_and_mutations
from tools.campaign.kills import kills, train_tiny
from tools.tables import markdown_table

PAGE = Path(__file__).parents[2] / "results" / "campaign.md"
# Share of the minutes, and samples of each kind in a turn.
_TOPICS = {"three kills": (0.6, 1), "flipped bit": (0.1, 10), "mutation": (0.3, 10)}
_GOOD = ("equal", "read", "refused")

Sample = Callable[[list[random.Random]], list[Outcome]]


@dataclass(frozen=True)
class Options:
    """Options: how long, and from which seed.

    Attributes:
        minutes: for all samples together.
        seed: of all samples.
        write: keep the table in results/campaign.md.
    """

    minutes: float = 90.0
    seed: int = 0
    write: bool = False


@dataclass
class Tally:
    """Outcomes of the samples of one kind: how often each, the slowest and the largest."""

    kind: str
    answers: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    megabytes: float = 0.0

    def add(self, number: int, outcome: Outcome) -> None:
        """Count the outcome of sample `number`; a fault keeps the number."""
        self.answers[outcome.answer if outcome.answer in _GOOD else f"sample {number}: {outcome.answer}"] += 1
        self.seconds = max(self.seconds, outcome.seconds)
        self.megabytes = max(self.megabytes, outcome.num_bytes / 1e6)

    @property
    def faults(self) -> list[str]:
        return [answer for answer in self.answers if answer not in _GOOD]

    @property
    def row(self) -> list[object]:
        counts = (self.answers.total(), *(self.answers[answer] for answer in _GOOD), len(self.faults))
        return [self.kind, *(f"{count:,}" for count in counts), self.seconds, self.megabytes]


@message_instead_of_traceback()
def main(args: Sequence[str] | None = None) -> None:
    """Run the campaign, print its table, and fail if there was a fault."""
    options = tyro.cli(Options, prog="python -m tools.campaign", description=__doc__, args=args)
    tallies = campaign(options.minutes, options.seed)
    print(text := report(tallies, f"--minutes {options.minutes:g} --seed {options.seed}"))
    if options.write:
        write_text(PAGE, text)
    if faults := sum(len(tally.faults) for tally in tallies):
        sys.exit(f"error: {faults} faults")


def campaign(minutes: float, seed: int) -> list[Tally]:
    """Return the outcomes of all kinds of samples, at least one of each."""
    torch.set_num_threads(1)  # neither threads nor a GPU's context survive a fork
    with tempfile.TemporaryDirectory() as name:
        folder, run = Path(name), Path(name, "run")
        settings = {"CUDA_VISIBLE_DEVICES": "", "EEUTILS_CACHE": str(folder / "cache"), "no_proxy": "127.0.0.1"}
        with patch.dict(os.environ, settings):
            finish(partial(train_tiny, run))
            with kills(run, folder / "kills") as samples:
                samples |= flips_and_mutations(run, folder / "files")
                return [
                    tally
                    for topic, (share, turn) in _TOPICS.items()
                    for tally in _tallies(_of_topic(samples, topic), 60 * share * minutes, turn, seed)
                ]


def report(tallies: Sequence[Tally], arguments: str) -> str:
    """Return the table in Markdown, and every fault below it."""
    totals = Counter()
    for tally in tallies:
        totals[tally.kind.partition(":")[0]] += tally.answers.total()
    header = ["kind", "samples", *_GOOD, "faults", "slowest, s", "largest, MB"]
    faults = [f"- {tally.kind}, {fault}" for tally in tallies for fault in tally.faults]
    counts = "; ".join(f"{topic}, {count:,} times" for topic, count in totals.items())
    paragraphs = [
        "# Campaign",
        f"`python -m tools.campaign {arguments}` ended in {len(faults)} faults ({counts}).",
        "Equal: bit for bit the result of an undisturbed run or file, and no litter. Refused: the documented "
        "exception. Read: other content, in a file without a checksum. A fault is anything else: a silent change, "
        f"litter, executed code, another exception, more than {MOST_SECONDS} s or {MOST_BYTES / 1e9:g} GB.",
        markdown_table(header, [tally.row for tally in tallies]),
        *faults,
    ]
    return "\n\n".join(paragraphs) + "\n"


def _of_topic(samples: Mapping[str, Sample], topic: str) -> dict[str, Sample]:
    return {kind: sample for kind, sample in samples.items() if kind.startswith(topic)}


def _tallies(samples: Mapping[str, Sample], seconds: float, turn: int, seed: int) -> list[Tally]:
    """Take samples of all kinds in turn until the time is over."""
    tallies = [Tally(kind) for kind in samples]
    end, numbers = time.monotonic() + seconds, range(turn)
    while numbers[0] == 0 or time.monotonic() < end:
        for tally in tallies:
            draws = [random.Random(f"{seed} {tally.kind} {number}") for number in numbers]
            for number, outcome in zip(numbers, samples[tally.kind](draws), strict=True):
                tally.add(number, outcome)
        numbers = range(numbers[-1] + 1, numbers[-1] + 1 + turn)
    return tallies


if __name__ == "__main__":
    main()
