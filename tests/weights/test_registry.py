import pytest

from eeutils import create_model, list_models
from eeutils.errors import IntegrityError
from eeutils.weights import Registry, StoredFile, default_registry
from eeutils.weights import registry as registry_module
from eeutils.weights.registry import REGISTRY_FILE
from tests.toys import toy_entry
from tools.registry_file import save_registry

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
        toy_entry("a", weights=None, **wrong)


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
    assert entry.status != "not trained" or not entry.files


def test_default_registry_of_an_installed_package_is_its_own(tmp_path, monkeypatch):
    site_packages = tmp_path / "site-packages"
    package = site_packages / "eeutils"
    (site_packages / "weights").mkdir(parents=True)
    (site_packages / "weights" / REGISTRY_FILE).write_text("somebody else's")
    save_registry(Registry((toy_entry("a"),), package))
    monkeypatch.setattr(registry_module, "__file__", str(package / "weights" / "registry.py"))
    monkeypatch.setattr(registry_module.resources, "files", {"eeutils": package}.__getitem__)
    assert default_registry() == Registry((toy_entry("a"),), folder=None)
