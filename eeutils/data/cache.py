"""Getting a data set's bytes: from the cache, else from the first source that has them.

A source returns the whole data set as raw tensors or raises. Before anyone uses them they are checked. Where the sha256
of each tensor is known, no source need be trusted. Where it is not, only the shapes are checked here: the sources check
the published hashes of what they read, save an unpacked Tiny ImageNet, whose files have none. The cache file notes what
was delivered, and is checked against that.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from eeutils.download import web_page
from eeutils.errors import IntegrityError
from eeutils.files import cache_dir, exclusive, save_tensors, sha256_of_tensor
from eeutils.sources import Source, first_that_delivers

RawData = dict[str, Tensor]
"""`train_images` and `test_images` (N, 3, H, W) uint8, `train_labels` and `test_labels` (N,) uint8.

Where the data set's own files name the classes, also `class_names`: see `as_bytes`.
"""


@dataclass(frozen=True)
class Content:
    """What one tensor of a data set has to be.

    Attributes:
        shape: of the uint8 tensor; None for a length that only the source knows.
        sha256: of its bytes, in hexadecimal; None where it is not known: the cache file then notes what it got.
    """

    shape: tuple[int | None, ...]
    sha256: str | None


def cached_data(name: str, content: Mapping[str, Content], sources: Sequence[Source[RawData]]) -> RawData:
    """The checked bytes of a data set: from its cache file, else from the sources, which fill the cache.

    Several processes may ask at once: one fetches, the others wait for its file. A damaged cache file is fetched anew.

    Raises:
        DataUnavailableError: if no source delivers.
        StorageError: if the cache cannot be written.
    """
    path = cache_dir() / f"{name}.safetensors"
    if (data := _read_cache(path, content)) is None:
        with exclusive(path):
            if (data := _read_cache(path, content)) is None:  # another process may just have written it
                checked = [_checked(source, content) for source in sources]
                otherwise = "Without any of them, load_data('digits') needs no network."
                data = first_that_delivers(name, checked, otherwise)
                _write_cache(path, data, content)
    return data


def verify_content(data: RawData, content: Mapping[str, Content]) -> None:
    """Check every tensor's dtype, shape and bytes.

    Raises:
        IntegrityError: if one is missing or differs.
    """
    for part, expected in content.items():
        if part not in data:
            raise IntegrityError(f"{part} is missing")
        tensor = data[part]
        if tensor.dtype != torch.uint8 or not _fits(tensor.shape, expected.shape):
            raise IntegrityError(
                f"{part} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected torch.uint8 of {expected.shape}"
            )
        if expected.sha256 is not None and (actual := sha256_of_tensor(tensor)) != expected.sha256:
            raise IntegrityError(f"{part} has sha256 {actual[:16]}..., expected {expected.sha256[:16]}...")


def as_bytes(names: Sequence[str]) -> Tensor:
    """Names as a uint8 tensor, so that they can be kept beside the images; `as_names` is the way back."""
    return torch.frombuffer(bytearray("\n".join(names), "utf-8"), dtype=torch.uint8)


def as_names(text: Tensor) -> tuple[str, ...]:
    """The names that `as_bytes` was given."""
    return tuple(bytes(text.numpy()).decode().split("\n"))


def progress_bar(description: str, size: int, unit: str = "B") -> tqdm:
    """A bar over `size` bytes, or other units, in a notebook or a terminal.

    It is silent where stderr is a file or a pipe, such as a log.
    """
    return tqdm(desc=description, total=size, unit=unit, unit_scale=True, file=sys.stderr, leave=False, disable=None)


def _read_cache(path: Path, content: Mapping[str, Content]) -> RawData | None:
    """What the cache file holds, or None if there is none or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            noted = file.metadata() or {}
            data = {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118, it is no dict
        verify_content(data, {part: replace(each, sha256=each.sha256 or noted[part]) for part, each in content.items()})
        return data
    except (SafetensorError, IntegrityError, OSError, KeyError):
        return None


def _write_cache(path: Path, data: RawData, content: Mapping[str, Content]) -> None:
    unknown = {part: sha256_of_tensor(data[part]) for part, expected in content.items() if expected.sha256 is None}
    save_tensors(path, {part: data[part] for part in content}, unknown or None)


def _checked(source: Source[RawData], content: Mapping[str, Content]) -> Source[RawData]:
    """A source that raises where `source` delivers anything but what `content` says."""

    def fetch() -> RawData:
        data = source.fetch()
        verify_content(data, content)
        return data

    return replace(source, fetch=fetch)


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(want in (None, size) for size, want in zip(shape, expected, strict=True))


def local_folders() -> list[Path]:
    """Where a copy of one's own is looked for: in $EEUTILS_DATA (by default `data`), and in the cache folder."""
    return list(dict.fromkeys([Path(os.environ.get("EEUTILS_DATA", "data")).expanduser(), cache_dir()]))


def download(url: str, path: Path, *, md5: str, size: int, title: str, timeout_s: float) -> None:
    """Fetch an archive into `path` and check it.

    Args:
        url: of the archive.
        path: of the file to write; nobody else should know it yet.
        md5: that it must have, in hexadecimal.
        size: in bytes; for the progress bar.
        title: of the data set; for the progress bar.
        timeout_s: how long the site may be silent, in seconds; the download as a whole may take long.

    Raises:
        OSError: if the site cannot be reached, answers with an error, falls silent or stops half-way.
        IntegrityError: if what it sends is not the archive.
    """
    import pooch

    with progress_bar(f"{title} from the official site", size) as bar:
        pooch.HTTPDownloader(progressbar=bar, timeout=timeout_s, chunk_size=2**16)(url, path, None)
    check_md5(path, md5)


def check_md5(path: Path, md5: str) -> None:
    """See that an archive is the published one.

    Raises:
        IntegrityError: if its md5 is another; it says so if the file is a web page.
    """
    import pooch

    if (actual := pooch.file_hash(str(path), alg="md5")) != md5:
        page = " (it is a web page)" if web_page(path) else ""
        raise IntegrityError(f"the archive has md5 {actual}, expected {md5}{page}")
