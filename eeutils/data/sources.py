"""Getting a data set's bytes: from the cache, else from the first source that has them, and never unverified.

A source turns up the whole data set as raw tensors or raises. Its content is verified before anyone uses it, so
sources need not be trusted.
"""

import hashlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from eeutils.errors import DataUnavailableError, IntegrityError
from eeutils.files import atomic_path, cache_dir, exclusive, storage_error

RawData = dict[str, Tensor]
"""`train_images` and `test_images` (N, 3, H, W) uint8, `train_labels` and `test_labels` (N,) uint8.

Where the data set's own files name the classes, also `class_names`: see `as_bytes`.
"""


@dataclass(frozen=True)
class Content:
    """What one tensor of a data set has to be.

    Attributes:
        shape: of the uint8 tensor; None for a length that only the source knows.
        sha256: of its bytes, in hexadecimal; None where only the archive's hash is published: its sources check that,
            and the cache file notes the sha256 of what they delivered.
    """

    shape: tuple[int | None, ...]
    sha256: str | None


@dataclass(frozen=True)
class Source:
    """A place to get a data set from.

    Attributes:
        name: how messages call it.
        fetch: returns the raw data, or raises with the reason why it cannot.
        remedy: what a person can do so that it works.
        slow: how long it may take, where that is worth a warning that says why no quicker source delivered.
    """

    name: str
    fetch: Callable[[], RawData]
    remedy: str
    slow: str | None = None


def cached_data(name: str, content: Mapping[str, Content], sources: Sequence[Source]) -> RawData:
    """The verified bytes of a data set: from its cache file, else from the sources, which fill the cache.

    Several processes may ask at once: one fetches, the others wait for its file. A damaged cache file is fetched anew.

    Raises:
        DataUnavailableError: if no source delivers.
        StorageError: if the cache cannot be written.
    """
    path = cache_dir() / f"{name}.safetensors"
    if (data := _read_cache(path, content)) is None:
        with exclusive(path):
            if (data := _read_cache(path, content)) is None:  # another process may just have written it
                data = first_that_delivers(name, content, sources)
                _write_cache(path, data, content)
    return data


def first_that_delivers(name: str, content: Mapping[str, Content], sources: Sequence[Source]) -> RawData:
    """Ask the sources in order; the first whose data is what `content` says wins.

    Raises:
        DataUnavailableError: if none does; it says for each why, and what to do by hand.
    """
    failures = []
    for source in sources:
        if source.slow and failures:
            quicker = "\n".join(failures)
            warnings.warn(f"{name} comes from the {source.name}: {source.slow}. Quicker:\n{quicker}", stacklevel=2)
        try:
            data = source.fetch()
            verify_content(data, content)
            return data
        except Exception as error:  # whatever goes wrong in one source, the next gets its turn
            reason = str(error).strip() or type(error).__name__
            failures.append(f"  - {source.name}: {reason}\n    -> {source.remedy}")
    raise DataUnavailableError(
        f"no source could deliver {name}. Tried, in this order:\n" + "\n".join(failures) + "\n"
        "Without any of them, load_data('digits') needs no network."
    )


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
        if expected.sha256 is not None and (actual := sha256(tensor)) != expected.sha256:
            raise IntegrityError(f"{part} has sha256 {actual[:16]}..., expected {expected.sha256[:16]}...")


def as_bytes(names: Sequence[str]) -> Tensor:
    """Names as a uint8 tensor, so that they can be kept beside the images; `as_names` is the way back."""
    return torch.frombuffer(bytearray("\n".join(names), "utf-8"), dtype=torch.uint8)


def as_names(text: Tensor) -> tuple[str, ...]:
    """The names that `as_bytes` was given."""
    return tuple(bytes(text.numpy()).decode().split("\n"))


def sha256(tensor: Tensor) -> str:
    """Of a tensor's bytes, in hexadecimal; the same on every device and in every memory format."""
    return hashlib.sha256(tensor.cpu().contiguous().numpy()).hexdigest()


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
    tensors = {part: data[part].contiguous() for part in content}
    unknown = {part: sha256(tensors[part]) for part, expected in content.items() if expected.sha256 is None}
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=unknown or None)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise storage_error(path, error) from error


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(want in (None, size) for size, want in zip(shape, expected, strict=True))
