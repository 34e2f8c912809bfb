import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eeutils import create_model, list_models
from eeutils.data import Normalization
from eeutils.errors import IntegrityError
from eeutils.weights import Registry, StoredFile, TrainingRecord, WeightEntry, default_registry
from eeutils.weights import registry as registry_module
from eeutils.weights.registry import REGISTRY_FILE

NORMALIZATION = Normalization((0.5,), (0.25,))
shares = st.lists(st.floats(0, 1), min_size=1, max_size=4).map(tuple)
words = st.text(st.characters(codec="utf-8"), max_size=10)


def untrained(name: str, **changes) -> WeightEntry:
    return WeightEntry(name, "resnet18", {"width": 4}, "toy", NORMALIZATION, "not trained", **changes)


@given(note=words, test=shares, seconds=st.floats(0, 1e6), size=st.integers(0, 1 << 40))
def test_weight_entry_survives_json(note, test, seconds, size):
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


@pytest.mark.parametrize("wrong", [{"status": "trained"}, {"status": "measured"}, {"status": "finished"}])
def test_weight_entry_has_the_files_that_its_status_promises(wrong):
    with pytest.raises(ValueError, match=repr(wrong["status"])):
        replace(untrained("a"), **wrong)


# The registry of the repository.


@pytest.mark.parametrize("entry", default_registry().entries, ids=lambda entry: entry.name)
def test_default_registry_builds_each_network_and_has_its_files(entry):
    assert entry.model in list_models()
    net = create_model(entry.model, **{**entry.model_args, "width": 4})
    if entry.has_results:
        assert set(entry.predictions) == set(entry.accuracy) == {"val", "test"}
        assert len(entry.macs) == len(entry.accuracy["test"]) == net.num_exits
        for file in entry.files:
            assert (default_registry().folder / file.path).stat().st_size == file.size
    else:
        assert not entry.accuracy
    if entry.status == "not trained":
        assert not entry.files
        words = entry.command.split()
        asked = dict(pairwise(words))
        assert asked["--model"] == entry.model
        assert asked.get("--pool") == entry.model_args.get("pool")


def test_default_registry_of_an_installed_package_is_its_own(tmp_path, monkeypatch):
    site_packages = tmp_path / "site-packages"
    package = site_packages / "eeutils"
    (site_packages / "weights").mkdir(parents=True)
    (site_packages / "weights" / REGISTRY_FILE).write_text("somebody else's")
    Registry((untrained("a"),), package).save()
    monkeypatch.setattr(registry_module, "__file__", str(package / "weights" / "registry.py"))
    monkeypatch.setattr(registry_module.resources, "files", {"eeutils": package}.__getitem__)
    assert default_registry() == Registry((untrained("a"),), folder=None)
