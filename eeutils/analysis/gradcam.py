"""Attribution: Grad-CAM, guided backpropagation and their product, computed by captum.

Each explains one logit of one exit. Grad-CAM weighs the channels of the feature map that the exit reads, at that map's
resolution; guided backpropagation follows the gradient down to the pixels. Both work on a copy of the network, in
evaluation mode and cut off at the exit.
"""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from captum.attr import GuidedBackprop, LayerAttribution, LayerGradCam, LayerGradientXActivation
from torch import Tensor, nn
from torchvision.ops import Permute

from eeutils.analysis.costs import exit_costs
from eeutils.data.augmentation import check_normalized
from eeutils.errors import require
from eeutils.models import MultiExitNet, drop_exits, truncate
from eeutils.models.adapt import MapReader
from eeutils.models.memory import device_and_dtype
from eeutils.models.multiexit import map_tensors

Classes = int | Sequence[int] | Tensor | None
"""Classes to explain: one for all images, one per image, or None for the class that the exit predicts."""


@torch.inference_mode(False)
def grad_cam(net: MultiExitNet, images: Tensor, exit_index: int, target: Classes = None) -> Tensor:
    """Map the evidence for a class in the feature map that an exit reads (Selvaraju et al., arXiv 1610.02391).

    Every channel is weighed by the mean gradient of the class's logit over its pixels. The positive part of the
    weighted sum is resized to the image (bilinearly) and divided by its maximum. If the last unit ends in a pooling
    layer, the map before it is used, since VGG16's classifier reads a single cell of 32x32 images. The mean is exact
    for a head that averages its map, and blurs one with weights for each cell (pyramids): see `hires_cam`.

    `images` are normalised; the exit, counted from 0, reads one feature map (N, C, H, W); `target` is by default the
    class that it predicts. The maps (N, H, W) are on the network's device, all zero if nothing supports the class.
    """
    return _map_of(net, images, exit_index, target, LayerGradCam)


@torch.inference_mode(False)
def hires_cam(net: MultiExitNet, images: Tensor, exit_index: int, target: Classes = None) -> Tensor:
    """Compute `grad_cam` with every pixel's own gradient in place of the mean (Draelos & Carin, arXiv 2011.08891).

    For a head that is linear in its (pooled) map, the values before cutting at zero add up to the logit minus the bias.
    After global average pooling it equals `grad_cam`.
    """
    return _map_of(net, images, exit_index, target, LayerGradientXActivation)


@torch.inference_mode(False)
def guided_backprop(net: MultiExitNet, images: Tensor, exit_index: int, target: Classes = None) -> Tensor:
    """Compute the gradient of a class's logit at the pixels; ReLUs pass its positive part (arXiv 1412.6806).

    Activations other than ReLU pass the plain gradient. Arguments as for `grad_cam`; (N, C, H, W), signed.
    """
    alone, images = _private_copy(net, images, exit_index)
    classes = _classes_to_explain(_logits_through_relu_modules(alone, images), target)
    if not len(images):  # captum refuses
        return images
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU activations")
        return GuidedBackprop(alone).attribute(images.requires_grad_(), classes).detach()


@dataclass(frozen=True)
class Explanation:
    """Prediction and attribution maps of one exit, for N images."""

    predicted: Tensor  # (N,) int64, the class that the exit predicts
    confidence: Tensor  # (N,) its probability
    cam: Tensor  # (N, H, W), `hires_cam` of that class
    guided_cam: Tensor  # (N, C, H, W), guided backpropagation times that map


@torch.inference_mode(False)
def explain(net: MultiExitNet, images: Tensor, exit_index: int) -> Explanation:
    """Compute the prediction of one exit, and the maps of the class that it predicts."""
    alone, copied = _private_copy(net, images, exit_index)
    with torch.no_grad():
        confidence, predicted = alone(copied).softmax(1).max(1)
    cam, guided = hires_cam(net, images, exit_index), guided_backprop(net, images, exit_index)
    return Explanation(predicted, confidence, cam, guided * cam[:, None])


def central_share(maps: Tensor) -> Tensor:
    """(N,), share of the mass of maps (N, H, W) in the middle half of height and width: 0.25 for a flat map."""
    height, width = maps.shape[1:]
    middle = maps[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    return middle.sum((1, 2)) / maps.sum((1, 2))


def map_spread(maps: Tensor) -> Tensor:
    """(N,), share of the pixels that each map (N, H, W) is spread over: exp(entropy) / pixels, 1 for a flat map."""
    mass = maps.flatten(1)
    mass = mass / mass.sum(1, keepdim=True)
    return torch.special.entr(mass).sum(1).exp() / mass.shape[1]


def map_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """(N,), Pearson's correlation of the pixels of maps (N, H, W) with those of `others`; NaN where one is flat."""
    first, second = (_centered(each.flatten(1)) for each in (maps, others))
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


def _centered(values: Tensor) -> Tensor:
    """(N, P) minus the mean of each row; exactly zero for a flat row, whose mean may be rounded."""
    flat = values.amax(1, keepdim=True) == values.amin(1, keepdim=True)
    return (values - values.mean(1, keepdim=True)).masked_fill(flat, 0.0)


def _map_of(
    net: MultiExitNet, images: Tensor, exit_index: int, target: Classes, method: type[LayerAttribution]
) -> Tensor:
    (units, head), images = _private_copy(net, images, exit_index)
    units, head = _reader_moved(*_pooling_moved(units, head))
    with torch.no_grad():
        features = units(images)
        is_map = isinstance(features, Tensor) and features.ndim == 4 and features.shape[2:].numel() > 1
        got = f"{map_tensors(lambda tensor: tuple(tensor.shape), features)}; larger images or an earlier exit may do"
        require(is_map, f"exit {exit_index} must read a map (N, C, H, W) of more than one cell, got {got}")
        classes = _classes_to_explain(head(features), target)
    if not len(images):  # captum refuses
        return images[:, 0]
    each = method(head, head).attribute(features.clone().requires_grad_(), classes, attribute_to_layer_input=True)
    small = each.detach().sum(1, keepdim=True).relu()
    maps = LayerAttribution.interpolate(small, tuple(images.shape[2:]), "bilinear")[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def _pooling_moved(units: nn.Sequential, head: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Move pooling layers from the end of the last unit to the head: they only blur the map."""
    *before, last = units
    layers = list(last) if type(last) is nn.Sequential else [last]
    while len(layers) > 1 and isinstance(layers[-1], (nn.MaxPool2d, nn.AvgPool2d)):
        head = nn.Sequential(layers.pop(), head)
    return nn.Sequential(*before, *layers), head


def _reader_moved(units: nn.Module, head: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Move what brings features into the shape of a map from the head to the units, as `with_exits` has it."""
    if isinstance(head, nn.Sequential) and isinstance(head[0], MapReader):
        return nn.Sequential(units, head[0]), head[1:]
    if getattr(head, "meta", {}).get("layout") == "NHWC":
        return nn.Sequential(units, Permute([0, 3, 1, 2])), nn.Sequential(Permute([0, 2, 3, 1]), head)
    return units, head


def _private_copy(net: MultiExitNet, images: Tensor, exit_index: int) -> tuple[nn.Sequential, Tensor]:
    """Copy the images, the units up to an exit and its head, ready to be differentiated."""
    cut = truncate(net, exit_index)
    if len(images):
        check_normalized(images)
    require(images.is_floating_point(), f"images must be normalised floats, got {images.dtype}")
    exit_costs(cut, tuple(images.shape[1:]))  # fails if the images do not fit
    cut = deepcopy(drop_exits(cut, cut.exit_after[:-1])).eval().requires_grad_(False)
    for module in cut.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # it would overwrite the values that hooks need
    images = images.detach().to(*device_and_dtype(net), copy=True)
    return nn.Sequential(nn.Sequential(*cut.units), *cut.exits.values()), images


def _classes_to_explain(logits: Tensor, target: Classes) -> Tensor:
    """Logits (N, classes) -> (N,) int64"""
    if target is None:
        return logits.argmax(1)
    num_images, num_classes = logits.shape
    classes = torch.as_tensor(target, device=logits.device)
    if classes.ndim == 0:
        classes = classes.expand(num_images)
    exact = not num_images or not (classes.is_floating_point() or classes.dtype == torch.bool)
    fits = exact and classes.shape == (num_images,) and bool(((classes >= 0) & (classes < num_classes)).all())
    wanted = f"one class in 0..{num_classes - 1} or one for each of {num_images} images"
    require(fits, f"target must be {wanted}, got {target}")
    return classes.long()


def _logits_through_relu_modules(net: nn.Module, images: Tensor) -> Tensor:
    """Return the logits; raise a ValueError if a ReLU is not a module, because it would pass gradients unguided."""
    calls, relus = [], (module for module in net.modules() if isinstance(module, nn.ReLU))
    hooks = [relu.register_forward_hook(lambda *_: calls.append(1)) for relu in relus]
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
    functions = sum(step.name() == "ReluBackward0" for step in seen) - len(calls)
    require(functions <= 0, f"every ReLU must be an nn.ReLU to be guided, got {functions} functions (F.relu)")
    return logits.detach()
