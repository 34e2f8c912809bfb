"""Flipped bits in files that have a checksum, and mutations of every file format that is read."""

import hashlib
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from eeutils import files
from eeutils.analysis.policies import ThresholdPolicy
from eeutils.analysis.predictions import Predictions
from eeutils.classifier import Classifier
from eeutils.data import load_data, load_image
from eeutils.data.cache import Content, cached_data
from eeutils.data.cifar import read_npm_package
from eeutils.data.tinyimagenet import FOLDER, TinyImageNetArchive, read_zip
from eeutils.download import Source, first_that_delivers
from eeutils.errors import DataUnavailableError, IntegrityError
from eeutils.training import History
from eeutils.training.checkpoint import load_checkpoint
from eeutils.weights import Registry, load_run, load_weights, read_pickled_tensors, read_tensors
from tools.campaign.children import Outcome, watched
from tools.publish import publish

# What mutations insert beside noise, and put in place of a value in JSON.
_HOSTILE = (b"[" * 100_000, b"9" * 5_000, b"1e999", b"-1", b"NaN", b"null", b'"\\ud800"', b"../" * 5, b"\0", b"\n,")
_HOSTILE += (b"\xff" * 8, b"\xff\xff\xff\x7f", b"%!PS-Adobe-3.0\n", b"cos\nsystem\n(S'touch executed'\ntR", b"<html>")
_ODD = (None, -1, 0, 0.5, 1e308, 10**6, 10**30, "", "x" * 1000, "\ud800", "../x", "avg", True, [], {}, [[[]]])
Read = Callable[[Path], Any]
Change = Callable[[bytes, random.Random], bytes]
_PHOTOS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO")


@dataclass(frozen=True)
class Format:
    """A file in its place, and how it is read.

    Attributes:
        refusals: the documented exceptions for a damaged file.
        checked: it has a checksum, so that a change is found or changes nothing.
    """

    path: Path
    read: Read
    refusals: tuple[type[Exception], ...] = (IntegrityError,)
    checked: bool = False


def flips_and_mutations(run: Path, folder: Path) -> dict[str, Callable[[list[random.Random]], list[Outcome]]]:
    """Return the kinds of samples.

    Args:
        run: folder of a finished training run.
        folder: for the files to damage.
    """
    kinds = {}
    for name, each in {**_own_formats(run, folder), **_foreign_formats(folder)}.items():
        expected = each.path.read_bytes(), each.read(each.path)  # reading also imports what it needs
        if each.checked:
            kinds[f"flipped bit: {name}"] = partial(_samples, each, *expected, _flipped)
        kinds[f"mutation: {name}"] = partial(_samples, each, *expected, _mutated)
    return kinds


def _samples(each: Format, content: bytes, expected: Any, change: Change, draws: list[random.Random]) -> list[Outcome]:
    """Change, read and judge the file, once for each of `draws`."""

    def answer(draw: random.Random) -> str:
        each.path.write_bytes(change(content, draw))
        try:
            found = each.read(each.path)
        except each.refusals:
            return "refused"
        return "equal" if _same(found, expected) else "a silent change" if each.checked else "read"

    outcomes = watched([partial(answer, draw) for draw in draws])
    each.path.write_bytes(content)  # other formats may need it
    return outcomes


def _flipped(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def _mutated(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        with suppress(ValueError):
            return _with_odd_value(content, draw)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(content) + 1)
        end = at + draw.choice((1, 1, 2, 4, 8, 64, 4096, 1 << 20))
        piece = content[at:end]
        instead = draw.choice(
            (
                lambda piece: draw.randbytes(len(piece)),
                lambda piece: bytes(byte ^ 1 << draw.randrange(8) for byte in piece[:1]) + piece[1:],
                lambda piece: piece * draw.choice((0, 2, 100)),
                lambda piece: piece[:1] * len(piece),
                lambda _: draw.choice(_HOSTILE),
                lambda piece: draw.choice(_HOSTILE) + piece,
            )
        )(piece)
        content = content[:at] + instead + content[end:]
    return content


def _with_odd_value(content: bytes, draw: random.Random) -> bytes:
    """Replace one value of a JSON file."""
    top = json.loads(content)
    places, waiting = [], [top]
    for inner in waiting:
        if isinstance(inner, dict | list):
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            places += [(inner, key) for key in keys]
            waiting += [inner[key] for key in keys]
    if not places:
        raise ValueError("JSON must hold a value to replace")
    inner, key = draw.choice(places)
    inner[key] = draw.choice(_ODD)
    return json.dumps(top).encode()


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _own_formats(run: Path, folder: Path) -> dict[str, Format]:
    """Files that this package writes."""
    (folder / "weights").mkdir(parents=True)
    entry = publish(run, Registry.load(folder / "weights"))
    net, digits = load_run(run), load_data("digits")
    classifier = Classifier(net, digits.classes, digits.normalization, ThresholdPolicy(0.9), image_shape=(3, 8, 8))
    classifier.save(folder / "classifier.safetensors")
    Predictions(torch.randn(2, 50, 10), torch.arange(50) % 10, torch.tensor([1.0, 2.0]).double()).save(folder / "table")
    kept = {"images": torch.arange(1000).to(torch.uint8)}

    def cached(path: Path) -> dict[str, Tensor]:
        return cached_data(path.stem, {"images": Content((1000,))}, lambda _: [Source("here", kept.copy, "")])

    (cache := files.cache_dir() / "toy.safetensors").unlink(missing_ok=True)
    cached(cache)
    checkpoint = run / "checkpoint.pt"
    return {
        "checkpoint": Format(checkpoint, load_checkpoint, checked=True),
        "checkpoint, sealed anew": _sealed_anew(checkpoint, folder),
        "classifier": Format(folder / "classifier.safetensors", _parts, checked=True),
        "classifier, sealed anew": _classifier_sealed_anew(folder),
        "predictions": Format(folder / "table", lambda path: vars(Predictions.load(path)).copy(), checked=True),
        "weights": Format(run / "weights.safetensors", read_tensors, checked=True),
        "shipped weights": Format(
            folder / "weights" / entry.weights.path,
            lambda _: load_weights(entry.name, registry=Registry.load(folder / "weights")).state_dict(),
            checked=True,
        ),
        "data cache": Format(cache, cached, checked=True),
        "registry": Format(folder / "weights" / "registry.json", lambda path: Registry.load(path.parent)),
        "report": Format(run / "report.json", lambda _: load_run(run).state_dict(), (IntegrityError, ValueError)),
        "history": Format(run / "history.csv", lambda path: History.load_csv(path).rows),
    }


def _foreign_formats(folder: Path) -> dict[str, Format]:
    """Files that others write."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    save_file(net.state_dict(), folder / "foreign.safetensors")
    formats = {"safetensors of others": Format(folder / "foreign.safetensors", read_tensors)}
    for name, is_zip in (("zip", True), ("legacy", False)):
        path = folder / f"module-{name}.pt"
        torch.save(net, path, _use_new_zipfile_serialization=is_zip)
        formats[f"pickle, {name}"] = Format(path, read_pickled_tensors)
    with zipfile.ZipFile(folder / "module-zip.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    formats["pickle in a zip"] = _member(folder / "data.pkl", members, "module-zip/data.pkl", read_pickled_tensors)
    for kind in _PHOTOS:
        path = folder / f"photo.{kind.lower()}"
        pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, kind)
        formats[f"photo, {kind}"] = Format(path, partial(load_image, size=8))
    return formats | _archives(folder)


def _archives(folder: Path) -> dict[str, Format]:
    """Archives of data, read as if the published hash were theirs."""

    def photo(side: int, height: int, kind: str) -> bytes:
        pixels = np.random.default_rng(0).integers(0, 256, (height, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer := io.BytesIO(), kind)
        return buffer.getvalue()

    def delivered(read: Read) -> Read:
        return lambda path: first_that_delivers("data", [Source("file", partial(read, path), "")])

    with tarfile.open(folder / "npm.tgz", "w:gz") as archive:
        names = [f"data_batch_{number}.png" for number in range(1, 6)] + ["test_batch.png"]
        contents = dict.fromkeys(names, photo(1024, 4, "PNG"))
        contents |= {"train_lables.json": json.dumps([1] * 20).encode(), "test_lables.json": b"[1, 2, 3, 4]"}
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    tiny = TinyImageNetArchive(image_size=8, num_classes=2, train_per_class=2, num_test=2)
    with zipfile.ZipFile(folder / "tiny.zip", "w") as archive:
        lines = {"wnids.txt": "n1\nn2\n", "words.txt": "n1\tcat\nn2\tdog\n"}
        lines["val/val_annotations.txt"] = "v0.JPEG\tn1\nv1.JPEG\tn2\n"
        images = [f"train/{each}/images/{each}_{number}.JPEG" for each in ("n1", "n2") for number in range(2)]
        for name in [*images, "val/images/v0.JPEG", "val/images/v1.JPEG"]:
            archive.writestr(f"{FOLDER}/{name}", photo(8, 8, "JPEG"))
        for name, text in lines.items():
            archive.writestr(f"{FOLDER}/{name}", text)

    def read_tiny(path: Path) -> Any:
        return read_zip(path, replace(tiny, md5=hashlib.md5(path.read_bytes()).hexdigest()))

    unavailable = (DataUnavailableError,)
    return {
        "data, tar": Format(folder / "npm.tgz", delivered(read_npm_package), unavailable),
        "data, zip": Format(folder / "tiny.zip", delivered(read_tiny), unavailable),
    }


def _member(path: Path, members: Mapping[str, bytes], name: str, read: Read, end: Callable = lambda _: b"") -> Format:
    """A file that stands for one member of a zip file; reading packs it with the others."""

    def packed(path: Path) -> Any:
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            for each, content in {**members, name: path.read_bytes()}.items():
                archive.writestr(each, content)
        whole = path.with_suffix(".packed")
        whole.write_bytes(buffer.getvalue() + end(buffer.getvalue()))
        return read(whole)

    path.write_bytes(members[name])
    return Format(path, packed)


def _sealed_anew(checkpoint: Path, folder: Path) -> Format:
    """The pickle of a checkpoint whose checksum is put right after the change."""
    with zipfile.ZipFile(checkpoint) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    seal = lambda content: files._STATE_MARK + hashlib.sha256(content).digest()  # noqa: E731
    return _member(folder / "checkpoint.pkl", members, name, load_checkpoint, seal)


def _parts(path: Path) -> list[Any]:
    classifier = Classifier.load(path)
    rest = {name: value for name, value in vars(classifier).items() if name not in ("net", "cascade")}
    return [classifier.net.state_dict(), rest]


def _classifier_sealed_anew(folder: Path) -> Format:
    """The metadata of a classifier's file whose checksum is put right after the change."""
    tensors, metadata = files.load_tensors(folder / "classifier.safetensors")
    ((key, about),) = metadata.items()
    (path := folder / "about.json").write_text(about)

    def read(path: Path) -> Any:
        whole = path.with_suffix(".safetensors")
        files.save_tensors(whole, tensors, {key: path.read_bytes().decode("utf-8", "replace")})
        return _parts(whole)

    return Format(path, read, (IntegrityError, ValueError))
