"""Export a classifier to a folder that needs neither torch nor eeutils: `python -m eeutils.export NAME FOLDER`.

NAME is that of shipped weights (`eeutils.list_weights()`), or a file of `Classifier.save`. The folder holds one ONNX
file a stage, `cascade.json`, and `run.py`, which answers for image files with numpy, Pillow and ONNX Runtime or
OpenVINO.
"""

import json
import math
import runpy
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tyro.conf import Positional

from eeutils.analysis.costs import exit_costs
from eeutils.analysis.policies import score_of
from eeutils.cascade import Cascade
from eeutils.classifier import Classifier, load_classifier, noise
from eeutils.engines import PreparedNet
from eeutils.engines.onnx_stages import onnx_bytes, to_onnx
from eeutils.engines.registry import import_extra
from eeutils.errors import message_instead_of_traceback, require
from eeutils.fields import check_choice
from eeutils.files import sha256_of_file, storing, work_folder, write_text
from eeutils.models import MultiExitNet, prepared_for_inference, stage_modules
from eeutils.models.multiexit import Features

SCORES = ("confidence", "entropy", "margin")  # those that run.py knows
SINGLE = "single.onnx"
_BATCH_SIZES = (1, 7, 64)
_LARGEST_DIFFERENCE = 1e-3  # of logits between runtimes, which round differently
_CLOSE_CALL = 1e-4  # of a score to its threshold


def export(classifier: Classifier, folder: Path | str, *, images: Tensor | None = None) -> None:
    """Write `classifier` to `folder`, whole or not at all, after comparing its answers with torch's.

    Args:
        classifier: with an `image_shape`.
        folder: one that does not exist yet.
        images: (N, C, H, W) uint8 to compare on; by default noise.

    Raises:
        FileExistsError: if `folder` exists.
        ValueError: if the classifier has no `image_shape` or another score than `SCORES`, a unit has no ONNX
            counterpart, or the exported stages answer differently.
        ModuleNotFoundError: if the extra "onnx" is not installed.
        StorageError: if the folder cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"folder must not exist yet, got {str(folder)!r}")
    require(classifier.image_shape is not None, "classifier must have an image_shape to export, got None")
    check_choice("score", classifier.policy.score, SCORES)
    images = noise(max(_BATCH_SIZES), classifier.image_shape) if images is None else images
    with work_folder(folder) as parent, storing(folder):
        made = parent / folder.name
        made.mkdir()
        _write(classifier, made)
        _compare(classifier, made, images)
        shutil.rmtree(made / "__pycache__", ignore_errors=True)
        made.rename(folder)


def _write(classifier: Classifier, folder: Path) -> None:
    import_extra("onnxscript", "onnx", "export")
    net, shape = prepared_for_inference(classifier.net), classifier.image_shape
    costs = exit_costs(net, shape).tolist()
    stages = []
    for index, model in enumerate(to_onnx(net, torch.zeros(1, *shape))):
        path = folder / f"stage{index}.onnx"
        path.write_bytes(model)
        stages.append({"file": path.name, "sha256": sha256_of_file(path), "macs": costs[index]})
    thresholds = classifier.policy.thresholds
    if not isinstance(thresholds, tuple):
        thresholds = (thresholds,) * (len(stages) - 1)
    about = {
        "stages": stages,
        "thresholds": [threshold if threshold <= 1 else None for threshold in thresholds],  # JSON has no infinity
        "score": classifier.policy.score,
        "fallback": classifier.fallback,
        "classes": classifier.classes,
        "normalization": asdict(classifier.normalization),
        "image_shape": shape,
        "versions": {name: version(name) for name in ("eeutils", "torch", "onnx")},
    }
    if (single := _single_file(net, classifier, thresholds)) is not None:
        (folder / SINGLE).write_bytes(single)
        about["single"] = {"file": SINGLE, "sha256": sha256_of_file(folder / SINGLE)}
    write_text(folder / "cascade.json", json.dumps(about, indent=1))
    for name in ("run.py", "README.md"):
        write_text(folder / name, resources.files("eeutils").joinpath("exported", name).read_text("utf-8"))


class _OneImage(nn.Module):
    """The whole cascade for one image, with a branch after each exit."""

    def __init__(self, net: MultiExitNet, thresholds: Sequence[float], score: str) -> None:
        super().__init__()
        self.stages, self.thresholds, self.score = nn.ModuleList(stage_modules(net)), (*thresholds, -1.0), score

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._from(0, images)

    def _from(self, index: int, x: Features) -> tuple[Tensor, Tensor]:
        features, logits = self.stages[index](x)
        threshold = self.thresholds[index]

        def leave(features: Features, logits: Tensor) -> tuple[Tensor, Tensor]:
            return logits.clone(), torch.full((1,), index)

        def stay(features: Features, logits: Tensor) -> tuple[Tensor, Tensor]:
            return self._from(index + 1, features)

        if threshold in (-1.0, math.inf):
            return leave(features, logits) if threshold < 0 else stay(features, logits)
        return torch.cond((score_of(logits, self.score) >= threshold)[0], leave, stay, (features, logits))


def _single_file(net: MultiExitNet, classifier: Classifier, thresholds: Sequence[float]) -> bytes | None:
    """The cascade for one image as one ONNX model with `If` nodes, where the exporter can make it."""
    if classifier.fallback != "last":
        return None
    cascade = _OneImage(net, thresholds, classifier.policy.score).eval()
    image = torch.zeros(1, *classifier.image_shape)
    try:
        with torch.no_grad():
            return onnx_bytes(cascade, (image,), input_names=["images"], output_names=["logits", "exit"])
    except Exception as error:  # of many kinds, by what is not supported
        warnings.warn(f"left out {SINGLE}, which is not essential: {error!r:.200}", stacklevel=4)
        return None


def _compare(classifier: Classifier, folder: Path, images: Tensor) -> None:
    """Raise a ValueError if what was exported answers other than torch in float32."""
    images = images.cpu().repeat(-(-max(_BATCH_SIZES) // len(images)), 1, 1, 1)
    normalized = classifier.normalization(images)
    ready = PreparedNet(classifier.net, precision="fp32", device="cpu")
    options = {"fallback": classifier.fallback, "normalization": classifier.normalization}
    expected = Cascade(ready, classifier.policy, **options)(images)
    scores = score_of(ready.logits(normalized), classifier.policy.score)[:-1]
    thresholds = torch.as_tensor(classifier.policy.thresholds, dtype=scores.dtype).reshape(-1, 1)
    clear = ~((scores - thresholds).abs() < _CLOSE_CALL).any(0).numpy()

    exported = runpy.run_path(str(folder / "run.py"))
    cascade = exported["Cascade"](folder)
    answers = [cascade(images[:size].numpy()) for size in _BATCH_SIZES]
    if single := cascade.about.get("single"):
        one_image = exported["open_stage"](folder / SINGLE, single["sha256"])
        inputs = normalized[: _BATCH_SIZES[1]].contiguous().split(1)
        answers.append(tuple(map(np.concatenate, zip(*(one_image([each.numpy()]) for each in inputs), strict=True))))
    for logits, exit_index in answers:
        kept = clear[: len(logits)]
        others = int((exit_index != expected.exit_index[: len(logits)].numpy())[kept].sum())
        difference = np.abs(logits - expected.logits[: len(logits)].numpy())[kept].max(initial=0.0)
        if others or not difference <= _LARGEST_DIFFERENCE * max(1.0, float(expected.logits.abs().max())):
            got = f"logits that differ by {difference:.2g} and {others} other exits of {len(logits)}"
            raise ValueError(f"exported stages must answer as torch does, got {got}")


def _export_named(source: Positional[str], folder: Positional[Path], max_drop: float = 0.005) -> None:
    """Export by name or file.

    Args:
        source: a name of `eeutils.list_weights()`, or a file of `Classifier.save`.
        folder: one that does not exist yet.
        max_drop: for a name: accuracy that leaving early may cost.
    """
    is_file = Path(source).is_file()
    export(Classifier.load(source) if is_file else load_classifier(source, max_drop=max_drop), folder)
    print(f"wrote {folder}; try: python {folder / 'run.py'} photo.jpg")


@message_instead_of_traceback()
def main(args: Sequence[str] | None = None) -> None:
    """Export from the command line."""
    tyro.cli(_export_named, prog="python -m eeutils.export", description=__doc__, args=args)


if __name__ == "__main__":
    main()
