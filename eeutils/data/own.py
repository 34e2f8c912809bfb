"""One's own images as a data set."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from eeutils.data.augmentation import Normalization
from eeutils.data.splits import ImageData, Split, stratified_holdout


def data_from_tensors(
    images: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    *,
    name: str = "own",
    val_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 0,
) -> ImageData:
    """Images and labels as a data set, split at random with every class in proportion.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, indices into `classes`.
        classes: the classes' names.
        name: what to call the data set.
        val_share: the part of N to choose by.
        test_share: the part of N to report on.
        seed: of the split.

    Raises:
        ValueError: if shapes, dtypes or labels do not fit, or a share leaves a split without some class.
    """
    if not (0 < val_share < 1 and 0 < test_share < 1 and val_share + test_share < 1):
        raise ValueError(f"val_share {val_share} and test_share {test_share} must be positive and sum to less than 1")
    identity = Normalization((0.0,) * images.shape[1], (1.0,) * images.shape[1]) if images.ndim == 4 else None
    everything = Split(images, labels, tuple(classes), identity)
    rest, test = stratified_holdout(everything, round(test_share * len(images)), seed)
    train, val = stratified_holdout(rest, round(val_share * len(images)), seed)
    normalization = Normalization.of(train.images)  # of what is trained on, and of nothing else
    return ImageData(name, *(replace(split, normalization=normalization) for split in (train, val, test)))


def data_from_folder(root: str | Path, size: int = 32, **kwargs) -> ImageData:
    """`data_from_tensors` of a folder with one folder of images a class, resized and cropped to `size` x `size`."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    to_square = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    folder = ImageFolder(root, transform=to_square)
    images = torch.stack([image for image, _ in folder])
    labels = torch.tensor(folder.targets)
    return data_from_tensors(images, labels, tuple(folder.classes), **{"name": Path(root).name, **kwargs})
