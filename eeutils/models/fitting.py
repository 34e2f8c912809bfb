"""The arguments of a network's builder that follow from the data."""

import torch

from eeutils.models.registry import create_model

_USUAL_SIZE = 32  # what builders take images to be


def fitting_arguments(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """What `create_model(name, ...)` has to be told of the data.

    Args:
        name: of a network.
        num_classes: of the data.
        image_shape: channels, height and width of its images.

    Returns:
        `num_classes`, `in_channels`; and `image_size`, the shorter side, if that is not 32 pixels and the builder asks.
        Builders that do not ask make networks that read any size.

    Raises:
        ValueError: if there is no such network, or it is not made for images of this size.
    """
    channels, height, width = image_shape
    arguments = {"num_classes": num_classes, "in_channels": channels}
    size = min(height, width)
    return arguments if size == _USUAL_SIZE or not _asks_for_size(name, size) else {**arguments, "image_size": size}


def _asks_for_size(name: str, size: int) -> bool:
    try:
        with torch.device("meta"):  # no weights are made; a signature would not tell, some builders pass on **kwargs
            create_model(name, image_size=size)
    except TypeError as error:
        if "image_size" not in str(error):
            raise
        return False
    return True
