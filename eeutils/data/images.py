"""Image files, opened in one place: bitmap formats only, of bounded size, and every error names the file."""

from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from eeutils.errors import IntegrityError, require
from eeutils.fields import check_range

if TYPE_CHECKING:
    from PIL.Image import Image

_LARGEST_SIZE = 4096  # pixels per side of the square that an image becomes
_MOST_PIXELS = 65_000_000  # of a file: up to 0.8 GB while it is read
# Pillow opens more, such as PostScript, for which it starts Ghostscript. HEIF needs pillow-heif to have registered it.
_FORMATS = ["AVIF", "BMP", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "SGI", "TIFF", "WEBP"]


def image_suffixes() -> set[str]:
    """Return the suffixes of the image files that can be read, in lower case, such as ".png"."""
    from PIL import Image

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in _FORMATS}


def load_image(path: Path | str, *, size: int) -> Tensor:
    """Read an image file as (1, 3, size, size) uint8, exactly as `data_from_folder` does.

    The image is turned as its EXIF says; grey becomes RGB; transparency is dropped; the middle square is scaled.
    Grey values of 16 bits become 8: white is 65535, or 4095 if no value is larger (12 bits, as cameras deliver them).
    A file that is no image raises IntegrityError.

        net(data.normalization(load_image("photo.jpg", size=32)))
    """
    with open(path, "rb") as file:
        return as_tensor(open_image(file, str(path)), size)[None]


def open_image(file: IO[bytes], name: str) -> "Image":
    """Decode an open image file to RGB."""
    from PIL import Image, ImageOps

    Image.init()
    try:
        with Image.open(file, formats=[each for each in _FORMATS if each in Image.OPEN]) as image:
            pixels = f"{image.width} x {image.height}"
            require(image.width * image.height <= _MOST_PIXELS, f"{pixels} pixels are too many; scale it down")
            deep = ";16" in str(image.tile)  # 16 bits per channel in the file
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _as_rgb(image, deep)
    except Exception as error:  # Pillow raises what it pleases
        raise IntegrityError(f"{name} is not a readable image: {error}") from error


def as_tensor(image: "Image", size: int | None) -> Tensor:
    """Return an image as (3, H, W) uint8; with a `size`, its middle square scaled to that size."""
    from PIL import Image

    image = _as_rgb(image)
    if size is not None:
        check_range("size", size, 1, _LARGEST_SIZE)
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        if image.width != image.height:
            image = image.crop((left, top, left + side, top + side))
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _as_rgb(image: "Image", deep: bool = False) -> "Image":
    from PIL import Image

    if image.mode in ("I", "F"):  # Pillow would clip them to 0..255
        raise ValueError(f"pixels have more than 16 bits (mode {image.mode}) and no known white; save it with 8 or 16")
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        white = 4095 if pixels.max() <= 4095 else 65535
        scaled = pixels * np.float32(255 / white)
        image = Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))
    elif deep and max(high for _, high in image.convert("RGB").getextrema()) <= 15:  # Pillow dropped the lower 8 bits
        raise ValueError("it has values of at most 12 bits in 16; save it with 8 bits per channel")
    if "transparency" in image.info:
        image = image.convert("RGBA")  # from a palette straight to RGB, Pillow would warn
    return image if image.mode == "RGB" else image.convert("RGB")
