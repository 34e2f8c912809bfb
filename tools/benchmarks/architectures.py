"""Try `with_exits` on torchvision's and timm's networks: `python -m tools.benchmarks.architectures`.

Every classification network of torchvision and one small network of each family of timm, all with random weights, get
two early exits. Five things are compared with the network as its library has it, or with the table of all exits.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torchvision
import tyro
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from eeutils.analysis.costs import measure_costs
from eeutils.analysis.policies import ThresholdPolicy
from eeutils.cascade import Cascade
from eeutils.engines import PreparedNet
from eeutils.models import MultiExitNet, map_tensors, stage_modules, with_exits
from tools.benchmarks.report import publish
from tools.pages import RESULTS
from tools.tables import markdown_table

_CLASSES, _IMAGES = 10, 2
# Millions of parameters: larger networks are cut and counted on shapes alone, or not exported, to be done in minutes.
_COMPUTED_UP_TO, _EXPORTED_UP_TO = 30.0, 3.0
_CHECKS = ("answers", "costs", "folded", "cascade", "exported")

# Layers by the beginning of a network's name; the first that fits counts.
_TORCHVISION = {
    "alexnet": "features.2 features.5",
    "convnext": "features.3 features.5",
    "densenet": "features.denseblock1 features.denseblock2.denselayer3",
    "efficientnet": "features.3 features.5",
    "googlenet": "inception3a inception4c",
    "inception_v3": "Mixed_5c Mixed_6c",
    "maxvit": "blocks.0 blocks.2",
    "mnasnet": "layers.8 layers.10",
    "mobilenet": "features.3 features.8",
    "regnet": "trunk_output.block1 trunk_output.block3",
    "res": "layer2 layer3.0.add",
    "wide": "layer2 layer3.0.add",
    "shufflenet": "stage2 stage3",
    "squeezenet": "features.5 features.9",
    "swin": "features.1 features.5",
    "vgg": "features.9 features.16",
    "vit": "encoder.layers.encoder_layer_3 encoder.layers.encoder_layer_7",
}

# One small network of each family of timm; layers where `feature_info` names none that gives one tensor.
_TIMM = {
    "bat_resnext26ts": "",
    "beit_base_patch16_224": "",
    "cait_xxs24_224": "",
    "caformer_s18": "",
    "coat_lite_tiny": "",
    "convit_tiny": "",
    "convmixer_768_32": "",
    "cpubone_nano": "",
    "crossvit_tiny_240": "blocks.0[0] blocks.1[0]",
    "csatv2": "",
    "cspnext_tiny": "",
    "cspresnet50": "",
    "darknet17": "",
    "davit_tiny": "",
    "deit_tiny_distilled_patch16_224": "",
    "densenet121": "",
    "dla46x_c": "",
    "dpn48b": "",
    "edgenext_xx_small": "",
    "efficientformer_l1": "",
    "efficientformerv2_s0": "",
    "efficientvim_m1": "stages.0[0] stages.1[0]",
    "efficientvit_b0": "",
    "efficientvit_m0": "",
    "ese_vovnet19b_slim": "",
    "eva02_tiny_patch14_224": "",
    "fasternet_t0": "",
    "fastvit_t8": "",
    "focalnet_tiny_srf": "",
    "gcvit_xxtiny": "",
    "ghostnet_050": "",
    "halonet26t": "",
    "hardcorenas_a": "",
    "hgnetv2_b0": "",
    "hiera_tiny_224": "",
    "hrnet_w18_small": "stage2[0] stage3[0]",
    "iformer_t": "",
    "inception_next_atto": "",
    "inception_resnet_v2": "",
    "inception_v3": "",
    "inception_v4": "",
    "lcnet_035": "",
    "lcnetv2_small": "",
    "legacy_seresnet18": "",
    "legacy_xception": "",
    "levit_128s": "",
    "lowformer_b0": "",
    "mixer_s32_224": "",
    "mixnet_s": "",
    "mobilenetv3_small_050": "",
    "mobilevit_xxs": "",
    "mvitv2_tiny": "stages.1[0] stages.2[0]",
    "naflexvit_base_patch16_gap": "",
    "nasnetalarge": "",
    "nest_tiny": "",
    "nextvit_small": "",
    "pit_ti_224": "transformers.0[0] transformers.1[0]",
    "pnasnet5large": "",
    "poolformer_s12": "",
    "pvt_v2_b0": "",
    "rdnet_tiny": "",
    "regnetx_002": "",
    "repghostnet_050": "",
    "repvgg_a0": "",
    "repvit_m0_9": "",
    "res2net50_48w_2s": "",
    "resmlp_12_224": "",
    "resnest14d": "",
    "resnet10t": "",
    "resnetv2_18": "",
    "rexnet_100": "",
    "samvit_base_patch16_224": "",
    "selecsls42": "features.1[0] features.5[0]",
    "sequencer2d_s": "",
    "shvit_s1": "",
    "skresnet18": "",
    "starnet_s050": "",
    "swiftformer_xs": "",
    "swin_tiny_patch4_window7_224": "",
    "swinv2_cr_tiny_224": "",
    "swinv2_tiny_window8_256": "",
    "test_convnext": "",
    "test_mambaout": "",
    "test_maxvit": "",
    "test_nfnet": "",
    "test_vit": "",
    "test_vit_relpos": "",
    "tiny_vit_5m_224": "",
    "tinynet_e": "",
    "tnt_s_patch16_224": "blocks.3[1] blocks.7[1]",
    "tresnet_m": "",
    "twins_svt_small": "blocks.1 blocks.2",
    "vgg11": "",
    "visformer_tiny": "",
    "vit_tiny_r_s16_p8_224": "",
    "vitamin_small_224": "",
    "volo_d1_224": "",
    "xception41": "",
    "xcit_nano_12_p16_224": "",
}


@dataclass(frozen=True)
class Architecture:
    """A network to try.

    Attributes:
        library: "torchvision" or "timm".
        name: what the library calls it.
    """

    library: str
    name: str

    def build(self) -> nn.Module:
        """Build it with random weights and statistics, or on the meta device if it is large."""
        torch.manual_seed(0)
        is_timms = self.library == "timm"
        network = timm.create_model(self.name, num_classes=_CLASSES) if is_timms else self._torchvision()
        for norm in (layer for layer in network.modules() if isinstance(layer, _BatchNorm)):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.8, 1.2)
        return network.eval()

    def _torchvision(self) -> nn.Module:
        arguments = {"num_classes": _CLASSES}
        if self.name.startswith("vit"):
            arguments["image_size"] = self.image_size(None)
        if self.name in ("googlenet", "inception_v3"):
            arguments["init_weights"] = False
        if self.name.startswith("regnet"):  # computes its widths with tensors
            network = torchvision.models.get_model(self.name, **arguments)
            return network.to("meta") if _millions(network) > _COMPUTED_UP_TO else network
        with torch.device("meta"):
            network = torchvision.models.get_model(self.name, **arguments)
        if _millions(network) > _COMPUTED_UP_TO:
            return network
        return torchvision.models.get_model(self.name, **arguments)

    def image_size(self, network: nn.Module | None) -> int:
        """Return a size that the network reads, small where it reads many."""
        if self.library == "timm":
            return network.default_cfg["input_size"][-1]
        return {"maxvit_t": 224, "vit_h_14": 56}.get(self.name, 64 if self.name.startswith("vit") else 96)

    def layers(self, network: nn.Module) -> list[str]:
        """Name layers at about a third and two thirds of its depth."""
        if self.library == "torchvision":
            return next(layers for start, layers in _TORCHVISION.items() if self.name.startswith(start)).split()
        if _TIMM[self.name]:
            return _TIMM[self.name].split()
        info = network.feature_info
        names = info.module_name() if hasattr(info, "module_name") else [each["module"] for each in info]
        names = list(dict.fromkeys(names))[:-1]
        return sorted({names[len(names) // 3], names[2 * len(names) // 3]}, key=names.index)


@dataclass(frozen=True)
class Options:
    """Options: what to try, and where the table goes.

    Attributes:
        only: names of networks; by default all.
        out: the table.
    """

    only: tuple[str, ...] = ()
    out: Path = RESULTS / "architectures.md"


def main(args: Sequence[str] | None = None) -> None:
    """Try all networks, print the table and write it down."""
    options = tyro.cli(Options, prog="python -m tools.benchmarks.architectures", description=__doc__, args=args)
    rows = []
    for each in architectures():
        if not options.only or each.name in options.only:
            rows.append(tried(each))
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    publish(report(rows), options.out)


def architectures() -> Iterator[Architecture]:
    """List torchvision's classification networks, then timm's families."""
    for name in torchvision.models.list_models(module=torchvision.models):
        yield Architecture("torchvision", name)
    for name in _TIMM:
        yield Architecture("timm", name)


def tried(architecture: Architecture) -> list[object]:
    """Return a row of the table."""
    network = architecture.build()
    size = architecture.image_size(network)
    layers = architecture.layers(network)
    params = _millions(network)
    row = [architecture.library, architecture.name, f"{params:.1f}", size, ", ".join(layers)]
    try:
        net = with_exits(network, layers, image_size=size)
    except ValueError as error:
        return [*row, *[""] * len(_CHECKS), str(error).splitlines()[0]]
    shape = (3, size, size)
    checks: dict[str, Callable[[], bool]] = {"costs": lambda: same_costs(network, net, shape)}
    if not next(network.parameters()).is_meta:
        images, ready = torch.randn(_IMAGES, *shape), PreparedNet(net)
        checks |= {
            "answers": lambda: same_answers(network, net, images),
            "folded": lambda: same_when_folded(net, ready.net, images),
            "cascade": lambda: cascade_equals_table(ready, images),
        }
        if params <= _EXPORTED_UP_TO:
            checks["exported"] = lambda: can_be_exported(net, images)
    results, notes = dict.fromkeys(_CHECKS, ""), []
    for name, check in checks.items():
        try:
            results[name] = "yes" if check() else "no"
        except Exception as error:  # of any kind: a row of the table
            results[name] = "no"
            notes.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return [*row, *results.values(), "; ".join(notes)]


@torch.no_grad()
def same_answers(network: nn.Module, net: MultiExitNet, images: Tensor) -> bool:
    """Compare the last exit with the network, bit for bit."""
    return torch.equal(network(images), net(images)[-1])


@torch.no_grad()
def same_costs(network: nn.Module, net: MultiExitNet, image_shape: Sequence[int]) -> bool:
    """Compare the costs of all units and the last head with torch's counter on the network."""
    costs = measure_costs(net, tuple(image_shape))
    with FlopCounterMode(display=False) as counter:
        deepcopy(network).requires_grad_(False).to("meta")(torch.zeros(1, *image_shape, device="meta"))
    return float(costs.unit_macs.sum() + costs.exit_macs[-1]) == counter.get_total_flops() / 2


@torch.no_grad()
def same_when_folded(net: MultiExitNet, ready: MultiExitNet, images: Tensor) -> bool:
    """Compare the copy for inference with the network with exits, up to rounding."""
    answers = zip(net(images), ready(images), strict=True)
    return all((given - folded).abs().max() <= 1e-3 * given.abs().max() for given, folded in answers)


@torch.no_grad()
def cascade_equals_table(ready: PreparedNet, images: Tensor) -> bool:
    """Compare where images leave a cascade, and with which answers, with the table of all exits."""
    table = ready.logits(images)
    scores = table.softmax(-1).amax(-1)
    policy = ThresholdPolicy(tuple(map(_between, scores[:-1])))
    leaving = [*(scores[:-1] >= torch.tensor(policy.thresholds)[:, None]), torch.ones(len(images), dtype=torch.bool)]
    exit_index = torch.stack(leaving).int().argmax(0)
    result = Cascade(ready, policy)(images)
    answers = table[exit_index, torch.arange(len(images))]
    return torch.equal(result.exit_index, exit_index) and torch.allclose(result.logits, answers, 1e-3, 1e-4)


def can_be_exported(net: MultiExitNet, images: Tensor) -> bool:
    """Export every stage for any number of images, and compare answers up to rounding."""
    x, num_images, answers = images, torch.export.Dim("num_images"), []
    with torch.no_grad():
        for stage in stage_modules(net):
            shapes = (map_tensors(lambda _: {0: num_images}, x),)
            x, logits = torch.export.export(stage, (x,), dynamic_shapes=shapes).module()(x)
            answers.append(logits)
        return torch.allclose(torch.stack(answers), torch.stack(net(images)), 1e-3, 1e-4)


def report(rows: Sequence[Sequence[object]]) -> str:
    """Return counts of networks that work, and the table."""
    header = ["library", "network", "parameters (M)", "pixels", "exits after", *_CHECKS, "why not"]
    lines = []
    for library in dict.fromkeys(row[0] for row in rows):
        works = [
            all(cell != "no" and not row[-1] for cell in row[5 : 5 + len(_CHECKS)]) for row in rows if row[0] == library
        ]
        share = sum(works) / len(works)
        lines.append(f"- {library}: {sum(works)} of {len(works)} networks ({share:.0%}) pass all checks tried")
    lines.append("\nAn empty cell was not tried.")
    return "\n".join([*lines, "", markdown_table(header, rows), ""])


def _millions(network: nn.Module) -> float:
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def _between(confidence: Tensor) -> float:
    """Return a threshold in the widest gap, so that rounding moves no image."""
    ordered = confidence.sort().values
    index = int(ordered.diff().argmax())
    return float((ordered[index] + ordered[index + 1]) / 2)


if __name__ == "__main__":
    main()
