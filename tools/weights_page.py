"""Write weights/README.md from the registry."""

import re
from collections.abc import Iterable

from eeutils.files import write_text
from eeutils.weights.fetch import drive_page
from eeutils.weights.registry import Registry, TrainingRecord, WeightEntry
from tools.tables import markdown_table


def write_readme(registry: Registry) -> None:
    """Write `README.md` into the registry's folder.

    Raises:
        StorageError: if it cannot be written.
    """
    write_text(registry.folder / "README.md", readme_text(registry))


def readme_text(registry: Registry) -> str:
    """The page in Markdown: shipped weights with accuracy and cost, commands for the missing ones, external weights."""

    def having(status: str) -> list[WeightEntry]:
        return [entry for entry in registry.entries if entry.status == status]

    done = [entry for entry in registry.entries if entry.has_results]
    parts = [
        _INTRODUCTION,
        _section("Trained", _TRAINED, _trained_table(done)),
        _section("Not trained", _NOT_TRAINED, map(_not_trained_item, having("not trained"))),
        _section("Published elsewhere", _EXTERNAL, map(_external_item, having("external"))),
    ]
    return "\n".join(part for part in parts if part)


_INTRODUCTION = """\
# Weights

    from eeutils.weights import list_weights, load_history, load_predictions, load_run, load_weights
    list_weights()                                     # all names that load
    net = load_weights("<name>")                       # float32, evaluation mode
    predictions = load_predictions("<name>", "test")   # logits of every exit for every image; or "val"
    history = load_history("<name>")

After your own training, `load_run("runs/<name>-s0")` gives the network of a finished run.

Every file is checked against the sha256 in `registry.json` before it is read. This page is written from that file by
`python -m tools.publish <folder of a training run>`, which adds a run or replaces the run of the same name.
"""
_TRAINED = (
    "Accuracy of each exit, shallowest first, of the weights as they ship (half precision). Cost is the multiply-adds "
    "of one image up to and including that exit. Every row is one run, of seed 0 or the one that its name ends in "
    "(`-s1`). The matrix peak is how fast the same machine multiplies large matrices."
)
_NOT_TRAINED = (
    "`make weights` trains these, most valuable first; they want a GPU. Sorted by name, these commands "
    "train them one by one and add them to the table:"
)
_EXTERNAL = (
    "Whole-module pickles, which Python would execute: `load_weights` reads their tensors without running anything "
    "(`eeutils.weights.pickles`), and raises with a report, tensor by tensor, if they do not fit the network. They "
    "were not measured here."
)


def _section(title: str, introduction: str, lines: Iterable[str]) -> str:
    body = "\n".join(lines)
    return f"## {title}\n\n{introduction}\n\n{body}\n" if body else ""


def _trained_table(entries: list[WeightEntry]) -> list[str]:
    if not entries:
        return []
    head = ["name", "test accuracy, %", "validation accuracy, %", "million multiply-adds", "size, MB", "recipe, device"]
    return markdown_table(head, map(_trained_cells, entries)).splitlines()


def _trained_cells(entry: WeightEntry) -> list[str]:
    def percent(split: str) -> str:
        return " / ".join(f"{share:.2%}".rstrip("%") for share in entry.accuracy.get(split, ()))

    macs = " / ".join(f"{macs / 1e6:.1f}" for macs in entry.macs)
    made = entry.training
    size = f"{entry.weights.size / 1e6:.1f}" if entry.weights else "does not ship"
    origin = _origin(made, entry.command) if made else "not recorded"
    return [f"`{entry.name}`", percent("test"), percent("val"), macs, size, origin]


def _origin(made: TrainingRecord, command: str) -> str:
    start = re.search(r"--start[-_]from[ =](\S+)", command)
    epochs = f"{made.config['epochs']} epochs" + (f" from `{start[1]}`" if start else "")
    words = f"{made.recipe}, {epochs}, {made.device}, {made.seconds / 60:.0f} min"
    if made.share_of_peak is None:
        return words
    return f"{words}, {made.images_per_second:,.0f} images/s, {made.share_of_peak:.0%} of the matrix peak"


def _not_trained_item(entry: WeightEntry) -> str:
    return f"- `{entry.name}`\n\n      {entry.command}\n"


def _external_item(entry: WeightEntry) -> str:
    pages = [drive_page(source.removeprefix("drive:")) for source in entry.weights.sources if "drive:" in source]
    return f'- `{entry.name}`: `load_weights("{entry.name}")`; {", ".join(pages)}. {entry.note}'
