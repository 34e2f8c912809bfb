import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eeutils.data import Normalization
from eeutils.errors import IntegrityError
from eeutils.models import create_model, list_models
from eeutils.weights import Registry, StoredFile, TrainingRecord, WeightEntry, default_registry
from eeutils.weights import registry as registry_module
from eeutils.weights.registry import REGISTRY_FILE, without_width_and_seed
from tools.publish import LARGEST_FILE, LARGEST_FOLDER

NORMALIZATION = Normalization((0.5,), (0.25,))
shares = st.lists(st.floats(0, 1), min_size=1, max_size=4).map(tuple)
words = st.text(st.characters(codec="utf-8"), max_size=10)


def untrained(name: str, **changes) -> WeightEntry:
    return WeightEntry(name, "resnet18", {"width": 4}, "toy", NORMALIZATION, "not trained", **changes)


@given(note=words, test=shares, seconds=st.floats(0, 1e6), size=st.integers(0, 1 << 40))
def test_entry_round_trip(note, test, seconds, size):
    entry = WeightEntry(
        name="x",
        model="resnet18",
        model_args={"width": 4, "pool": "avg"},
        data="toy",
        normalization=NORMALIZATION,
        status="trained",
        note=note,
        weights=StoredFile("x/w.safetensors", "00" * 32, size, ("repository", "https://host/x", "drive:abc")),
        predictions={"test": StoredFile("x/p.safetensors", "11" * 32, size)},
        accuracy={"test": test},
        macs=(10, 20),
        training=TrainingRecord("slim", {"epochs": 1}, "CPU", {"torch": "2"}, seconds, 10.0),
    )
    again = WeightEntry.from_json("x", json.loads(json.dumps(entry.to_json())))
    assert again == entry


def test_registry_is_saved_alike_whatever_the_order(tmp_path):
    one, two = untrained("a"), untrained("b", note="é")
    for order in ((one, two), (two, one)):
        registry = Registry((), tmp_path / order[0].name)
        for entry in order:
            registry = registry.with_entry(entry)
        registry.save()
    first, second = ((tmp_path / name / REGISTRY_FILE).read_bytes() for name in "ab")
    assert first == second
    assert Registry.load(tmp_path / "a").entries == (one, two)


def test_registry_replaces_an_entry_of_the_same_name():
    registry = Registry((untrained("a"), untrained("b"))).with_entry(untrained("a", note="new"))
    assert registry.names == ["a", "b"]
    assert registry.entry("a").note == "new"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("python -m eeutils.train slim --out 'my runs'", ("slim", "--out", "my runs")),
        ("torchrun --nproc-per-node 2 -m eeutils.train slim --width 4", ("slim", "--width", "4")),
        ("python -m eeutils.train slim && python -m tools.publish runs/a", ("slim",)),
        ("", ()),
    ],
)
def test_the_arguments_are_those_of_the_training_whatever_starts_it(command, arguments):
    assert untrained("a", command=command).training_arguments == arguments


def trained(name: str) -> WeightEntry:
    return replace(untrained(name), status="trained", weights=StoredFile(name, "00" * 32, 1))


@pytest.mark.parametrize(
    ("wrong", "choices"),
    [
        ("resnet18-", "['resnet18-avg-w4', 'resnet18-avg']"),  # what is there first
        ("resnet19-avg", "['resnet18-avg-w4', 'resnet18-avg']"),
        ("vgg", "['vgg-avg-1', 'vgg-avg-2', 'vgg-avg-3', 'vgg-avg-4', 'vgg-avg-5']"),
        ("???", "[]"),
    ],
)
def test_registry_answers_an_unknown_name_with_similar_ones(wrong, choices):
    others = [untrained(f"vgg-avg-{number}") for number in range(1, 7)]
    registry = Registry((untrained("resnet18-avg"), trained("resnet18-avg-w4"), *others))
    with pytest.raises(ValueError, match="list_weights") as caught:
        registry.entry(wrong)
    assert repr(wrong) in str(caught.value)
    assert str(caught.value).endswith(choices)


BROKEN = [b"", b"[1]", b'{"a": 1}', b'{"a": {"model": "x"}}', b'{"a": {"colour": "red"}}', b"\xff", b"[" * 100_000]


@pytest.mark.parametrize("content", BROKEN)
def test_registry_says_which_file_is_damaged(tmp_path, content):
    (tmp_path / REGISTRY_FILE).write_bytes(content)
    with pytest.raises(IntegrityError, match=REGISTRY_FILE):
        Registry.load(tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", ""])
def test_stored_file_cannot_leave_the_folder(path):
    with pytest.raises(ValueError, match="below"):
        StoredFile(path, None, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "trained"},
        {"status": "external"},
        {"status": "measured"},
        {"status": "trained", "weights": StoredFile("x", None, None)},
        {"status": "finished"},
        {"status": None},
    ],
)
def test_entry_has_the_files_that_its_status_promises(wrong):
    with pytest.raises(ValueError, match=repr(wrong["status"])):
        replace(untrained("a"), **wrong)


def test_registry_without_a_folder_cannot_be_saved():
    with pytest.raises(ValueError, match="folder"):
        Registry(()).save()


@pytest.mark.parametrize("more", ["", "-w16", "-s1", "-w16-s12"])
def test_without_width_and_seed_keeps_the_rest_of_a_name(more):
    assert without_width_and_seed(f"net-spp-toy-ic_only-e2+4{more}") == "net-spp-toy-ic_only-e2+4"


# The registry of the repository.


@pytest.mark.parametrize("entry", default_registry().entries, ids=lambda entry: entry.name)
def test_each_entry_builds_its_network_and_its_files_are_there(entry):
    assert entry.model in list_models()
    net = create_model(entry.model, **{**entry.model_args, "width": 4})
    if entry.has_results:
        assert set(entry.predictions) == set(entry.accuracy) == {"val", "test"}
        assert len(entry.macs) == len(entry.accuracy["test"]) == net.num_exits
        for file in entry.files:
            assert file.size <= LARGEST_FILE
            assert (default_registry().folder / file.path).stat().st_size == file.size
    else:
        assert not entry.accuracy
    if entry.status == "not trained":
        assert not entry.files
        words = entry.command.split()
        asked = dict(pairwise(words))
        assert asked["--model"] == entry.model
        assert asked.get("--pool") == entry.model_args.get("pool")


def test_all_that_ships_together_is_small_enough():
    folder = default_registry().folder
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LARGEST_FOLDER


def test_the_full_width_networks_and_the_published_ones_have_entries():
    names = set(default_registry().names)
    pools = [("resnet18", "avg"), *((f"resnet18_{n}exits", pool) for n in (2, 3) for pool in ("avg", "spp"))]
    assert {f"{model}-{pool}-cifar10" for model, pool in pools} <= names
    assert {f"upf-resnet18_{n}exits-spp-cifar10" for n in (2, 3)} <= names


def test_a_name_without_its_data_set_is_answered_with_what_can_be_loaded_first():
    with pytest.raises(ValueError, match="list_weights") as caught:
        default_registry().entry("resnet18_3exits-spp")
    listed = re.findall(r"'(resnet18_3exits-spp-[^']*)'", str(caught.value))
    assert 1 <= len(listed) <= 5
    at_hand = [default_registry().entry(name).has_results for name in listed]
    assert at_hand[0]
    assert at_hand == sorted(at_hand, reverse=True)


def test_default_registry_of_an_installed_package_is_its_own(tmp_path, monkeypatch):
    site_packages = tmp_path / "site-packages"
    package = site_packages / "eeutils"
    (site_packages / "weights").mkdir(parents=True)
    (site_packages / "weights" / REGISTRY_FILE).write_text("somebody else's")
    Registry((untrained("a"),), package).save()
    monkeypatch.setattr(registry_module, "__file__", str(package / "weights" / "registry.py"))
    monkeypatch.setattr(registry_module.resources, "files", {"eeutils": package}.__getitem__)
    assert default_registry() == Registry((untrained("a"),), folder=None)
