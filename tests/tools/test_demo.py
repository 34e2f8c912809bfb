import re

from eeutils import notebook
from tools import demo


def test_demo_prints_accuracies_and_what_leaving_early_saves(monkeypatch, tmp_path, empty_cache, capsys):
    monkeypatch.setenv("EEUTILS_QUICK", "1")
    monkeypatch.setattr(notebook, "QUICK_EPOCHS", 1)
    monkeypatch.setattr(demo, "NETWORKS", ("resnet18-avg", "resnet18_3exits-spp"))
    monkeypatch.chdir(tmp_path)
    demo.main()
    said = capsys.readouterr().out
    assert all(f"| {network} |" in said for network in demo.NETWORKS)
    assert re.search(r"accuracy [\d.]+% against [\d.]+% for the last exit", said)
    assert re.search(r"\| torch \| [\d,]+ \| [\d,]+ \| [\d.]+ \|", said)
    assert float(re.search(r"agree on ([\d.]+)% of the images", said)[1]) >= 99
    assert (tmp_path / demo.FIGURE).read_bytes().startswith(b"\x89PNG")
