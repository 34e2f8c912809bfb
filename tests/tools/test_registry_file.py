from hypothesis import given
from hypothesis import strategies as st

from eeutils.weights import Registry, StoredFile, TrainingRecord
from eeutils.weights.registry import REGISTRY_FILE
from tests.toys import toy_entry
from tools.registry_file import save_registry, with_entry

shares = st.lists(st.floats(0, 1), min_size=1, max_size=4).map(tuple)
words = st.text(st.characters(codec="utf-8"), max_size=10)


@given(note=words, test=shares, seconds=st.floats(0, 1e6), size=st.integers(0, 1 << 40))
def test_save_registry_writes_what_load_reads(note, test, seconds, size, tmp_path_factory):
    entry = toy_entry(
        "x",
        note=note,
        weights=StoredFile("x/w.safetensors", "00" * 32, size, ("repository", "https://host/x", "drive:abc")),
        predictions={"test": StoredFile("x/p.safetensors", "11" * 32, size)},
        accuracy={"test": test},
        macs=(10, 20),
        training=TrainingRecord("slim", {"epochs": 1}, "CPU", {"torch": "2"}, seconds, 10.0),
    )
    registry = Registry((entry,), tmp_path_factory.getbasetemp())
    save_registry(registry)
    assert Registry.load(registry.folder) == registry


def test_save_registry_writes_the_same_bytes_whatever_the_order(tmp_path):
    one, two = toy_entry("a"), toy_entry("b", note="é")
    for order in ((one, two), (two, one)):
        registry = Registry((), tmp_path / order[0].name)
        for entry in (toy_entry("a", note="old"), *order):
            registry = with_entry(registry, entry)
        assert registry.names == ["a", "b"]
        save_registry(registry)
    first, second = ((tmp_path / name / REGISTRY_FILE).read_bytes() for name in "ab")
    assert first == second
    assert Registry.load(tmp_path / "a").entries == (one, two)
