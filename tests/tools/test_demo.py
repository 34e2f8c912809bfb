"""The demo, end to end on digits."""

import re

import pytest

from tools import demo


def test_it_prints_accuracies_and_what_leaving_early_saves(monkeypatch, tmp_path, empty_cache, capsys):
    monkeypatch.setenv("EEUTILS_QUICK", "1")
    monkeypatch.chdir(tmp_path)

    demo.main()

    said = capsys.readouterr().out
    assert all(f"| {network} |" in said for network in demo.NETWORKS)
    assert re.search(r"accuracy [\d.]+% against [\d.]+% for the last exit", said)
    agreeing = re.search(r"agree on ([\d.]+)% of the images", said)
    assert float(agreeing[1]) >= 99
    assert (tmp_path / demo.FIGURE).read_bytes().startswith(b"\x89PNG")


def test_a_cache_that_cannot_be_written_ends_with_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EEUTILS_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("EEUTILS_QUICK", "1")

    with pytest.raises(SystemExit, match="error: cannot write"):
        demo.main()


def test_ctrl_c_ends_without_a_traceback(monkeypatch):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.Session, "from_environment", interrupt)

    with pytest.raises(SystemExit, match="130"):
        demo.main()
