"""Batch normalisations folded into the convolutions before them, wherever nothing else reads what lies between."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from copy import deepcopy
from itertools import chain

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_norms(parts: Sequence[nn.Module]) -> None:
    """Fold in place, in parts of a network in evaluation mode, each norm that alone reads what a convolution gives.

    Answers stay what they are, up to rounding. Who reads what is seen by recording the forward pass with `torch.fx`,
    without images. What cannot be recorded, because it depends on values or shapes or has hooks, keeps its norms.
    A part that asks whether it is given a Tensor is recorded as if it were not, for the recording hands on stand-ins:
    it must not read a convolution otherwise for that.
    """
    owners = Counter(module for part in parts for module in part.modules())
    shared = {module for module, count in owners.items() if count > 1}
    for part in parts:
        if (graph := _recorded(part)) is not None:
            _fold(part, graph, shared)


def _fold(part: nn.Module, graph: fx.Graph, shared: Set[nn.Module]) -> None:
    read = _weights_read(part, graph)
    if read is None:
        return
    layers, folded = dict(part.named_modules()), {}
    for first, second in _neighbours(graph):
        pair = layers[first], layers[second]
        weights = {id(tensor) for layer in pair for tensor in _tensors(layer)}
        if _can_be_folded(*pair) and shared.isdisjoint(pair) and read.isdisjoint(weights):
            folded |= {first: fuse_conv_bn_eval(*pair), second: nn.Identity()}
    _replace(part, folded)
    if str(_recorded(part)) != str(graph):  # it asks of which class its layers are, or knows one by two names
        _replace(part, {name: layers[name] for name in folded})


def _recorded(module: nn.Module, known: dict[nn.Module, bool] | None = None) -> fx.Graph | None:
    """What `module` does with its layers, whatever the images; None if that depends on them.

    What lies within it and cannot be recorded is taken for one layer. Of which layers that holds is kept in `known`:
    asked anew at each level above it, one layer deep within would cost twice the time per level.
    """
    known = {} if known is None else known

    def is_one_layer(layer: nn.Module) -> bool:
        if layer not in known:
            known[layer] = _recorded(layer, known) is None
        return known[layer]

    if _has_hooks(module):
        return None
    graph = _trace(module, _has_hooks)  # enough for most, and looks at every layer once
    return graph or _trace(module, is_one_layer)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is computed of a buffer, as x - self.mean[:, None, None], is recorded as such

    def __init__(self, original: nn.Module, is_one_layer: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.original, self.is_one_layer = original, is_one_layer

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return super().is_leaf_module(module, name) or self.is_one_layer(self.original.get_submodule(name))


def _trace(module: nn.Module, is_one_layer: Callable[[nn.Module], bool]) -> fx.Graph | None:
    # A copy, because a module may remember something of each pass; it shares the weights.
    scratch = deepcopy(module, {id(tensor): tensor for tensor in _tensors(module)})
    try:
        with torch.inference_mode():
            return _Tracer(module, is_one_layer).trace(scratch)
    except Exception:  # of any kind: forward() is run with stand-ins that have no values
        return None


def _neighbours(graph: fx.Graph) -> Iterator[tuple[str, str]]:
    """Names of two layers, each run once, the second of which alone reads what the first gives."""
    runs = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if len(node.args) == 1 else None
        if not isinstance(before, fx.Node) or not node.op == before.op == "call_module":
            continue
        if len(before.users) == 1 and runs[before.target] == runs[node.target] == 1:
            yield before.target, node.target


def _weights_read(module: nn.Module, graph: fx.Graph) -> set[int] | None:
    """Which tensors the forward pass itself computes with; None if one is not the module's, and may be made of its.

    A tensor that two layers share goes by one name in the graph, so identities are compared.
    """
    state = dict(chain(module.named_parameters(), module.named_buffers()))
    names = [node.target for node in graph.nodes if node.op == "get_attr"]
    return {id(state[name]) for name in names} if state.keys() >= set(names) else None


def _can_be_folded(first: nn.Module, second: nn.Module) -> bool:
    """Of a convolution and a norm that are just that: a subclass, or a hook, may make its weight anew every time.

    So may a method that was put into a layer, in place of that of its class.
    """
    if type(first) is not nn.Conv2d or type(second) is not nn.BatchNorm2d:
        return False
    with_statistics = second.running_mean is not None and not second.training
    return with_statistics and not any(_has_hooks(layer) or _has_methods(layer) for layer in (first, second))


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_pre_hooks or module._forward_hooks)


def _has_methods(module: nn.Module) -> bool:
    return not vars(module).keys().isdisjoint(("forward", "_conv_forward"))


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


def _replace(module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        module.set_submodule(name, layer)
