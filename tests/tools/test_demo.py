"""The demo, end to end on digits."""

import re

from tools import demo


def test_demo_prints_accuracies_and_what_leaving_early_saves(monkeypatch, tmp_path, empty_cache, capsys):
    monkeypatch.setenv("EEUTILS_QUICK", "1")
    monkeypatch.chdir(tmp_path)
    demo.main()
    said = capsys.readouterr().out
    assert all(f"| {network} |" in said for network in demo.NETWORKS)
    assert re.search(r"accuracy [\d.]+% against [\d.]+% for the last exit", said)
    assert re.search(r"\| torch \| [\d,]+ \| [\d,]+ \| [\d.]+ \|", said)
    agreeing = re.search(r"agree on ([\d.]+)% of the images", said)
    assert float(agreeing[1]) >= 99
    assert (tmp_path / demo.FIGURE).read_bytes().startswith(b"\x89PNG")
