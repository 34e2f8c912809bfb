"""Small CIFAR-10, and archives in the official formats."""

import io
import tarfile
from collections.abc import Mapping

import pytest
import torch

from eeutils.data.cache import RawData

NOBODY = "http://127.0.0.1:9/"  # the discard port, where nobody listens


@pytest.fixture
def small_raw() -> RawData:
    """CIFAR-10's four tensors with 200 training images, in five files' worth, and 20 to test."""
    generator = torch.Generator().manual_seed(0)
    return {
        "train_images": torch.randint(0, 256, (200, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "train_labels": torch.arange(200, dtype=torch.uint8) % 10,
        "test_images": torch.randint(0, 256, (20, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "test_labels": torch.arange(20, dtype=torch.uint8) % 10,
    }


@pytest.fixture
def offline(tmp_path, monkeypatch) -> None:
    """No local data, an empty cache, and no network but localhost."""
    monkeypatch.setenv("EEUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EEUTILS_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("npm_config_registry", NOBODY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("eeutils.download.BACKOFF_S", 0.0)


@pytest.fixture
def tar_gz():
    """Function that packs contents by name."""

    def pack(files: Mapping[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    return pack


@pytest.fixture
def left_behind(tmp_path):
    """Function that lists what is in the cache folder besides locks."""
    return lambda: sorted(path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock"))
