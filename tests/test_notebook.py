from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch

from eeutils import notebook
from eeutils.notebook import QUICK_WIDTH, Session, explore, start
from eeutils.weights import Registry, WeightEntry, default_registry
from tests.toys import changed, weights


@pytest.fixture
def one_epoch(monkeypatch) -> None:
    """Train quick networks for an epoch."""
    monkeypatch.setattr(notebook, "QUICK_EPOCHS", 1)


def test_start_takes_quick_mode_from_the_environment(monkeypatch):
    assert not start().quick
    monkeypatch.setenv("EEUTILS_QUICK", "1")
    assert start().quick
    assert start().data.name == "digits"


def test_session_trains_quick_networks_once(empty_cache, one_epoch):
    first = Session(quick=True).network("resnet18_2exits-spp")
    again = Session(quick=True)
    kept = list(empty_cache.rglob("*.pt"))
    assert [path.name.rpartition("-")[0] for path in kept] == [f"resnet18_2exits-spp-digits-w{QUICK_WIDTH}"]
    written = kept[0].stat().st_mtime_ns
    second = again.network("resnet18_2exits-spp-cifar10-w16")  # in quick mode a full name stands for its kind
    assert list(empty_cache.rglob("*.pt")) == kept
    assert kept[0].stat().st_mtime_ns == written
    assert changed(second, weights(first)) == set()
    assert len(again.history("resnet18_2exits-spp").rows) == 1
    assert again.evaluation("resnet18_2exits-spp").test.num_exits == 2


@pytest.mark.parametrize(
    ("network", "stand_in"),
    [
        ("resnet56-cifar10", "resnet18-avg"),
        ("resnet56_sdn-mixed-cifar10", "resnet18_sdn-mixed"),
        ("resnet56_sdn-mixed-cifar10-ic_only", "resnet18_sdn-mixed-ic_only"),
    ],
)
def test_weights_name_in_quick_mode_is_of_resnet18_for_resnet56(network, stand_in):
    assert Session(quick=True).weights_name(network) == f"{stand_in}-digits-w{QUICK_WIDTH}"


def trained(model: str, pool: str | None, width: int, **changes) -> WeightEntry:
    """An entry of weights that are there, so far as a notebook asks."""
    real = default_registry().entry("resnet18-avg-cifar10-w16")
    args = {"width": width, "pool": pool, **changes.pop("model_args", {})}
    changes = {"name": f"{model}-{pool}-{width}{changes}"} | changes
    return replace(real, model=model, model_args=args, **changes)


COMPARED = [("resnet18", "avg"), *((f"resnet18_{n}exits", pool) for n in (2, 3) for pool in ("avg", "spp"))]


@pytest.fixture
def registry(monkeypatch) -> Callable[..., None]:
    """Lets notebooks see these entries, and all networks that they compare at width 16."""

    def use(*entries: WeightEntry) -> None:
        slim = [trained(model, pool, 16) for model, pool in COMPARED]
        monkeypatch.setattr(notebook, "default_registry", lambda: Registry((*slim, *entries)))

    return use


def test_weights_name_is_of_the_slimmest_width_that_all_have(registry):
    wide = [trained(model, pool, 64) for model, pool in COMPARED]
    registry(*wide, trained("resnet18_3exits", "spp", 8), trained("resnet18_sdn", "mixed", 32))
    session = Session(quick=False)
    assert session.weights_name("resnet18_3exits-spp").startswith("resnet18_3exits-spp-16")
    assert session.weights_name("resnet18_sdn-mixed").startswith("resnet18_sdn-mixed-32"), "there is no other"


def test_session_takes_networks_whose_results_alone_ship(registry):
    second = trained("resnet18_sdn", "mixed", 16, name="resnet18_sdn-mixed-w16-s1", status="measured", weights=None)
    registry(trained("resnet18_sdn", "mixed", 16, name="resnet18_sdn-mixed-w16"), second)
    session = Session(quick=False)
    assert session.weights_name(second.name) == second.name
    assert session.seeds("resnet18_sdn-mixed") == ["resnet18_sdn-mixed-w16", second.name]


@pytest.mark.parametrize(
    "changes", [{"name": "resnet18_sdn-mixed-cifar10-e2+4-w16"}, {"data": "cifar100"}, {"status": "not trained"}]
)
def test_weights_name_passes_unusual_weights_over(registry, changes):
    registry(trained("resnet18_sdn", "mixed", 16, **changes))
    with pytest.raises(ValueError, match="'resnet18_sdn-mixed'"):
        Session(quick=False).weights_name("resnet18_sdn-mixed")


def test_session_trains_a_quick_network_once_for_notebooks_that_ask_at_a_time(empty_cache, one_epoch):
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(Session(quick=True).network, "resnet18-avg") for _ in range(3)]
    first, *others = [each.result() for each in asked]
    assert all(changed(other, weights(first)) == set() for other in others)
    assert len(list(empty_cache.rglob("*.pt"))) == 1


def test_session_trains_exits_alone_on_the_plain_network(empty_cache, one_epoch):
    session = Session(quick=True)
    plain = session.network("resnet18-avg").state_dict()
    sdn = session.network("resnet18_sdn-mixed-ic_only")
    assert sdn.num_exits == 7
    assert all(torch.equal(tensor, sdn.state_dict()[name]) for name, tensor in plain.items())


def test_seeds_lists_all_runs_of_a_kind(registry, empty_cache):
    seeds = [f"spp-w16{end}" for end in ("", "-s1", "-s2")]
    registry(*(trained("resnet18_3exits", "spp", 16, name=name) for name in (*seeds, "spp-w24")))
    assert Session(quick=False).seeds("spp-w16-s1") == seeds
    assert Session(quick=True).seeds("resnet18_3exits-spp") == ["resnet18_3exits-spp"]


def test_explore_redraws_for_every_choice():
    drawn = []

    def draw(height, kind):
        drawn.append((height, kind))
        return plt.figure(figsize=(1, 1 + height))

    box = explore(draw, height=(0.0, 1.0, 0.5), kind=("a", "b"))
    (slider, picker), picture = box.children[0].children, box.children[1]
    before = bytes(picture.value)
    slider.value, picker.value = 0.75, "b"
    assert drawn == [(0.5, "a"), (0.75, "a"), (0.75, "b")]
    assert bytes(picture.value).startswith(b"\x89PNG")
    assert bytes(picture.value) != before
    assert not plt.get_fignums()
