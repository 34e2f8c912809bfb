"""Exits behind named layers of a network of torchvision, of timm or of your own."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel

from eeutils.errors import require
from eeutils.fields import check_choice, check_type
from eeutils.models.exits import create_exit, pool_of_each_exit
from eeutils.models.graphs import LayerGraph
from eeutils.models.layers import initialise
from eeutils.models.memory import device_and_dtype
from eeutils.models.multiexit import Features, MultiExitNet, Origin, uncompiled
from eeutils.models.registry import create_model


def with_exits(
    network: nn.Module,
    after: Sequence[str],
    *,
    image_size: int = 224,
    pool: str = "avg",
    in_channels: int = 3,
    layout: str | None = None,
    name: str | None = None,
) -> MultiExitNet:
    """Return a copy of `network`, weights included, with fresh exits behind the layers `after`.

        net = with_exits(torchvision.models.resnet50(weights="DEFAULT"), after=["layer2", "layer3"])

    The network is cut into one unit per exit, so a cascade stops computing behind each. What later layers read across
    a cut, such as a shortcut, is handed on in a tuple. The last exit is the network's own classifier and answers as
    `network` does; auxiliary classifiers, which answer in training only, are left out.

    Args:
        network: from images to logits, traceable by `torch.fx` down to the named layers.
        after: their names in any order, as `network.named_modules()`, torchvision's `get_graph_node_names(network)` or
            timm's `network.feature_info.module_name()` give them.
        image_size, in_channels: pixels a side and channels of the images it is to see.
        pool: the heads of the early exits, see `create_model`.
        layout: of the named layers' features, one of `LAYOUTS`; by default it is recognised.
        name: of the network's builder in torchvision or timm, for `net.origin`; by default it is recognised.

    Raises:
        ValueError: if a layer does not give one tensor, images first, of a known layout, or the network cannot be
            traced or read such images.
    """
    network = uncompiled(network)
    check_type("network", network, nn.Module, "it maps images to logits")
    if isinstance(network, MultiExitNet | nn.DataParallel | AveragedModel):
        raise TypeError(f"network must be one without exits or wrapper, got {type(network).__name__}; see its .module")
    usable = not isinstance(after, str) and 0 < len(after) == len(set(after))
    require(usable, f"after must be a list of different names of layers, got {after!r}")
    check_choice("layout", layout, (None, *LAYOUTS))
    pools = pool_of_each_exit(pool, len(after))
    graph = LayerGraph(deepcopy(network), after, (in_channels, image_size, image_size))
    places = _places(graph, after)
    cuts = [_cut(graph, node, name) for node, name in places.items()]
    tail = graph.last_map(next(reversed(places)))
    units = [graph.module(*ends) for ends in zip([[graph.images], *cuts], [*cuts, [tail]], strict=True)]
    heads = [_head(graph, cut, each, layout, places[cut[0]]) for cut, each in zip(cuts, pools, strict=True)]
    classifier = nn.Identity() if tail is graph.answer else graph.module([tail], [graph.answer])
    if isinstance(classifier, fx.GraphModule):  # grad_cam asks
        shape = tuple(graph.value(tail).shape)
        classifier.meta["layout"] = recognise_layout(graph.network, shape, lambda: graph.grown(tail))
    heads = [head.to(*device_and_dtype(network)) for head in heads]
    net = MultiExitNet(units, dict(enumerate([*heads, classifier])))
    exits = {"after": list(places.values()), "image_size": image_size, "pool": pool, "in_channels": in_channels}
    net.origin = origin_of(network, graph.num_classes, name, exits | {"layout": layout})
    return net.train(network.training)


def rebuild(origin: Origin) -> MultiExitNet:
    """Build the network of `origin` again, with fresh weights."""
    if origin.library == "eeutils":
        return create_model(origin.name, **origin.arguments)
    return with_exits(library_network(origin), **origin.exits, name=origin.name)


def _places(graph: LayerGraph, after: Sequence[str]) -> dict[fx.Node, str]:
    """Return the steps that `after` names, shallowest first."""
    places: dict[fx.Node, str] = {}
    for name in after:
        node = _step(graph, name)
        other = places.get(node)
        require(other is None, f"after must be a list of different layers, got {other!r} and {name!r} for one")
        require(node is not graph.answer, f"after must name layers before the network's own classifier, got {name!r}")
        places[node] = name
    return {node: places[node] for node in sorted(places, key=graph.position.__getitem__)}


def _step(graph: LayerGraph, name: str) -> fx.Node:
    found = graph.outputs.get(name)
    if name not in graph.outputs:  # a list of modules is not called, but its modules are
        inside = [output for path, output in graph.outputs.items() if path.startswith(f"{name}.")]
        found = inside[-1] if inside else None
    if found is None:
        names = {*graph.outputs, *dict(graph.network.named_modules())} - {""}
        nearest = get_close_matches(name, sorted(names), n=5, cutoff=0.4)
        raise ValueError(f"after must name layers that the network runs, got {name!r}; nearest are {nearest}")
    gives_one = isinstance(found, fx.Node) and isinstance(graph.value(found), Tensor)
    require(gives_one, f"after must name layers that give one tensor, got {name!r}; of several, name one: '{name}[0]'")
    return found


def _cut(graph: LayerGraph, node: fx.Node, name: str) -> list[fx.Node]:
    """Return what is handed on behind a named layer."""
    cut = graph.crossing(node)
    others = [each.name for each in cut if not graph.images_first(each)]
    must = "name layers behind which all is handed on with the images first"
    require(not others, f"after must {must}, got {name!r}: {others} are not")
    return cut


def _head(graph: LayerGraph, cut: list[fx.Node], pool: str, layout: str | None, name: str) -> nn.Module:
    features = graph.value(cut[0])
    shape = tuple(features.shape)
    found = layout or recognise_layout(graph.network, shape, lambda: graph.grown(cut[0]))
    tokens = prefix_tokens(graph.network, shape[1]) if found == "NLC" else 0
    fits = found is not None and tokens is not None and len(found) == len(shape)
    got = f"{layout!r} for features of shape {shape[1:]}; choose from {LAYOUTS}"
    require(fits, f"layout must be given for the layer {name!r}, got {got}")
    reader = MapReader(found, tokens, copied=graph.is_overwritten(cut[0]))
    _, channels, height, width = reader(features).shape
    head = initialise(create_exit(pool, channels, graph.num_classes, min(height, width)))
    return nn.Sequential(reader, head) if len(cut) > 1 or found != "NCHW" or reader.copied else head


LAYOUTS = ("NCHW", "NHWC", "NLC", "NC")
_USUAL_PREFIXES = (0, 1, 2)  # no class token, one, and one more of distillation


class MapReader(nn.Module):
    """Bring what a unit hands on into the shape (N, C, H, W) that heads read.

    `layout` is one of `LAYOUTS`: channels first or last, tokens, or no places at all. Heads do not read class and
    register tokens (`prefix_tokens`). They read a copy if the next unit works in place.

    Shapes: a tensor, or a tuple that starts with it -> (N, C, H, W).
    """

    def __init__(self, layout: str, prefix_tokens: int = 0, copied: bool = False) -> None:
        super().__init__()
        self.layout, self.prefix_tokens, self.copied = layout, prefix_tokens, copied

    def forward(self, features: Features) -> Tensor:
        x = features if isinstance(features, Tensor) else features[0]
        if self.copied:
            x = x.clone()
        if self.layout == "NHWC":
            return x.permute(0, 3, 1, 2)
        if self.layout == "NLC":
            x = x[:, self.prefix_tokens :]
            return x.transpose(1, 2).unflatten(2, (math.isqrt(x.shape[1]), -1))
        return x[:, :, None, None] if self.layout == "NC" else x

    def extra_repr(self) -> str:
        return f"{self.layout}, prefix_tokens={self.prefix_tokens}"


def recognise_layout(
    network: nn.Module, shape: tuple[int, ...], grown: Callable[[], tuple[int, ...] | None]
) -> str | None:
    """Return the layout of features of `shape`, one of `LAYOUTS`; None if it is not certain.

    Square images make square maps, which tells channels from places. Where both are as many, larger images do (`grown`
    asks for their shape, None if the network reads none), or the widths that the network normalises.
    """
    if len(shape) == 2:
        return "NC"
    if len(shape) == 3:
        return "NLC" if _are_tokens(network, *shape[1:]) else None
    square = {"NCHW": shape[2:], "NHWC": shape[1:3]} if len(shape) == 4 else {}
    fitting = [layout for layout, places in square.items() if len(set(places)) == 1]
    if len(fitting) == 2 and (larger := grown()) is not None:
        fitting = [layout for layout in fitting if larger[layout.index("C")] == shape[layout.index("C")]]
    return fitting[0] if len(fitting) == 1 else None


def prefix_tokens(network: nn.Module, length: int) -> int | None:
    """Return the number of tokens before those of a square image; None if `length` does not tell."""
    counts = (getattr(network, "num_prefix_tokens", 0), *_USUAL_PREFIXES)
    return next((count for count in counts if math.isqrt(max(0, length - count)) ** 2 == length - count > 0), None)


def _are_tokens(network: nn.Module, length: int, channels: int) -> bool:
    if prefix_tokens(network, length) is None:
        return False
    if prefix_tokens(network, channels) is None:
        return True
    widths = {layer.normalized_shape[-1] for layer in network.modules() if hasattr(layer, "normalized_shape")}
    widths = widths or {layer.in_features for layer in network.modules() if isinstance(layer, nn.Linear)}
    return channels in widths and length not in widths


_ARGUMENTS = {"num_classes", "image_size", "transform_input", "init_weights", "img_size", "in_chans"}
_IMAGENET_CLASSES = 1000


def origin_of(network: nn.Module, num_classes: int, name: str | None, exits: dict[str, Any]) -> Origin | None:
    """Return the recipe of a network of torchvision or timm; None if another library made it, or no builder fits."""
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
    unknown = sorted(origin.arguments.keys() - _ARGUMENTS)
    require(not unknown, f"arguments of {origin.name} must be among {sorted(_ARGUMENTS)}, got {unknown}")
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
