"""The arguments of a network's builder that follow from the data."""

from eeutils.models.registry import takes_argument

_USUAL_SIZE = 32  # what builders take images to be


def fitting_arguments(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """What `create_model(name, ...)` has to be told of the data.

    Args:
        name: of a network.
        num_classes: of the data.
        image_shape: channels, height and width of its images.

    Returns:
        `num_classes`, `in_channels`; and `image_size`, the shorter side, if that is not 32 pixels and the builder asks.
        Builders that do not ask make networks that read any size; one that asks may refuse this size when it is told.

    Raises:
        ValueError: if there is no such network.
    """
    channels, height, width = image_shape
    arguments = {"num_classes": num_classes, "in_channels": channels}
    size = min(height, width)
    if takes_argument(name, "image_size") and size != _USUAL_SIZE:
        arguments["image_size"] = size
    return arguments
