"""Reports of benchmarks: their place, and the pages that show them."""

import pytest

from tools.benchmarks import report
from tools.benchmarks.report import publish, report_path


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_report_path_keeps_gpus_apart(results):
    assert report_path("speed", "cpu") == results / "speed.md"
    assert report_path("speed", "cuda:1") == results / "speed-cuda.md"


def test_publish_refreshes_pages_after_results_alone(results, tmp_path, monkeypatch, capsys):
    refreshed = []
    monkeypatch.setattr(report, "refresh_pages", lambda: refreshed.append((results / "speed.md").read_text("utf-8")))
    monkeypatch.chdir(tmp_path)

    publish("not this", tmp_path / "elsewhere" / "speed.md")
    assert refreshed == []

    publish("± 2 µs", results / "speed.md")
    publish("± 3 µs", (results / "speed.md").relative_to(tmp_path))
    assert refreshed == ["± 2 µs", "± 3 µs"]
    assert (tmp_path / "elsewhere" / "speed.md").read_text("utf-8") == "not this"
    assert capsys.readouterr().out == "not this\n± 2 µs\n± 3 µs\n"
