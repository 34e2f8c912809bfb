import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.datasets import FakeData
from torchvision.transforms.functional import pil_to_tensor

from eeutils import data_from_folder, data_from_hf, data_from_tensors, data_from_torchvision, load_image
from eeutils.data import Normalization
from eeutils.errors import IntegrityError
from tests.toys import random_split

CLASSES = ("red", "blue")
THEIRS = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def tensors() -> tuple:
    split = random_split(100, num_classes=2)
    return split.images, split.labels, CLASSES


def test_data_from_tensors_splits_by_shares():
    data = data_from_tensors(*tensors(), val_share=0.1, test_share=0.2, name="mine")
    assert data.name == "mine"
    assert [len(split) for split in (data.train, data.val, data.test)] == [70, 10, 20]
    assert [split.labels.sum().item() for split in (data.train, data.val, data.test)] == [35, 5, 10]
    everything = torch.cat([split.images for split in (data.train, data.val, data.test)])
    assert len(everything.flatten(1).unique(dim=0)) == 100


def test_data_from_tensors_normalizes_by_the_training_images_or_as_told():
    data = data_from_tensors(*tensors())
    assert data.train.normalization == data.val.normalization == data.test.normalization
    assert data.normalization == Normalization.of(data.train.images)
    theirs = data_from_tensors(*tensors(), normalization=THEIRS)
    assert theirs.normalization == THEIRS
    assert torch.equal(theirs.test.images, data.test.images)


@pytest.mark.parametrize("shares", [(0, 0.2), (0.5, 0.5), (-0.1, 0.2)])
def test_data_from_tensors_refuses_impossible_shares(shares):
    with pytest.raises(ValueError, match=f"{shares[0]} and {shares[1]}"):
        data_from_tensors(*tensors(), val_share=shares[0], test_share=shares[1])


@pytest.mark.parametrize(
    ("labels", "classes", "named"),
    [([0, 0, 1], CLASSES, "'blue' has 1"), ([0, 1, 2], CLASSES, r"0\.\.1, got 2"), ([0, 0, 0], ("a",), "'a'")],
)
def test_data_from_tensors_refuses_labels_that_cannot_be_split(labels, classes, named):
    with pytest.raises(ValueError, match=named):
        data_from_tensors(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor(labels), classes)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty red and twenty blue images, of several sizes and modes."""
    root = tmp_path / "colours"
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        (root / name).mkdir(parents=True)
        for number in range(20):
            image = Image.new("RGB", (20 + number, 40), colour)
            image.convert("RGBA" if number % 2 else "RGB").save(root / name / f"{number:02}.png")
    return root


def assert_right(data, *sizes: int, classes=("blue", "red")) -> None:
    """Splits of these sizes, in which red images are red and blue ones blue."""
    splits = (data.train, data.val, data.test)
    assert data.classes == classes
    assert tuple(map(len, splits)) == sizes
    for split in splits:
        red, blue = (split.images[split.labels == classes.index(name)] for name in ("red", "blue"))
        assert red[:, 0].min() == blue[:, 2].min() == 250
        assert red[:, 2].max() == blue[:, 0].max() == 0


def test_data_from_folder_reads_a_folder_per_class(folder):
    data = data_from_folder(folder, size=16, val_share=0.2)
    assert (data.name, data.image_shape) == ("colours", (3, 16, 16))
    assert_right(data, 24, 8, 8)
    assert_right(data_from_folder(folder, size=8, classes=CLASSES), 28, 4, 8, classes=CLASSES)


def test_data_from_folder_reads_as_load_image_does(folder):
    for path in folder.rglob("*.png"):
        Image.effect_noise((30, 50), 60).save(path)
    data = data_from_folder(folder, size=16)
    of_folder = torch.cat([split.images for split in (data.train, data.val, data.test)])
    one_by_one = torch.cat([load_image(path, size=16) for path in folder.rglob("*.png")])
    assert torch.equal(one_by_one.flatten(1).unique(dim=0), of_folder.flatten(1).unique(dim=0))


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [(["train", "test"], (36, 4, 20)), (["train", "valid", "test"], (40, 40, 20)), (["train", "val"], (32, 20, 8))],
)
def test_data_from_folder_keeps_given_splits(folder, tmp_path, parts, sizes):
    root = tmp_path / "splits"
    for part in parts:
        shutil.copytree(folder, root / part)
    for path in (root / parts[-1]).rglob("0*.png"):
        path.unlink()
    assert_right(data_from_folder(root, size=8), *sizes)


def test_data_from_folder_counts_what_it_skips(folder):
    for name in ("a.heic", "b.HEIC", "c.txt", "noname"):
        (folder / "red" / name).write_bytes(b"?")
    Image.new("RGB", (8, 8), (250, 0, 0)).save(folder / "red" / "extra.gif")
    with pytest.warns(UserWarning, match=r"2 \.heic, 1 ") as caught:
        data = data_from_folder(folder, size=8)
    assert len(caught) == 1
    assert len(data.train) + len(data.val) + len(data.test) == 41


def test_data_from_folder_ignores_hidden_files_and_folders(folder):
    for name in (".ipynb_checkpoints", "__MACOSX", "red/.ipynb_checkpoints"):
        shutil.copytree(folder / "blue", folder / name)
    (folder / "red" / ".DS_Store").write_bytes(b"?")
    (folder / "red" / "._00.png").write_bytes(b"?")
    assert_right(data_from_folder(folder, size=8), 28, 4, 8)


@pytest.mark.parametrize(
    ("change", "classes", "named"),
    [
        (lambda root: shutil.rmtree(root / "red"), None, "'blue': 20"),
        (lambda root: shutil.rmtree(root / "red"), ("blue", "red"), "'red'.*'blue': 20"),
        (lambda root: shutil.copytree(root / "red", root / "green"), ("blue", "red"), "'green': 20"),
    ],
)
def test_data_from_folder_names_missing_and_unknown_classes(folder, change, classes, named):
    change(folder)
    with pytest.raises(ValueError, match=named):
        data_from_folder(folder, size=8, classes=classes)


def test_data_from_torchvision_reads_pil_images():
    train = FakeData(40, (3, 12, 12), num_classes=2, random_offset=0)
    test = FakeData(10, (3, 12, 12), num_classes=2, random_offset=100)
    data = data_from_torchvision(train, test, classes=CLASSES)
    assert (data.name, data.classes, len(data.train), len(data.val)) == ("FakeData", CLASSES, 36, 4)
    assert torch.equal(data.test.images, torch.stack([pil_to_tensor(test[index][0]) for index in range(10)]))
    assert data.test.labels.tolist() == [int(test[index][1]) for index in range(10)]
    assert data_from_torchvision(train, classes=CLASSES, size=8).image_shape == (3, 8, 8)


def test_data_from_torchvision_needs_a_size_for_images_of_several():
    class Mixed(FakeData):
        classes = CLASSES

        def __getitem__(self, index: int):
            return Image.new("L", (8 + index % 3, 8), index), index % 2

    with pytest.raises(ValueError, match="9"):
        data_from_torchvision(Mixed(40))
    assert data_from_torchvision(Mixed(40), size=8).image_shape == (3, 8, 8)


@pytest.fixture
def hf(folder):
    """The folder as a `datasets.Dataset`."""
    datasets = pytest.importorskip("datasets")
    features = {"photo": datasets.Image(), "id": datasets.Value("int64"), "kind": datasets.ClassLabel(names=CLASSES)}
    paths = sorted(folder.rglob("*.png"))
    columns = {"photo": list(map(str, paths)), "id": list(range(40)), "kind": [path.parent.name for path in paths]}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def test_data_from_hf_reads_one_data_set_or_its_splits(hf):
    assert_right(data_from_hf(hf, size=8), 28, 4, 8, classes=CLASSES)
    parts = hf.train_test_split(0.25, stratify_by_column="kind", seed=0)
    parts["unsupervised"] = parts["test"]
    assert_right(data_from_hf(parts, size=8), 27, 3, 10, classes=CLASSES)


def test_data_from_hf_refuses_other_formats(hf, tmp_path, folder):
    next(folder.rglob("*.png")).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with pytest.raises(IntegrityError, match="png"):
        data_from_hf(hf, size=8)
