import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eeutils.analysis.costs import measure_seconds
from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import PatiencePolicy, ThresholdPolicy
from eeutils.analysis.predictions import predict
from eeutils.cascade import Cascade
from eeutils.data import Normalization, Split
from eeutils.engines import Engine, PreparedNet, list_engines, register_engine
from eeutils.engines.registry import _REGISTERED, import_extra
from eeutils.engines.torch_engine import prepare
from eeutils.models import MultiExitNet, create_exit, resnet18

PACKAGES = {"openvino": ("openvino", "onnxscript"), "onnxruntime": ("onnxruntime", "onnxscript")}


def engine_or_skip(name: str) -> str:
    for package in PACKAGES.get(name, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    return name


class Carrying(nn.Module):
    """A map, and the images for a unit behind the exit."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": self.convolution(x), "images": x}


class Joined(nn.Module):
    """Join what was carried past the exit."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(7, 4, 3)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.convolution(torch.cat([x["map"], x["images"]], 1)).relu()


class OfMap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = create_exit("spp", 4, 4)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.head(x["map"])


def make_net() -> MultiExitNet:
    """Two stages that are quick to convert; what lies between them is a dict of two tensors."""
    torch.manual_seed(0)
    return MultiExitNet([Carrying(), Joined()], {0: OfMap(), 1: create_exit("mixed", 4, 4)}).eval()


def make_split(count: int = 40, size: tuple[int, int] = (9, 7)) -> Split:
    pixels = torch.randint(0, 256, (count, 3, *size), generator=torch.Generator().manual_seed(0)).byte()
    return Split(pixels, torch.arange(count) % 4, tuple("abcd"), Normalization((0.5,) * 3, (0.25,) * 3))


def halving(net: MultiExitNet | PreparedNet, split: Split) -> ThresholdPolicy:
    """A threshold that half of the images reach, between two scores."""
    scores = predict(net, split).confidence[0].sort().values
    middle = len(scores) // 2
    return ThresholdPolicy(float(scores[middle - 1 : middle + 1].mean()))


@pytest.fixture(scope="module", params=["torch", "openvino", "onnxruntime"])
def ready(request) -> PreparedNet:
    return PreparedNet(make_net(), engine_or_skip(request.param))


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_every_engine_answers_as_the_table(ready, batch_size):
    net, split = make_net(), make_split()
    policy, table = halving(net, split), predict(net, split)
    expected = decide(table, policy)
    assert len(expected.exit_index.unique()) == 2

    result = Cascade(ready, policy).run(split, batch_size=batch_size)

    assert torch.equal(result.exit_index, expected.exit_index)
    assert torch.equal(result.predicted, expected.predicted)


def test_every_engine_gives_its_table_and_its_seconds(ready):
    split, table = make_split(), predict(make_net(), make_split())
    own = predict(ready, split, costs=measure_seconds(ready, split, batch_size=8, batches=2))
    torch.testing.assert_close(own.logits, table.logits, rtol=1e-4, atol=1e-5)
    assert own.costs.shape == (2,)


def test_a_rule_that_looks_back_runs_on_every_engine(ready):
    table = predict(make_net(), make_split())
    for fallback in ("last", "most_confident"):
        result = Cascade(ready, PatiencePolicy(1), fallback=fallback).run(make_split(), batch_size=16)
        assert torch.equal(result.predicted, decide(table, PatiencePolicy(1), fallback).predicted)


def test_eight_threads_get_the_answers_of_one(ready):
    split = make_split()
    cascade = Cascade(ready, halving(make_net(), split))
    images = split.normalization(split.images)
    parts = [images[start : start + count] for start in range(0, 32, 4) for count in (1, 3, 8)]
    alone = [cascade(part) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(cascade, parts))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.exit_index, other.exit_index)
        torch.testing.assert_close(one.logits, other.logits)


@pytest.mark.parametrize(("name", "precision"), [("openvino", "int8"), ("onnxruntime", "fp32")])
def test_prepared_networks_are_made_in_several_threads_at_once(name, precision):
    if precision == "int8":
        pytest.importorskip("nncf", reason="nncf is not installed")
    images, stdout = torch.zeros(1, 3, 9, 7), sys.stdout
    nets = [
        PreparedNet(make_net(), engine_or_skip(name), precision=precision, calibration=make_split(8)) for _ in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda net: net.logits(images), nets)
    assert sys.stdout is stdout
    assert torch.equal(one, other)


def test_prepared_net_answers_one_image_before_and_after_several(ready):
    images = make_split(7).normalization(make_split(7).images)
    expected = make_net()(images)[-1]
    for rows in (slice(0, 1), slice(0, 7), slice(3, 4), slice(0, 5), slice(6, 7)):
        torch.testing.assert_close(ready.logits(images[rows])[-1], expected[rows], rtol=1e-4, atol=1e-5)


def test_answers_stay_when_the_cascade_is_asked_again(ready):
    cascade = Cascade(ready, ThresholdPolicy(0.0))
    first = cascade(torch.zeros(2, 3, 9, 7))
    before = first.logits.clone()
    cascade(torch.ones(2, 3, 9, 7))
    assert torch.equal(first.logits, before)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_int8_answers_nearly_as_float32(name, capfd):
    engine_or_skip(name)
    if name == "openvino":
        pytest.importorskip("nncf", reason="nncf is not installed")
    split = make_split()
    ready = PreparedNet(make_net(), name, precision="int8", calibration=split)
    int8, fp32 = predict(ready, split), predict(make_net(), split)
    assert int8.logits.dtype == torch.float32
    assert not torch.equal(int8.logits, fp32.logits)
    torch.testing.assert_close(int8.logits, fp32.logits, rtol=0.1, atol=0.1)
    policy = halving(ready, split)
    result = Cascade(ready, policy).run(split, batch_size=7)
    assert torch.equal(result.exit_index, decide(int8, policy).exit_index)
    assert capfd.readouterr().out == ""


def test_openvino_in_bf16_answers_nearly_as_float32():
    ready = PreparedNet(make_net(), engine_or_skip("openvino"), precision="bf16")
    bf16, fp32 = predict(ready, make_split()), predict(make_net(), make_split())
    assert bf16.logits.dtype == torch.float32
    torch.testing.assert_close(bf16.logits, fp32.logits, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("num_stages", [2, 9])
def test_compile_makes_at_most_two_graphs_a_stage(num_stages, monkeypatch):
    graphs, compiled = [], torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda stage, **options: compiled(stage, backend=backend))
    torch.compiler.reset()
    units = [nn.Conv2d(3, 3, 1) for _ in range(num_stages)]
    net = MultiExitNet(units, {index: create_exit("avg", 3, 4) for index in range(num_stages)}).eval()
    ready = PreparedNet(net, "compile")
    for count in (1, 7, 2, 64, 256, 1, 3):
        images = torch.randn(count, 3, 8, 8)
        torch.testing.assert_close(ready.logits(images), torch.stack(net(images)).detach())
    assert len(graphs) <= 2 * num_stages


def test_a_registered_engine_is_found_by_name(monkeypatch):
    monkeypatch.setitem(_REGISTERED, "mine", Engine(prepare, ("fp32",)))
    split = make_split()
    policy = halving(make_net(), split)
    result = Cascade(make_net(), policy, engine="mine").run(split)
    assert "mine" in list_engines()
    assert torch.equal(result.exit_index, decide(predict(make_net(), split), policy).exit_index)
    with pytest.raises(ValueError, match="bf16"):
        PreparedNet(make_net(), "mine", precision="bf16")


def test_a_built_in_engine_keeps_its_name():
    with pytest.raises(ValueError, match="openvino"):
        register_engine("openvino", Engine(prepare, ("fp32",)))


def test_a_missing_package_is_an_error_that_names_the_extra():
    with pytest.raises(ModuleNotFoundError, match=r"eeutils\[openvino\]"):
        import_extra("a_package_that_nobody_has", "openvino", "engine 'openvino'")


def test_no_engine_is_imported_before_it_is_asked_for():
    engines = {"openvino", "onnx", "onnxruntime", "nncf"}
    code = f"import sys, eeutils.cascade; print(sorted({engines} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("calibration", [None, torch.zeros(0)])
def test_int8_without_images_is_refused(calibration):
    engine_or_skip("openvino")
    with pytest.raises(ValueError, match="calibration"):
        PreparedNet(make_net(), "openvino", precision="int8", calibration=calibration)


def test_a_unit_without_onnx_counterpart_is_named_with_its_operator():
    engine_or_skip("onnxruntime")

    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.special.i1e(x)

    net = MultiExitNet([nn.Identity(), Special()], {1: create_exit("avg", 3, 4)}).eval()
    with pytest.raises(ValueError, match=r"Special.*i1e"):
        Cascade(net, ThresholdPolicy(()), engine="onnxruntime")(torch.zeros(1, 3, 4, 4))


def test_answers_that_are_nan_are_refused(monkeypatch):
    def broken(net, images, settings):
        stages = prepare(net, images, settings)
        run = tuple(lambda x, each=each: (each(x)[0], each(x)[1] * torch.nan) for each in stages.run)
        return type(stages)(stages.read, run, stages.take)

    monkeypatch.setitem(_REGISTERED, "broken", Engine(broken, ("fp32",)))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Cascade(make_net(), ThresholdPolicy(0.5), engine="broken")(torch.zeros(2, 3, 9, 7))


def test_an_exit_that_is_switched_off_does_not_run():
    torch.manual_seed(0)
    units = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(7)]
    net = MultiExitNet(units, {index: create_exit("avg", 3, 4) for index in range(7)}).eval()
    split = make_split()
    inf = float("inf")
    middle = predict(net, split).confidence[2].sort().values[19:21].mean()
    policy = ThresholdPolicy((inf, inf, float(middle), inf, inf, inf))
    expected, asked = decide(predict(net, split), policy), []
    for exit_index, head in enumerate(net.exits.values()):
        head.register_forward_hook(lambda *_, exit_index=exit_index: asked.append(exit_index))
    cascade = Cascade(net, policy)
    cascade.run(split)
    asked.clear()

    result = cascade.run(split)

    assert asked == [2, 6]
    assert torch.equal(result.exit_index, expected.exit_index)
    assert torch.equal(result.predicted, expected.predicted)
    torch.testing.assert_close(result.mean_cost, expected.mean_cost)


@pytest.mark.parametrize(
    ("channels", "packed"), [((3, 32), True), ((32, 64), True), ((96, 96), False), ((64, 48), False)]
)
def test_convolutions_are_packed_where_channels_are_powers_of_two(channels, packed):
    """Elsewhere oneDNN may fall into a slow kernel for one image."""
    from eeutils.engines.packing import _can_be_packed

    if not torch.backends.mkldnn.is_available():
        pytest.skip("oneDNN is not there")
    assert _can_be_packed(torch.nn.Conv2d(*channels, 3)) == packed


def test_openvino_in_int8_answers_the_same_without_an_early_exit():
    engine_or_skip("openvino")
    pytest.importorskip("nncf", reason="nncf is not installed")
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU()) for channels in (3, 8, 8)]
    net = MultiExitNet(units, {index: create_exit("spp", 8, 4) for index in range(3)}).eval()
    split = make_split()
    ready = PreparedNet(net, "openvino", precision="int8", calibration=split)
    table = predict(ready, split)
    middle = float(table.confidence[1].sort().values[19:21].mean())
    policy = ThresholdPolicy((float("inf"), middle))
    result = Cascade(ready, policy).run(split, batch_size=23)
    assert torch.equal(result.exit_index, decide(table, policy).exit_index)
    assert torch.equal(result.predicted, decide(table, policy).predicted)


def test_openvino_in_int8_hands_on_integers_that_several_layers_read():
    engine_or_skip("openvino")
    pytest.importorskip("nncf", reason="nncf is not installed")
    torch.manual_seed(0)
    net = resnet18(width=4, exit_after=(2,), num_classes=4).eval()
    split = make_split(size=(8, 8))
    stages = PreparedNet(net, "openvino", precision="int8", calibration=split).stages_for(torch.zeros(1, 3, 8, 8))

    (features,), _ = stages.run[0](stages.read(torch.zeros(1, 3, 8, 8)))

    assert features.data.dtype == np.uint8
