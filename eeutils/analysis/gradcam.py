"""What an exit looks at: Grad-CAM, guided backpropagation and their product, by captum.

Each explains one logit of one exit. Grad-CAM weighs the channels of the feature map that the exit reads and says where
in it the evidence is, as coarsely as the map is; guided backpropagation follows the gradient down to the pixels.

None of this touches the network: it is a private copy, cut off at the exit and in evaluation mode, that is
differentiated.
"""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from captum.attr import GuidedBackprop, LayerAttribution, LayerGradCam, LayerGradientXActivation
from torch import Tensor, nn

from eeutils.analysis.costs import exit_costs
from eeutils.models import MultiExitNet, drop_exits, truncate
from eeutils.models.memory import device_and_dtype
from eeutils.models.multiexit import Features, map_tensors

Classes = int | Sequence[int] | Tensor | None
"""Whose logit is explained: one class for all images, one per image, or None: the class that the exit itself names."""


@torch.inference_mode(False)
def grad_cam(net: MultiExitNet, images: Tensor, exit_index: int, target: Classes = None) -> Tensor:
    """Where the feature map that an exit reads speaks for a class (Selvaraju et al., ICCV 2017, arXiv 1610.02391).

    Every channel is weighed by the mean gradient of the class's logit over its pixels; what their weighted sum has
    above zero is enlarged to the image (bilinearly) and divided by its maximum. Where the last unit ends in a pooling
    layer (VGG16), the map is the one before it: what VGG16's classifier reads of 32x32 images is a single cell.

    The mean is exact for a head that averages its map. One that reads cells with weights of their own (internal
    classifiers, pyramids) says different things of one channel in different places, which the mean blurs: see
    `hires_cam`.

    Args:
        net: a network whose exit reads one feature map (N, C, H, W): tokens and tuples of maps have no such places.
        images: (N, C, H, W), normalised as the network is used to; N may be 0.
        exit_index: which exit, 0 is the shallowest.
        target: the class to explain; by default the one that this exit names.

    Returns:
        (N, H, W) on the network's device, from 0 to 1, which is the maximum of each map; all zero where nothing speaks
        for the class.

    Raises:
        ValueError: if there is no such exit or class, images are not floating or of a shape that the network cannot
            read, there are not as many classes as images, or the exit reads something else than a feature map, or a
            map of a single cell, which shows no places.
    """
    return _map_of(net, images, exit_index, target, _mean_gradients)


@torch.inference_mode(False)
def hires_cam(net: MultiExitNet, images: Tensor, exit_index: int, target: Classes = None) -> Tensor:
    """As `grad_cam`, but every pixel of the feature map keeps its own gradient (Draelos & Carin, arXiv 2011.08891).

    For a head that is linear in its (pooled) map the values before cutting at zero add up to the logit, but for the
    bias. After global average pooling it is the same as `grad_cam`. Arguments and errors as there: the exit has to read
    one feature map (N, C, H, W).
    """
    return _map_of(net, images, exit_index, target, _own_gradients)


@torch.inference_mode(False)
def guided_backprop(net: MultiExitNet, images: Tensor, exit_index: int, target: Classes = None) -> Tensor:
    """The gradient of a class's logit at an exit by the pixels, let through ReLUs only where it is positive.

    Springenberg et al., ICLR 2015 workshop, arXiv 1412.6806. Activations other than ReLU pass the plain gradient.

    Args:
        net: a network whose ReLUs are modules (`nn.ReLU`): others could not be guided.
        images: as for `grad_cam`.
        exit_index: which exit, 0 is the shallowest.
        target: the class to explain; by default the one that this exit names.

    Returns:
        (N, C, H, W) on the network's device, signed.

    Raises:
        ValueError: as `grad_cam`, and if the network applies ReLU as a function.
    """
    alone, images = _private_copy(net, images, exit_index)
    classes = _classes_to_explain(_logits_through_relu_modules(alone, images), target)
    if not len(images):  # captum refuses
        return images
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU activations")
        return GuidedBackprop(alone).attribute(images.requires_grad_(), classes).detach()


def guided_grad_cam(net: MultiExitNet, images: Tensor, exit_index: int, target: Classes = None) -> Tensor:
    """`guided_backprop` (N, C, H, W) where `grad_cam` shines: their product. Arguments and errors as there."""
    guided = guided_backprop(net, images, exit_index, target)
    return guided * grad_cam(net, images, exit_index, target)[:, None]


@dataclass(frozen=True)
class Explanation:
    """What one exit names and what it looks at, for N images.

    Attributes:
        predicted: (N,) int64, the class that the exit names.
        confidence: (N,) its probability.
        grad_cam: (N, H, W) for the class that was asked about.
        guided_grad_cam: (N, C, H, W) for the same.
    """

    predicted: Tensor
    confidence: Tensor
    grad_cam: Tensor
    guided_grad_cam: Tensor


@torch.inference_mode(False)
def explain(net: MultiExitNet, images: Tensor, exit_index: int, target: Classes = None) -> Explanation:
    """Both maps of one exit, with its answer. Arguments and errors as for `guided_backprop`."""
    alone, copied = _private_copy(net, images, exit_index)
    with torch.no_grad():
        confidence, predicted = alone(copied).softmax(1).max(1)
    cam = grad_cam(net, images, exit_index, target)
    guided = guided_backprop(net, images, exit_index, target)
    return Explanation(predicted, confidence, cam, guided * cam[:, None])


# Figures of one map, to compare many.


def central_share(maps: Tensor) -> Tensor:
    """Share of each map's mass in the middle half of its height and width; a flat map has 0.25.

    Args:
        maps: (N, H, W), not negative, H and W multiples of 4.

    Returns:
        (N,), NaN for a map that is zero everywhere.

    Raises:
        ValueError: if H or W is no multiple of 4.
    """
    height, width = maps.shape[1:]
    if height % 4 or width % 4:
        raise ValueError(f"maps must have sides that are multiples of 4, got {height}x{width}")
    middle = maps[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    return middle.sum((1, 2)) / maps.sum((1, 2))


def map_spread(maps: Tensor) -> Tensor:
    """Share of its pixels that each map is spread over: exp(entropy) / pixels, 1 for a flat map.

    Args:
        maps: (N, H, W), not negative.

    Returns:
        (N,), NaN for a map that is zero everywhere.
    """
    mass = maps.flatten(1)
    mass = mass / mass.sum(1, keepdim=True)
    return torch.special.entr(mass).sum(1).exp() / mass.shape[1]


def map_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson's correlation of the pixels of maps (N, H, W) with those of `others`, image by image.

    Returns:
        (N,), NaN where one of the two is flat.

    Raises:
        ValueError: if their shapes differ.
    """
    if maps.shape != others.shape:
        raise ValueError(f"maps of shapes {tuple(maps.shape)} and {tuple(others.shape)} cannot be compared")
    ours, theirs = (_centered(each.flatten(1)) for each in (maps, others))
    return (ours * theirs).sum(1) / (ours.norm(dim=1) * theirs.norm(dim=1))


def _centered(values: Tensor) -> Tensor:
    """(N, P) less the mean of each row; exactly zero for a flat row, whose mean need not be exact."""
    flat = values.amax(1, keepdim=True) == values.amin(1, keepdim=True)
    return (values - values.mean(1, keepdim=True)).masked_fill(flat, 0.0)


def _map_of(
    net: MultiExitNet,
    images: Tensor,
    exit_index: int,
    target: Classes,
    method: Callable[[nn.Module, Tensor, Tensor], Tensor],
) -> Tensor:
    (units, head), images = _private_copy(net, images, exit_index)
    units, head = _pooling_moved(units, head)
    with torch.no_grad():
        features = units(images)
        _check_map(features, exit_index)
        classes = _classes_to_explain(head(features), target)
    if not len(images):  # captum refuses
        return images[:, 0]
    small = method(head, features.clone().requires_grad_(), classes).detach().relu()
    maps = LayerAttribution.interpolate(small, tuple(images.shape[2:]), "bilinear")[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def _check_map(features: Features, exit_index: int) -> None:
    if not isinstance(features, Tensor) or features.ndim != 4:
        shape = map_tensors(lambda tensor: tuple(tensor.shape), features)
        raise ValueError(
            f"exit {exit_index} reads {type(features).__name__} of shape {shape}, not a feature map (N, C, H, W), so "
            "there is no map to show"
        )
    if features.shape[2:].numel() == 1:
        raise ValueError(
            f"the map under exit {exit_index} has a single cell, so it cannot show where the evidence is; "
            "take larger images or an earlier exit"
        )


def _pooling_moved(units: nn.Sequential, head: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The same network, where pooling layers that end the last unit are the head's: they only blur where things are."""
    *before, last = units
    layers = list(last) if type(last) is nn.Sequential else [last]
    while len(layers) > 1 and isinstance(layers[-1], (nn.MaxPool2d, nn.AvgPool2d)):
        head = nn.Sequential(layers.pop(), head)
    return nn.Sequential(*before, *layers), head


def _mean_gradients(head: nn.Module, features: Tensor, classes: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, 1, h, w)"""
    return LayerGradCam(head, head).attribute(features, classes, attribute_to_layer_input=True)


def _own_gradients(head: nn.Module, features: Tensor, classes: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, 1, h, w)"""
    each = LayerGradientXActivation(head, head).attribute(features, classes, attribute_to_layer_input=True)
    return each.sum(1, keepdim=True)


def _private_copy(net: MultiExitNet, images: Tensor, exit_index: int) -> tuple[nn.Sequential, Tensor]:
    """The units up to an exit and its head, apart from the network that they are copied from, and the images."""
    cut = truncate(net, exit_index)
    _check_images(cut, images)
    cut = deepcopy(drop_exits(cut, cut.exit_after[:-1])).eval().requires_grad_(False)
    for module in cut.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # it would overwrite what hooks have to see
    images = images.detach().to(*device_and_dtype(net), copy=True)
    return nn.Sequential(nn.Sequential(*cut.units), *cut.exits.values()), images


def _check_images(net: MultiExitNet, images: Tensor) -> None:
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, C, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floats as the network reads them, got {images.dtype}; normalise them first")
    exit_costs(net, tuple(images.shape[1:]))  # says what is wrong with images that do not fit


def _classes_to_explain(logits: Tensor, target: Classes) -> Tensor:
    """Logits (N, classes) -> (N,) int64"""
    if target is None:
        return logits.argmax(1)
    num_images, num_classes = logits.shape
    classes = torch.as_tensor(target, device=logits.device)
    if classes.ndim == 0:
        classes = classes.expand(num_images)
    if classes.shape != (num_images,):
        raise ValueError(f"target must be one class or one for each of {num_images} images, got {tuple(classes.shape)}")
    if classes.numel() and (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool):
        raise ValueError(f"target must be whole numbers, got {classes.dtype}")
    outside = classes[(classes < 0) | (classes >= num_classes)]
    if len(outside):
        raise ValueError(f"target {int(outside[0])} is not a class: this exit knows 0..{num_classes - 1}")
    return classes.long()


def _logits_through_relu_modules(net: nn.Module, images: Tensor) -> Tensor:
    """The logits, if every ReLU on the way to them is a module: one that is not would pass gradients unguided."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda *_: calls.append(1))
        for module in net.modules()
        if isinstance(module, nn.ReLU)
    ]
    with torch.enable_grad():
        logits = net(images.clone().requires_grad_())
    for hook in hooks:
        hook.remove()
    seen, waiting = set(), [logits.grad_fn]
    while waiting:
        step = waiting.pop()
        if step is not None and step not in seen:
            seen.add(step)
            waiting += [before for before, _ in step.next_functions]
    applied = sum(step.name() == "ReluBackward0" for step in seen)
    if applied > len(calls):
        raise ValueError(
            f"{applied - len(calls)} of the network's {applied} ReLUs are functions (F.relu); guided backpropagation "
            "needs modules (nn.ReLU)"
        )
    return logits.detach()
