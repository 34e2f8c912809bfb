"""Graphs of a network's layers, cut into units that hand on all that the rest needs."""

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eeutils.errors import require
from eeutils.models.tracing import record

_BATCH_SIZES = (2, 3)  # what differs between the two depends on the number of images


class LayerGraph:
    """Layers of a network in the order in which they run, and the shapes that they make of an image.

    Modules above the layers `names`, to cut at, are opened, all others stay one step each. The network is left in
    evaluation mode.
    """

    def __init__(self, network: nn.Module, names: Iterable[str], image_shape: tuple[int, int, int]) -> None:
        self.network = network
        self.outputs, self.graph = record(network, names)
        self.nodes = [node for node in self.graph.nodes if node.op != "output"]
        self.images, self.answer = self.nodes[0], self.graph.output_node().args[0]
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self._of_images = {self.images}
        for node in self.nodes:
            if not self._of_images.isdisjoint(node.all_input_nodes):
                self._of_images.add(node)
        self._meta = deepcopy(fx.GraphModule(network, self.graph)).to("meta", torch.float32)
        self._runs = [_ShapeRun(self._meta, (size, *image_shape)) for size in _BATCH_SIZES]
        self._larger = (1, image_shape[0], 2 * image_shape[1], 2 * image_shape[2])
        self.folds = self._runs[0].folds
        answer = self.value(self.answer) if isinstance(self.answer, fx.Node) else self.answer
        is_logits, got = isinstance(answer, Tensor) and answer.ndim == 2, getattr(answer, "shape", type(answer))
        require(is_logits, f"network must answer logits (N, classes), got {got}")
        self.num_classes = answer.shape[1]

    def value(self, node: fx.Node) -> Any:
        """Return the output of `node` for two images, on the meta device."""
        return self._runs[0].values[node.name]

    def is_overwritten(self, node: fx.Node) -> bool:
        """Tell if a later layer overwrites the output of `node`."""
        return self.value(node)._version != self._runs[0].versions[node.name]

    def crossing(self, last: fx.Node) -> list[fx.Node]:
        """List what is handed on behind `last`: its own output first, then all else that later layers read."""
        cut = self.position[last]
        later = [node for node in self.nodes[cut + 1 :] if not self._is_recomputed(node)]
        read = {source for node in later for given in node.all_input_nodes for source in self._sources(given)}
        read |= self._sources(self.answer)
        return [last, *sorted((n for n in read - {last} if self.position[n] <= cut), key=self.position.__getitem__)]

    def grown(self, node: fx.Node) -> torch.Size | None:
        """Return the output's shape for images twice as large; None if the network cannot read them."""
        try:
            return _ShapeRun(self._meta, self._larger).values[node.name].shape
        except ValueError:
            return None

    def last_map(self, behind: fx.Node) -> fx.Node:
        """Return the last map that the whole answer depends on, if possible before it is pooled; else the answer."""
        pooled = None
        for node in reversed(self.nodes[self.position[behind] + 1 :]):
            value = self.value(node)
            if not isinstance(value, Tensor) or value.ndim < 3 or self.crossing(node) != [node]:
                continue
            if self.images_first(node):
                if sum(size > 1 for size in value.shape[1:]) > 1:
                    return node
                pooled = pooled or node
        return pooled or self.answer

    def images_first(self, node: fx.Node) -> bool:
        """Tell if the images are the first dimension of every tensor in the output of `node`."""
        pairs = zip(*(tree_leaves(run.values[node.name]) for run in self._runs), strict=True)
        sizes = [tuple(len(t) if t.ndim else 0 for t in pair) for pair in pairs if isinstance(pair[0], Tensor)]
        return all(size == _BATCH_SIZES for size in sizes)

    def module(self, given: Sequence[fx.Node], wanted: Sequence[fx.Node]) -> fx.GraphModule:
        """Make a unit of the steps from one cut to the next; several values at a cut are one tuple."""
        graph = fx.Graph()
        features = graph.placeholder("features")
        if len(given) == 1:
            made = {given[0]: features}
        else:
            made = {node: graph.call_function(operator.getitem, (features, i)) for i, node in enumerate(given)}
        first = made[given[0]]

        def copied(node: fx.Node) -> Any:
            if node not in made:
                if self._counts_images(node):
                    shape = graph.call_function(getattr, (first, "shape"))
                    made[node] = graph.call_function(operator.getitem, (shape, 0))
                else:
                    made[node] = self._size(node) or graph.node_copy(node, copied)
            return made[node]

        start, stop = (max(self.position[node] for node in nodes) for nodes in (given[:1], wanted[:1]))
        for node in self.nodes[start + 1 : stop + 1]:
            if not self._is_recomputed(node):
                copied(node)
        results = tuple(map(copied, wanted))
        graph.output(results if len(results) > 1 else results[0])
        module = fx.GraphModule(self.network, graph)
        layers = dict(module.named_modules())
        module.meta["folds"] = [pair for pair in self.folds if layers.keys() >= set(pair)]
        return module

    def _counts_images(self, node: fx.Node) -> bool:
        values = tuple(run.values[node.name] for run in self._runs)
        return values == _BATCH_SIZES if isinstance(values[0], int) else False

    def _size(self, node: fx.Node) -> Any:
        """Return what a layer gives beside tensors, such as the size of its map; None if `node` is not that."""
        if node.target is operator.getitem and self._is_recomputed(node) and not self._is_recomputed(node.args[0]):
            values = [run.values[node.name] for run in self._runs]
            return values[0] if values[0] == values[1] else None
        return None

    def _is_recomputed(self, node: fx.Node) -> bool:
        """Tell if each unit computes `node` anew: constants and shapes have no images that could leave."""
        if node not in self._of_images:
            return True
        if node is self.images or node.op == "call_module" or node.is_impure():
            return False
        return not any(isinstance(leaf, Tensor) for leaf in tree_leaves(self.value(node)))

    def _sources(self, node: fx.Node) -> set[fx.Node]:
        """Return the values to hand on so that a later unit knows `node`."""
        if node not in self._of_images or self._counts_images(node) or self._size(node):
            return set()
        if not self._is_recomputed(node):
            return {node}
        return {source for given in node.all_input_nodes for source in self._sources(given)}


def fold_recorded(module: nn.Module) -> None:
    """Fold norms of a unit into convolutions, in place, where `LayerGraph` found that only the norm reads them."""
    for conv, norm in getattr(module, "meta", {}).pop("folds", ()):
        layer = module.get_submodule(norm)
        module.set_submodule(conv, fuse_conv_bn_eval(module.get_submodule(conv), layer))
        is_plain = type(layer) is nn.BatchNorm2d
        module.set_submodule(norm, nn.Identity() if is_plain else nn.Sequential(layer.drop, layer.act))  # timm's


class _ShapeRun(fx.Interpreter):
    """Outputs of all nodes for images of one shape, on the meta device."""

    def __init__(self, network: fx.GraphModule, shape: tuple[int, ...]) -> None:
        super().__init__(network)
        self.extra_traceback = False
        self.values: dict[str, Any] = {}
        self.versions: dict[str, int] = {}
        with torch.no_grad(), _Folds(network) as folds:
            try:
                self.run(torch.empty(shape, device="meta"))
            except Exception as error:
                raise ValueError(f"image_size must be one that the network reads, got {shape[-1]}: {error}") from error
        self.folds = folds.found()

    def fetch_args_kwargs_from_env(self, node: fx.Node) -> Any:
        args, kwargs = super().fetch_args_kwargs_from_env(node)
        return tuple(map(_plain_lists, args)), {name: _plain_lists(value) for name, value in kwargs.items()}

    def run_node(self, node: fx.Node) -> Any:
        value = self.values[node.name] = super().run_node(node)
        if isinstance(value, Tensor):
            self.versions[node.name] = value._version
        return value


def _plain_lists(value: Any) -> Any:
    """Copy immutable lists of a graph, because a layer may write into the list that it reads."""
    return list(map(_plain_lists, value)) if isinstance(value, list) else value


class _Folds(TorchDispatchMode):
    """Mode that finds pairs of convolution and norm, each run once, where only the norm reads the convolution."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.reads: Counter[int] = Counter()
        self.alive: list[Any] = []  # so that no two tensors have one id
        self.calls: dict[str, list[Tensor]] = {}
        self.layers = dict(network.named_modules())
        for name, layer in self.layers.items():
            if layer._forward_pre_hooks or layer._forward_hooks:
                continue
            if type(layer) is nn.Conv2d:
                layer.register_forward_hook(lambda _, given, made, name=name: self._called(name, made))
            if _is_norm(layer):
                layer.register_forward_hook(lambda _, given, made, name=name: self._called(name, given[0]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.alive += tensors
        self.reads.update(map(id, tensors))
        return func(*args, **(kwargs or {}))

    def _called(self, name: str, tensor: Tensor) -> None:
        self.alive.append(tensor)
        self.calls.setdefault(name, []).append(tensor)

    def found(self) -> list[tuple[str, str]]:
        """Return the pairs of names."""
        once = {name: tensors[0] for name, tensors in self.calls.items() if len(tensors) == 1}
        convs = {id(tensor): name for name, tensor in once.items() if type(self.layers[name]) is nn.Conv2d}
        norms = [(name, id(tensor)) for name, tensor in once.items() if name not in convs.values()]
        pairs = [(convs[key], norm) for norm, key in norms if key in convs and self.reads[key] == 1]
        return [pair for pair in pairs if self.reads[id(self.layers[pair[0]].weight)] == 1]


def _is_norm(layer: nn.Module) -> bool:
    """Accept the classes of torch and timm: other subclasses may do more than normalise."""
    is_known = type(layer) is nn.BatchNorm2d or (isinstance(layer, nn.BatchNorm2d) and hasattr(layer, "act"))
    return is_known and layer.running_mean is not None
