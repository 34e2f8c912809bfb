import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from eeutils.data import data_from_folder, data_from_tensors, load_image, own
from eeutils.data.augmentation import Normalization
from eeutils.errors import IntegrityError

CLASSES = ("red", "blue")


def tensors(size: int = 100):
    images = torch.randint(0, 256, (size, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return images, torch.arange(size) % 2, CLASSES


def test_tensors_are_split_by_shares():
    data = data_from_tensors(*tensors(), val_share=0.1, test_share=0.2, name="mine")
    assert data.name == "mine"
    assert [len(split) for split in (data.train, data.val, data.test)] == [70, 10, 20]
    assert [split.labels.sum().item() for split in (data.train, data.val, data.test)] == [35, 5, 10]
    everything = torch.cat([split.images for split in (data.train, data.val, data.test)])
    assert len(everything.flatten(1).unique(dim=0)) == 100


def test_normalization_is_the_training_splits_and_shared():
    data = data_from_tensors(*tensors())
    assert data.train.normalization == data.val.normalization == data.test.normalization
    assert data.normalization == Normalization.of(data.train.images)


def test_the_normalization_is_asked_of_the_training_images_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(own.Normalization, "of", lambda images: asked.append(len(images)) or Normalization((0,), (1,)))
    images, labels, classes = tensors()
    data_from_tensors(images[:, :1], labels, classes)
    assert asked == [70]


def test_images_for_trained_weights_are_normalised_as_theirs_were():
    theirs = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    data = data_from_tensors(*tensors(), normalization=theirs)
    assert data.train.normalization == data.val.normalization == data.test.normalization == theirs
    plain = data_from_tensors(*tensors())
    assert torch.equal(data.test.images, plain.test.images)
    with pytest.raises(ValueError, match="3 channels, normalization is for 1"):
        data_from_tensors(*tensors(), normalization=Normalization((0.5,), (0.5,)))


def test_the_seed_decides_the_split():
    first, again, other = (data_from_tensors(*tensors(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.images, other.test.images)


@pytest.mark.parametrize("shares", [(0, 0.2), (0.1, 0), (0.5, 0.5), (0.9, 0.2), (-0.1, 0.2)])
def test_impossible_shares_are_an_error(shares):
    with pytest.raises(ValueError, match=f"val_share {shares[0]} and test_share {shares[1]}"):
        data_from_tensors(*tensors(), val_share=shares[0], test_share=shares[1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(100, 3, 8, 8) * 255, torch.arange(100) % 2, "uint8"),
        (torch.zeros(100, 8, 8, 3, dtype=torch.uint8), torch.arange(100) % 2, "permute"),
        (torch.zeros(100, 64, dtype=torch.uint8), torch.arange(100) % 2, r"\(N, C, H, W\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0).long(), "at least one image"),
        (torch.zeros(100, 3, 8, 8, dtype=torch.uint8), torch.arange(100) % 3, "2 classes"),
        (torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1]), "cannot hold out"),
    ],
)
def test_bad_tensors_are_an_error(images, labels, message):
    with pytest.raises(ValueError, match=message):
        data_from_tensors(images, labels, CLASSES)


def test_what_is_no_tensor_is_a_type_error():
    images, labels, classes = tensors()
    with pytest.raises(TypeError, match=r"images must be a torch\.Tensor, got ndarray"):
        data_from_tensors(images.numpy(), labels, classes)
    with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor, got list"):
        data_from_tensors(images, labels.tolist(), classes)


def test_classes_may_come_in_a_list():
    images, labels, classes = tensors()
    assert data_from_tensors(images, labels, list(classes)).classes == classes


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty images a class, of several sizes and modes; red ones and blue ones."""
    root = tmp_path / "colours"
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        (root / name).mkdir(parents=True)
        for number in range(20):
            image = Image.new("RGB", (20 + number, 40), colour)
            image.convert("RGBA" if number % 2 else "RGB").save(root / name / f"{number}.png")
    return root


def test_a_folder_of_images_by_class(folder):
    data = data_from_folder(folder, size=16, val_share=0.2)
    assert data.name == "colours"
    assert data.classes == ("blue", "red")
    assert [len(split) for split in (data.train, data.val, data.test)] == [24, 8, 8]
    for split in (data.train, data.val, data.test):
        assert split.images.shape[1:] == (3, 16, 16)
        red, blue = split.images[split.labels == 1], split.images[split.labels == 0]
        assert red[:, 0].min() == blue[:, 2].min() == 250
        assert red[:, 2].max() == blue[:, 0].max() == 0


def test_grey_images_become_rgb(folder):
    for path in folder.rglob("*.png"):
        Image.new("L", (20, 20), 77).save(path)
    images = data_from_folder(folder, size=8).train.images
    assert images.shape[1] == 3
    assert images.unique().tolist() == [77]


def test_a_folder_for_trained_weights_is_normalised_as_theirs(folder):
    theirs = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert data_from_folder(folder, size=8, normalization=theirs).normalization == theirs


def test_a_bar_counts_the_images_read(folder, monkeypatch):
    bars = []

    def shown(description: str, size: int, unit: str) -> tqdm:
        bars.append(tqdm(desc=description, total=size, unit=unit, file=io.StringIO()))
        return bars[0]

    monkeypatch.setattr(own, "progress_bar", shown)
    data_from_folder(folder, size=8)
    assert (bars[0].n, bars[0].total, bars[0].unit) == (40, 40, "img")


def test_a_name_of_ones_own(folder):
    assert data_from_folder(folder, size=8, name="mine").name == "mine"


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_a_file_that_is_no_image_is_named(folder, damage):
    bad = folder / "red" / "7.png"
    Image.effect_noise((200, 200), 50).save(bad)
    bad.write_bytes(b"no image" if damage == "text" else bad.read_bytes()[:5_000])
    with pytest.raises(IntegrityError, match=r"red.7\.png is not a readable image"):
        data_from_folder(folder, size=8)


def test_a_missing_folder_and_an_empty_class_are_errors(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data_from_folder(tmp_path / "nowhere", size=8)
    (folder / "green").mkdir()
    with pytest.raises(FileNotFoundError, match="green"):
        data_from_folder(folder, size=8)


def test_classes_come_in_the_order_that_is_asked_for(folder):
    data = data_from_folder(folder, size=8, classes=("red", "blue"))
    assert data.classes == ("red", "blue")
    assert data.train.images[data.train.labels == 0][:, 0].min() == 250


def test_a_class_folder_that_is_missing_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no folder for the classes \['green'\]; it has \['blue', 'red'\]"):
        data_from_folder(folder, size=8, classes=("red", "green", "blue"))


def test_a_folder_of_another_class_is_named(folder):
    (folder / "green").mkdir()
    with pytest.raises(ValueError, match=r"folders \['green'\] that are none of the classes \['red', 'blue'\]"):
        data_from_folder(folder, size=8, classes=("red", "blue"))


def test_images_have_a_size(folder):
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        data_from_folder(folder, size=0)


@pytest.mark.parametrize("read", [data_from_folder, load_image])
def test_nobody_shrinks_images_unasked(folder, read):
    with pytest.raises(TypeError, match="required keyword-only argument: 'size'"):
        read(folder)


def noise(height: int, width: int, top: int, dtype: type) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, (height, width), dtype=dtype, endpoint=True)


def test_one_image_is_read_as_a_folder_of_them_is(tmp_path):
    for number in range(20):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(noise(30, 50 + number, 255, np.uint8)).save(tmp_path / name / f"{number:02}.png")
    data = data_from_folder(tmp_path, size=16)
    of_folder = torch.cat([split.images for split in (data.train, data.val, data.test)])
    one_by_one = torch.cat([load_image(path, size=16) for path in tmp_path.rglob("*.png")])
    assert one_by_one.shape == (40, 3, 16, 16)
    assert one_by_one.dtype == torch.uint8
    assert torch.equal(one_by_one.flatten(1).unique(dim=0), of_folder.flatten(1).unique(dim=0))


def test_an_image_keeps_its_middle_square_and_can_be_asked_about(folder):
    image = Image.new("RGB", (60, 20), (0, 0, 250))
    image.paste((250, 0, 0), (20, 0, 40, 20))
    image.save(folder / "red" / "wide.png")
    square = load_image(folder / "red" / "wide.png", size=20)
    assert square[0, :, 5, 5].tolist() == [250, 0, 0]
    assert square[:, 2].max() == 0
    assert data_from_folder(folder, size=20).normalization(square).shape == (1, 3, 20, 20)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orders", ["<u2", ">u2"])
def test_16_bits_become_8(tmp_path, suffix, orders):
    path, pixels = tmp_path / f"grey.{suffix}", noise(8, 8, 65535, np.uint16)
    mode = "I;16" if orders == "<u2" else "I;16B"
    Image.frombytes(mode, (8, 8), pixels.astype(orders).tobytes()).save(path)
    expected = torch.from_numpy((pixels / 257).round().astype(np.uint8))
    assert torch.equal(load_image(path, size=8), expected.expand(1, 3, 8, 8))


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 128])])
@pytest.mark.filterwarnings("error")
def test_of_a_palette_with_transparency_the_colours_are_kept(tmp_path, transparency):
    image = Image.frombytes("P", (2, 2), bytes([0, 1, 2, 0]))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "palette.png", transparency=transparency)
    red, green, blue = load_image(tmp_path / "palette.png", size=2)[0].flatten(1).tolist()
    assert (red, green, blue) == ([10, 40, 70, 10], [20, 50, 80, 20], [30, 60, 90, 30])


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_pixels_without_a_known_white_are_refused(folder, mode, dtype):
    path = folder / "red" / "3.tif"
    Image.fromarray(np.full((8, 8), 1000, dtype)).save(path)
    with pytest.raises(ValueError, match=rf"red.3\.tif has pixels of more than 16 bits .*mode {mode}.*8 or 16 bits"):
        data_from_folder(folder, size=8)


@pytest.mark.parametrize(
    ("orientation", "turned"), [(1, lambda x: x), (3, lambda x: x.rot90(2, (2, 3))), (6, lambda x: x.rot90(-1, (2, 3)))]
)
def test_images_are_turned_as_their_exif_says(tmp_path, orientation, turned):
    image, exif = Image.fromarray(noise(8, 8, 255, np.uint8)), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(load_image(tmp_path / "turned.png", size=8), turned(load_image(tmp_path / "plain.png", size=8)))


def test_one_image_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_image(tmp_path / "nowhere.png", size=8)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(IntegrityError, match=r"text\.png is not a readable image"):
        load_image(tmp_path / "text.png", size=8)
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        load_image(tmp_path / "text.png", size=0)
