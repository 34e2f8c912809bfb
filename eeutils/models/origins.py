"""Networks of torchvision and timm: how one was built, and the same one with fresh weights."""

from importlib.metadata import version
from typing import Any

from torch import nn

from eeutils.models.multiexit import Origin

_ARGUMENTS = {"num_classes", "image_size", "transform_input", "init_weights", "img_size", "in_chans"}
_IMAGENET_CLASSES = 1000


def origin_of(network: nn.Module, num_classes: int, name: str | None, exits: dict[str, Any]) -> Origin | None:
    """Return the recipe of a network of torchvision or timm; None if another library made it, or no builder fits.

    Args:
        network: images -> logits.
        num_classes: of its logits.
        name: of its builder; by default it is recognised.
        exits: arguments of `with_exits`.
    """
    library, arguments = type(network).__module__.partition(".")[0], {"num_classes": num_classes}
    if library == "torchvision":
        name = name or _builder_in_torchvision(network, num_classes)
        arguments |= {key: getattr(network, key) for key in ("image_size", "transform_input") if hasattr(network, key)}
        if "transform_input" in arguments:
            arguments["init_weights"] = False  # takes a minute
    elif library == "timm" and hasattr(network, "default_cfg"):  # of its create_model
        usual = network.default_cfg["input_size"]
        name = name or network.default_cfg.get("architecture")
        size = getattr(getattr(network, "patch_embed", None), "img_size", None)
        if size is not None and tuple(size) != tuple(usual[1:]):
            arguments["img_size"] = list(size)
        if exits["in_channels"] != usual[0]:
            arguments["in_chans"] = exits["in_channels"]
    else:
        name = None
    return Origin(library, name, arguments, exits, version(library)) if name else None


def library_network(origin: Origin) -> nn.Module:
    """Build the network of `origin` without exits, its weights fresh."""
    if unknown := origin.arguments.keys() - _ARGUMENTS:
        raise ValueError(f"arguments of {origin.name} must be among {sorted(_ARGUMENTS)}, got {sorted(unknown)}")
    if origin.library == "torchvision":
        import torchvision

        return torchvision.models.get_model(origin.name, weights=None, **origin.arguments)
    if origin.library == "timm":
        import timm

        if timm.is_model(origin.name):  # create_model would fetch others
            return timm.create_model(origin.name, **origin.arguments)
    raise ValueError(f"network must be one of torchvision or timm, got {origin.name!r} of {origin.library!r}")


def _builder_in_torchvision(network: nn.Module, num_classes: int) -> str | None:
    """Return the builder of such modules with as many parameters, had `network` the classes of ImageNet."""
    from torchvision.models import get_model_builder, get_model_weights, list_models

    parameters = list(network.parameters())
    of_a_class = sum(each[0].numel() for each in parameters[-2:] if len(each) == num_classes)
    count = sum(each.numel() for each in parameters) + of_a_class * (_IMAGENET_CLASSES - num_classes)
    for name in list_models():
        same_file = get_model_builder(name).__module__ == type(network).__module__
        if same_file and count in (weights.meta.get("num_params") for weights in get_model_weights(name)):
            return name
    return None
