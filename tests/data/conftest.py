"""CIFAR-10 in small, and a look at what is left on the disk."""

from collections.abc import Iterator

import pytest
import torch

from eeutils.data.cache import RawData


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
def empty_temp(tmp_path, monkeypatch) -> Iterator[None]:
    """Temporary files go to a folder of the test's own, and none may be left at its end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []
