import pytest
import torch
from sklearn.datasets import load_digits

from eeutils import list_data, load_data
from eeutils.data.cifar import CIFAR100
from eeutils.data.datasets import find_dataset
from eeutils.data.tinyimagenet import TINY_IMAGENET


def test_load_data_lists_the_choices():
    with pytest.raises(ValueError, match="'cifar11'") as caught:
        load_data("cifar11")
    assert list_data()
    assert all(f"'{name}'" in str(caught.value) for name in list_data())


def test_find_dataset_agrees_with_the_data(cifar10):
    for data in (cifar10, load_data("digits")):
        found = find_dataset(data.name)
        assert (found.num_classes, found.image_shape) == (len(data.classes), data.image_shape)
    for name, archive in {"cifar100": CIFAR100, "tinyimagenet": TINY_IMAGENET}.items():
        assert find_dataset(name).image_shape == archive.content["test_images"].shape[1:]
    assert find_dataset("cifar100").num_classes == 100
    assert find_dataset("tinyimagenet").num_classes == TINY_IMAGENET.num_classes


def test_load_data_digits_are_scikit_learns_and_need_no_cache(empty_cache, no_network):
    data, source = load_data("digits"), load_digits()
    splits = (data.train, data.val, data.test)
    assert (data.name, data.classes, data.image_shape) == ("digits", tuple("0123456789"), (3, 32, 32))
    assert list(map(len, splits)) == [1_258, 180, 359]
    assert not empty_cache.exists()
    counts = sum(split.labels.bincount(minlength=10) for split in splits)
    assert counts.tolist() == torch.from_numpy(source.target).bincount().tolist()
    ours = torch.cat([split.images.float().mean((1, 2, 3)) for split in splits]).sort().values
    theirs = (torch.from_numpy(source.images).mean((1, 2)) * 255 / 16).float().sort().values
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)  # enlarging keeps an image's mean, but for rounding
