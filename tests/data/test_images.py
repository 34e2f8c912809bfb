import struct
import subprocess
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eeutils import load_image
from eeutils.errors import IntegrityError


def noise(height: int, width: int, top: int = 255, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, (height, width), dtype=dtype, endpoint=True)


def saved(image: Image.Image, path: Path, **kwargs) -> Path:
    image.save(path, **kwargs)
    return path


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """Encode raw rows, each with a leading zero for "no filter", as a PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "jfif", "jpg", "tif", "tiff", "webp", "jp2", "ppm", "ico"])
def test_load_image_reads_bitmap_formats(tmp_path, suffix):
    path = saved(Image.new("RGB", (32, 32), (250, 0, 0)), tmp_path / f"red.{suffix}")
    image = load_image(path, size=8)
    assert (image.shape, image.dtype) == ((1, 3, 8, 8), torch.uint8)
    assert (image[0].float().mean((1, 2)) - torch.tensor([250.0, 0, 0])).abs().max() < 4


def test_load_image_starts_no_other_program(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Mock(side_effect=AssertionError("a program was started")))
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(IntegrityError, match=r"photo\.jpg"):
        load_image(path, size=8)


@given(width=st.integers(1, 40), height=st.integers(1, 40), size=st.integers(1, 20))
def test_load_image_keeps_the_middle_square(width, height, size, tmp_path_factory):
    short, long = sorted((width, height))
    line = np.zeros(long, np.uint8)
    line[(long - short) // 2 :][:short] = 200
    wide = np.tile(line, (short, 1))
    path = saved(Image.fromarray(wide if width >= height else wide.T), tmp_path_factory.mktemp("image") / "a.png")
    assert torch.equal(load_image(path, size=size), torch.full((1, 3, size, size), 200, dtype=torch.uint8))


def test_load_image_bounds_the_work_on_narrow_images(tmp_path):
    path = saved(Image.new("L", (1, 20_000)), tmp_path / "narrow.png")
    assert load_image(path, size=224).shape == (1, 3, 224, 224)  # scaled before cropping, it would take 4.5 GB


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_100, 40_000])
def test_load_image_names_a_decompression_bomb(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 8, 0, b""))
    with pytest.raises(IntegrityError, match=r"bomb\.png.*pixels"):
        load_image(path, size=8)


@pytest.mark.parametrize("damage", [lambda content: b"no image", lambda content: content[:5_000], lambda content: b""])
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_load_image_names_a_damaged_file(tmp_path, suffix, damage):
    path = saved(Image.effect_noise((200, 200), 50), tmp_path / f"bad.{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IntegrityError, match=rf"bad\.{suffix}"):
        load_image(path, size=8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("white", [4095, 65535])
def test_load_image_scales_16_bits_by_their_range(tmp_path, suffix, order, white):
    pixels = noise(8, 8, white, np.uint16)
    mode = "I;16" if order == "<u2" else "I;16B"
    image = Image.frombytes(mode, (8, 8), pixels.astype(order).tobytes())
    expected = torch.from_numpy((pixels / white * 255).round().astype(np.uint8))
    loaded = load_image(saved(image, tmp_path / f"grey.{suffix}"), size=8)
    assert torch.equal(loaded, expected.expand(1, 3, 8, 8))


@pytest.mark.parametrize(("top", "fits"), [(65535, True), (4095, False)])
def test_load_image_refuses_12_bits_in_16_of_colour(tmp_path, top, fits):
    pixels = noise(8, 24, top, np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(png(8, 8, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)))
    if fits:
        expected = torch.from_numpy((pixels >> 8).astype(np.uint8).reshape(8, 8, 3)).permute(2, 0, 1)
        assert torch.equal(load_image(path, size=8)[0], expected)
    else:
        with pytest.raises(IntegrityError, match=r"deep\.png.*12 bits"):
            load_image(path, size=8)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_load_image_refuses_pixels_without_a_known_white(tmp_path, dtype):
    path = saved(Image.fromarray(np.full((8, 8), 1000, dtype)), tmp_path / "deep.tif")
    with pytest.raises(IntegrityError, match=r"deep\.tif"):
        load_image(path, size=8)


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 128])])
@pytest.mark.filterwarnings("error")
def test_load_image_keeps_the_colours_of_a_transparent_palette(tmp_path, transparency):
    image = Image.frombytes("P", (2, 2), bytes([0, 1, 2, 0]))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    path = saved(image, tmp_path / "palette.png", transparency=transparency)
    red, green, blue = load_image(path, size=2)[0].flatten(1).tolist()
    assert (red, green, blue) == ([10, 40, 70, 10], [20, 50, 80, 20], [30, 60, 90, 30])


@pytest.mark.parametrize(
    ("orientation", "turned"), [(1, lambda x: x), (3, lambda x: x.rot90(2, (2, 3))), (6, lambda x: x.rot90(-1, (2, 3)))]
)
def test_load_image_turns_as_exif_says(tmp_path, orientation, turned):
    image, exif = Image.fromarray(noise(8, 8)), Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(saved(image, tmp_path / "upright.png"), size=8)
    assert torch.equal(load_image(saved(image, tmp_path / "turned.png", exif=exif), size=8), turned(upright))
