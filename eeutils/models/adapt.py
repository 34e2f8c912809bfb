"""Exits behind named layers of a network of torchvision, of timm or of your own."""

from collections.abc import Sequence
from copy import deepcopy
from difflib import get_close_matches

from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel

from eeutils.models.exits import create_exit, pool_of_each_exit
from eeutils.models.graphs import LayerGraph
from eeutils.models.layers import initialise
from eeutils.models.layouts import LAYOUTS, MapReader, prefix_tokens, recognise_layout
from eeutils.models.memory import device_and_dtype
from eeutils.models.multiexit import MultiExitNet, Origin, uncompiled
from eeutils.models.origins import library_network, origin_of
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
        image_size: pixels a side of the images it is to see.
        pool: how the early exits pool their feature maps, one of `list_pools()`, or one for each of them joined by "+",
            the shallowest first.
        in_channels: of an image.
        layout: of the named layers' features, one of `LAYOUTS`; by default it is recognised.
        name: of the network's builder in torchvision or timm, for `net.origin`; by default it is recognised.

    Raises:
        ValueError: if a layer is unknown, named twice, or does not give one tensor, images first, of a known layout; if
            `pool` is unknown; if the network cannot be traced, or cannot read such images.
    """
    network = uncompiled(network)
    if not isinstance(network, nn.Module) or isinstance(network, MultiExitNet):
        raise TypeError(f"network must be a torch.nn.Module without exits, got {type(network).__name__}")
    if isinstance(network, nn.DataParallel | AveragedModel):
        raise TypeError(f"network must be the one inside {type(network).__name__}; pass network.module")
    if isinstance(after, str) or len(set(after)) != len(after) or not after:
        raise ValueError(f"after must be a list of different names of layers, got {after!r}")
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    pools = pool_of_each_exit(pool, len(after))
    graph = LayerGraph(deepcopy(network), after, (in_channels, image_size, image_size))
    places = _places(graph, after)
    cuts = [_checked(graph, graph.crossing(node), places[node]) for node in places]
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
        if node in places:
            raise ValueError(f"after must be a list of different layers, got {places[node]!r} and {name!r} for one")
        if node is graph.answer:
            raise ValueError(f"after must name layers before the network's own classifier, got {name!r}")
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
    if not isinstance(found, fx.Node) or not isinstance(graph.value(found), Tensor):
        raise ValueError(
            f"after must name layers that give one tensor, got {name!r}; of several, name one: '{name}[0]'"
        )
    return found


def _checked(graph: LayerGraph, cut: list[fx.Node], name: str) -> list[fx.Node]:
    for node in cut:
        if not graph.images_first(node):
            raise ValueError(
                f"after must name layers behind which all is handed on with the images first, got {name!r}: "
                f"{node.name} is not"
            )
    return cut


def _head(graph: LayerGraph, cut: list[fx.Node], pool: str, layout: str | None, name: str) -> nn.Module:
    features = graph.value(cut[0])
    shape = tuple(features.shape)
    found = layout or recognise_layout(graph.network, shape, lambda: graph.grown(cut[0]))
    tokens = prefix_tokens(graph.network, shape[1]) if found == "NLC" else 0
    if found is None or tokens is None or len(found) != len(shape):
        raise ValueError(
            f"layout must be given for the layer {name!r}, got {layout!r} for features of shape {shape[1:]}; choose "
            f"from {LAYOUTS}"
        )
    reader = MapReader(found, tokens, copied=graph.is_overwritten(cut[0]))
    _, channels, height, width = reader(features).shape
    head = initialise(create_exit(pool, channels, graph.num_classes, min(height, width)))
    return nn.Sequential(reader, head) if len(cut) > 1 or found != "NCHW" or reader.copied else head
