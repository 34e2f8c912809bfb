import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eeutils.analysis.costs import measure_seconds
from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import PatiencePolicy, ThresholdPolicy
from eeutils.analysis.predictions import predict
from eeutils.cascade import Cascade
from eeutils.data import Split
from eeutils.engines import Engine, PreparedNet, list_engines, register_engine, registry
from eeutils.engines.torch_engine import prepare
from eeutils.models import MultiExitNet, create_exit, resnet18
from tests.toys import Applies, assert_same_answers, between_scores, carrying_net, dividing, random_split

PACKAGES = {"openvino": ("openvino", "onnxscript"), "onnxruntime": ("onnxruntime", "onnxscript")}


def engine_or_skip(name: str, precision: str = "fp32") -> str:
    for package in (*PACKAGES.get(name, ()), *(["nncf"] if (name, precision) == ("openvino", "int8") else [])):
        pytest.importorskip(package, reason=f"{package} is not installed")
    return name


def make_split(count: int = 40, size: int = 9) -> Split:
    return random_split(count, size, num_classes=4)


def convolutions(num_exits: int) -> MultiExitNet:
    units = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(num_exits)]
    return MultiExitNet(units, {index: create_exit("avg", 3, 4) for index in range(num_exits)}).eval()


@pytest.fixture(scope="module", params=["torch", "openvino", "onnxruntime"])
def ready(request) -> PreparedNet:
    return PreparedNet(carrying_net(), engine_or_skip(request.param))


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_engine_answers_as_the_table(ready, batch_size):
    split, table = make_split(), predict(carrying_net(), make_split())
    expected = decide(table, dividing(table))
    assert len(expected.exit_index.unique()) == 2
    assert_same_answers(Cascade(ready, dividing(table)).run(split, batch_size=batch_size), expected)


def test_engine_gives_its_table_and_its_seconds(ready):
    split, table = make_split(), predict(carrying_net(), make_split())
    own = predict(ready, split, costs=measure_seconds(ready, split, batch_size=8, batches=2))
    torch.testing.assert_close(own.logits, table.logits, rtol=1e-4, atol=1e-5)
    assert own.costs.shape == (2,)


@pytest.mark.parametrize("fallback", ["last", "most_confident"])
def test_engine_runs_a_rule_that_looks_back(ready, fallback):
    split, table = make_split(), predict(carrying_net(), make_split())
    result = Cascade(ready, PatiencePolicy(1), fallback=fallback).run(split, batch_size=16)
    assert_same_answers(result, decide(table, PatiencePolicy(1), fallback))


def test_engine_gives_eight_threads_the_answers_of_one(ready):
    split = make_split()
    cascade = Cascade(ready, dividing(predict(carrying_net(), split)))
    images = split.normalization(split.images)
    parts = [images[start : start + count] for start in range(0, 32, 4) for count in (1, 3, 8)]
    alone = [cascade(part) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(cascade, parts))
    for one, other in zip(alone, together, strict=True):
        assert_same_answers(one, other)
        torch.testing.assert_close(one.logits, other.logits)


@pytest.mark.parametrize(("name", "precision"), [("openvino", "int8"), ("onnxruntime", "fp32")])
def test_engine_is_made_ready_in_several_threads_at_once(name, precision):
    options, stdout = {"precision": precision, "calibration": make_split(8)}, sys.stdout
    nets = [PreparedNet(carrying_net(), engine_or_skip(name, precision), **options) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda net: net.logits(torch.zeros(1, 3, 9, 9)), nets)
    assert sys.stdout is stdout
    assert torch.equal(one, other)


@pytest.mark.parametrize(("threshold", "left_at"), [(0.0, 0), (1.0, 1)])
def test_engine_gives_answers_that_stay_whatever_is_asked_next(ready, threshold, left_at):
    images, cascade = make_split(7).normalization(make_split(7).images), Cascade(ready, ThresholdPolicy(threshold))
    asked = (slice(0, 1), slice(0, 7), slice(3, 4), slice(0, 5), slice(6, 7))
    for rows, answer in [(rows, cascade(images[rows])) for rows in asked]:
        torch.testing.assert_close(answer.logits, carrying_net()(images)[left_at][rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "precision", "off"), [("openvino", "int8", 0.1), ("onnxruntime", "int8", 0.2), ("openvino", "bf16", 0.05)]
)
def test_engine_answers_in_few_bits_nearly_as_in_float32(name, precision, off, capfd):
    split = make_split()
    ready = PreparedNet(carrying_net(), engine_or_skip(name, precision), precision=precision, calibration=split)
    coarse, fp32 = predict(ready, split), predict(carrying_net(), split)
    assert coarse.logits.dtype == torch.float32
    assert not torch.equal(coarse.logits, fp32.logits)
    torch.testing.assert_close(coarse.logits, fp32.logits, rtol=off, atol=off)
    result = Cascade(ready, dividing(coarse)).run(split, batch_size=7)
    assert torch.equal(result.exit_index, decide(coarse, dividing(coarse)).exit_index)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("num_stages", [2, 9])
def test_compile_makes_at_most_two_graphs_a_stage(num_stages, graphs):
    net = convolutions(num_stages)
    ready = PreparedNet(net, "compile")
    for count in (1, 7, 2, 64, 256, 1, 3):
        images = torch.randn(count, 3, 8, 8)
        torch.testing.assert_close(ready.logits(images), torch.stack(net(images)).detach())
    assert len(graphs) <= 2 * num_stages


def test_register_engine_makes_it_known_by_name_but_not_by_a_built_in_one(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    register_engine("mine", Engine(prepare, ("fp32",)))
    split, table = make_split(), predict(carrying_net(), make_split())
    assert "mine" in list_engines()
    result = Cascade(carrying_net(), dividing(table), engine="mine").run(split)
    assert_same_answers(result, decide(table, dividing(table)))
    with pytest.raises(ValueError, match="bf16"):
        PreparedNet(carrying_net(), "mine", precision="bf16")
    with pytest.raises(ValueError, match="openvino"):
        register_engine("openvino", Engine(prepare, ("fp32",)))


def test_import_extra_names_the_extra_of_a_missing_package():
    with pytest.raises(ModuleNotFoundError, match=r"eeutils\[openvino\]"):
        registry.import_extra("a_package_that_nobody_has", "openvino", "engine 'openvino'")


@pytest.mark.parametrize("calibration", [None, torch.zeros(0)])
def test_prepared_net_in_int8_needs_images(calibration):
    engine_or_skip("openvino")
    with pytest.raises(ValueError, match="calibration"):
        PreparedNet(carrying_net(), "openvino", precision="int8", calibration=calibration)


def test_onnxruntime_names_a_unit_without_counterpart_and_its_operator():
    engine_or_skip("onnxruntime")
    net = MultiExitNet([nn.Identity(), Applies(torch.special.i1e)], {1: create_exit("avg", 3, 4)}).eval()
    with pytest.raises(ValueError, match=r"Applies.*i1e"):
        Cascade(net, ThresholdPolicy(()), engine="onnxruntime")(torch.zeros(1, 3, 4, 4))


def test_engine_answers_that_are_nan_are_refused(monkeypatch):
    def broken(net, images, settings):
        stages = prepare(net, images, settings)
        run = tuple(lambda x, each=each: (each(x)[0], each(x)[1] * torch.nan) for each in stages.run)
        return type(stages)(stages.read, run, stages.take)

    monkeypatch.setitem(registry._REGISTERED, "broken", Engine(broken, ("fp32",)))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Cascade(carrying_net(), ThresholdPolicy(0.5), engine="broken")(torch.zeros(2, 3, 9, 9))


def test_cascade_does_not_run_an_exit_that_is_switched_off():
    net, split, inf = convolutions(7), make_split(), float("inf")
    table = predict(net, split)
    policy = ThresholdPolicy((inf, inf, between_scores(table.confidence[2]), inf, inf, inf))
    expected, asked = decide(table, policy), []
    for exit_index, head in enumerate(net.exits.values()):
        head.register_forward_hook(lambda *_, exit_index=exit_index: asked.append(exit_index))
    cascade = Cascade(net, policy)
    cascade.run(split)
    asked.clear()
    result = cascade.run(split)
    assert asked == [2, 6]
    assert_same_answers(result, expected)
    torch.testing.assert_close(result.mean_cost, expected.mean_cost)


def test_openvino_in_int8_hands_on_integers_and_answers_the_same_without_an_early_exit():
    engine, split = engine_or_skip("openvino", "int8"), make_split(size=8)
    net = resnet18(width=4, exit_after=(2, 4), num_classes=4).eval()  # several layers of a block read what is handed on
    ready = PreparedNet(net, engine, precision="int8", calibration=split)
    stages = ready.stages_for(torch.zeros(1, 3, 8, 8))
    (features,), _ = stages.run[0](stages.read(torch.zeros(1, 3, 8, 8)))
    assert features.data.dtype == np.uint8
    table = predict(ready, split)
    policy = ThresholdPolicy((float("inf"), between_scores(table.confidence[1])))
    assert_same_answers(Cascade(ready, policy).run(split, batch_size=23), decide(table, policy))


_COUNT_WAKEUPS = """
import os, time, torch
from functools import partial
from pathlib import Path
from eeutils import Cascade, ThresholdPolicy
from eeutils.engines import Engine, register_engine
from eeutils.engines.registry import Stages
from tests.toys import carrying_net

def runs_of_other_threads(after):
    after()
    others = [each for each in Path("/proc/self/task").iterdir() if int(each.name) != os.getpid()]
    return sum(int((each / "schedstat").read_text().split()[2]) for each in others)

def prepare(net, images, settings):
    answer = lambda x: (x, x.flatten(1)[:, :4])
    return Stages(lambda images: images, (answer, answer), lambda x, index: x[index])

torch.set_num_threads(2)
for name, own_threads in (("own", True), ("shared", False)):
    register_engine(name, Engine(prepare, ("fp32",), own_threads=own_threads))
    cascade = Cascade(carrying_net(), ThresholdPolicy(0.8), engine=name)
    work = partial(cascade, torch.randn(256, 3, 16, 16))
    work()
    before = runs_of_other_threads(after=partial(time.sleep, 0.1))  # until none spins any more
    print(runs_of_other_threads(after=work) - before)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not count how often threads run")
def test_cascade_wakes_no_thread_beside_those_of_an_engine_that_has_its_own():
    counted = subprocess.run([sys.executable, "-c", _COUNT_WAKEUPS], capture_output=True, text=True, check=True)
    own, shared = map(int, counted.stdout.split())
    assert own == 0
    assert shared > 0, "the count sees no threads"
