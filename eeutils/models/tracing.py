"""Networks recorded with torch.fx, as deep as the layers that one names."""

import math
import operator
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import zip_longest
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eeutils.errors import require

_PART = re.compile(r"(.+)\[([0-9]+)\]")  # one of several tensors that a layer gives


def record(network: nn.Module, names: Iterable[str]) -> tuple[dict[str, Any], fx.Graph]:
    """Record the steps of `network` in evaluation mode, and which of them gives a layer's output, by name.

    The modules above the layers `names` are opened, all others are one step each; where that cannot be recorded, all
    are opened. `network` is left in evaluation mode.
    """
    modules = network.named_modules(remove_duplicate=False)
    above = {module for path, module in modules if not path or any(name.startswith(f"{path}.") for name in names)}
    try:
        try:
            outputs, graph = _recorded(network, lambda module: module not in above)
        except Exception:  # of any kind: forward() is run with stand-ins that have no values
            outputs, graph = _recorded(network, partial(_is_small_step, above))
    except Exception as error:
        got = f"{type(network).__name__}: {error}"
        raise ValueError(f"network must be traceable by torch.fx down to layers {list(names)}, got {got}") from error
    for name in names:
        if part := _PART.fullmatch(name):
            outputs[name] = _part(graph, outputs.get(part[1]), int(part[2]))
    return outputs, graph


def _part(graph: fx.Graph, whole: Any, index: int) -> Any:
    if isinstance(whole, fx.Node):
        parts = {user.args[1]: user for user in whole.users if user.target is operator.getitem}
        if index not in parts:
            with graph.inserting_after(whole):
                parts[index] = graph.call_function(operator.getitem, (whole, index))
        named = parts.pop(index)
        for part in (named, *parts.values()):  # the others go before it: parts are handed on, not the whole
            whole.append(part)
        return named
    return getattr(whole[index], "node", None) if isinstance(whole, tuple | list) and index < len(whole) else None


class _Tracer(fx.Tracer):
    """Tracer that names steps as torchvision's `get_graph_node_names` does."""

    proxy_buffer_attributes = True

    def __init__(self, is_step: Callable[[nn.Module], bool]) -> None:
        # Functions that timm knows to depend on values of shapes.
        timm = sys.modules.get("timm.layers")
        super().__init__((math,), tuple(timm.get_notrace_functions()) if timm else ())
        self.is_step, self.repeats = is_step, Counter()
        self.outputs: dict[str, Any] = {}

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return self.is_step(module)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The images; other arguments stay at their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def call_module(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = super().call_module(module, forward, args, kwargs)
        self.outputs.setdefault(self.path_of_module(module), output.node if isinstance(output, fx.Proxy) else output)
        return output

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind in ("placeholder", "output"):
            return node
        name = self.scope.module_path
        if kind != "call_module":
            name = f"{name}.{re.sub('_[0-9]+$', '', node.name)}".lstrip(".")
        count = self.repeats[name]
        self.repeats[name] += 1
        self.outputs.setdefault(f"{name}_{count}" if count else name, node)
        return node


def _is_small_step(above: Collection[nn.Module], module: nn.Module) -> bool:
    """Keep torch's layers whole, and all that may act in training in its own way: norms, layers without weights."""
    if module in above or isinstance(module, nn.Sequential | nn.ModuleList):
        return False
    timm = sys.modules.get("timm.layers")
    apart = (_BatchNorm, *(timm.get_notrace_modules() if timm else ()))
    is_torchs = type(module).__module__.startswith("torch.nn.")
    return is_torchs or isinstance(module, apart) or next(module.parameters(), None) is None


def _recorded(network: nn.Module, is_step: Callable[[nn.Module], bool]) -> tuple[dict[str, Any], fx.Graph]:
    training, evaluating = _Tracer(is_step), _Tracer(is_step)
    in_training = training.trace(network.train())
    graph = evaluating.trace(network.eval())
    _follow_mode(graph, in_training)
    return evaluating.outputs, graph


def _follow_mode(graph: fx.Graph, in_training: fx.Graph) -> None:
    """Let steps of `graph` that are told the mode, as F.dropout is, ask for it."""
    for step, other in zip_longest(_steps(graph), _steps(in_training)):
        same = step is not None and other is not None and (step.op, step.target) == (other.op, other.target)
        require(same, f"in training, {other} takes the place of {step}")
        step.args = tuple(_asking(step, *pair) for pair in zip(step.args, other.args, strict=True))
        step.kwargs = {name: _asking(step, value, other.kwargs[name]) for name, value in step.kwargs.items()}


def _asking(step: fx.Node, now: Any, in_training: Any) -> Any:
    if now is False and in_training is True:
        with step.graph.inserting_before(step):
            return step.graph.create_node("get_attr", "training")
    same = now == in_training if isinstance(now, bool | int | float) else True
    require(same, f"in training, {step} is given {in_training} instead of {now}")
    return now


def _steps(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that the answer depends on, in order; in training, auxiliary answers may come with it."""
    answer = graph.output_node().args[0]
    if isinstance(answer, fx.Node) and isinstance(answer.target, type):  # a namedtuple
        answer = answer.args
    needed, todo = set(), [answer if isinstance(answer, fx.Node) else answer[0]]
    while todo:
        if (node := todo.pop()) not in needed:
            needed.add(node)
            todo += node.all_input_nodes
    return [node for node in graph.nodes if node in needed]
