"""The bytes of a data set: from its cache file, else from the first source that has them.

Before anyone uses the data they are checked: against the known sha256 of each tensor, or, where there is none, against
the expected shapes; sources check the published hashes of the archives they read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from eeutils.download import Source, first_that_delivers
from eeutils.errors import IntegrityError
from eeutils.files import (
    cache_dir,
    check_room,
    exclusive,
    load_tensors,
    save_tensors,
    sha256_of_tensor,
    sweep,
    work_folder,
)

RawData = dict[str, Tensor]
"""`train_images` and `test_images` (N, 3, H, W) uint8, `train_labels` and `test_labels` (N,) uint8.

`class_names` (see `as_bytes`) is present if the data set's own files name the classes.
"""


@dataclass(frozen=True)
class Content:
    """Expected content of one uint8 tensor."""

    shape: tuple[int | None, ...]  # None stands for any length
    sha256: str | None = None  # of the bytes, in hexadecimal, if known


def expected_shapes(num_train: int, num_test: int, image_shape: tuple[int, int, int]) -> dict[str, Content]:
    """Return the content of a data set whose images have no published hashes, and whose files name the classes."""
    counts = {"train": num_train, "test": num_test}
    images = {f"{part}_images": Content((count, *image_shape)) for part, count in counts.items()}
    return images | {f"{part}_labels": Content((n,)) for part, n in counts.items()} | {"class_names": Content((None,))}


def cached_data(
    name: str, content: Mapping[str, Content], sources: Callable[[Path], Sequence[Source[RawData]]]
) -> RawData:
    """Return the checked bytes of a data set, and keep them in the cache folder.

    Several processes may ask at once: one fetches, the others wait. A damaged cache file is replaced. `sources` are
    given a folder for their temporary files, which is removed once the data are cached; until then an interrupted
    download can be resumed.
    """
    path = cache_dir() / f"{name}.safetensors"
    if (data := _read_cache(path, name, content)) is not None:
        sweep(path)
        return data
    with exclusive(path), work_folder(path, resume=True) as folder:
        if (data := _read_cache(path, name, content)) is not None:  # another process has just written it
            return data
        check_room(path, sum(prod(each.shape) for each in content.values() if None not in each.shape))
        remedy = "Without any of them, load_data('digits') needs no network."
        data = first_that_delivers(name, sources(folder), remedy, check=partial(verify_content, content=content))
        save_tensors(path, {part: data[part] for part in content}, {"data": name})
    return data


def verify_content(data: RawData, content: Mapping[str, Content]) -> None:
    """Raise IntegrityError if a tensor is missing, or differs in dtype, shape or bytes."""
    for part, expected in content.items():
        tensor = data.get(part, torch.empty(0))
        found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        fits = tensor.dtype == torch.uint8 and _fits(tensor.shape, expected.shape)
        if fits and expected.sha256 is not None:
            found = f"sha256 {sha256_of_tensor(tensor)}"
            fits = found == f"sha256 {expected.sha256}"
        if not fits:
            wanted = f"uint8 of shape {expected.shape}, sha256 {expected.sha256}"
            raise IntegrityError(f"{part} must be {wanted}, got {found}")


def as_bytes(names: Sequence[str]) -> Tensor:
    """Encode names as a uint8 tensor, to be kept beside the images; `as_names` decodes it."""
    return torch.frombuffer(bytearray("\n".join(names), "utf-8"), dtype=torch.uint8)


def as_names(text: Tensor) -> tuple[str, ...]:
    """Decode the names that `as_bytes` encoded."""
    return tuple(bytes(text.numpy()).decode().split("\n"))


def _read_cache(path: Path, name: str, content: Mapping[str, Content]) -> RawData | None:
    """Return the content of the cache file, or None if it is missing or damaged."""
    try:
        data, metadata = load_tensors(path)  # checks the file's own checksum
        verify_content(data, content)
    except (OSError, IntegrityError):
        return None
    vouched_for = all(each.sha256 for each in content.values())
    return data if vouched_for or metadata.get("data") == name else None


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(want in (None, size) for size, want in zip(shape, expected, strict=True))
