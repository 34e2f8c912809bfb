"""What notebooks start with."""

import pytest
import torch

from eeutils.notebook import QUICK_WIDTH, Session, start
from eeutils.weights import default_registry


def test_quick_mode_is_asked_for_by_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("EEUTILS_QUICK", "1")
    session = start()

    assert session.quick
    assert session.data.name == "digits"
    assert "Quick mode" in capsys.readouterr().out

    monkeypatch.delenv("EEUTILS_QUICK")
    assert not start().quick


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    start()

    said = capsys.readouterr().out
    assert "no GPU: fine" in said
    assert "T4 GPU" in said


def test_quick_networks_are_trained_once_and_kept(empty_cache):
    first = Session(quick=True).network("resnet18_2exits-spp")
    again = Session(quick=True)

    kept = list(empty_cache.rglob("*.pt"))
    assert [path.name for path in kept] == [f"resnet18_2exits-spp-digits-w{QUICK_WIDTH}.pt"]
    written = kept[0].stat().st_mtime_ns
    second = again.network("resnet18_2exits-spp")
    assert kept[0].stat().st_mtime_ns == written
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert len(again.history("resnet18_2exits-spp").rows) == 6
    assert again.evaluation("resnet18_2exits-spp").test.num_exits == 2


def test_the_widest_trained_network_stands_for_its_kind():
    trained = [entry for entry in default_registry().entries if entry.status == "trained"]
    if not trained:
        pytest.skip("no weights are shipped")
    entry = trained[0]
    kind = f"{entry.model}-{entry.model_args.get('pool')}"

    name = Session(quick=False).weights_name(kind)

    same_kind = [each for each in trained if f"{each.model}-{each.model_args.get('pool')}" == kind]
    assert name in [each.name for each in same_kind]
    widths = {each.name: each.model_args["width"] for each in same_kind}
    assert widths[name] == max(widths.values())


def test_early_exits_trained_alone_stand_on_the_plain_network(empty_cache):
    session = Session(quick=True)

    plain = session.network("resnet18-avg").state_dict()
    sdn = session.network("resnet18_sdn-mixed-ic_only")

    assert sdn.num_exits == 7
    same = [torch.equal(tensor, sdn.state_dict()[name]) for name, tensor in plain.items()]
    assert all(same)
    assert len(same) == len(plain) > 0


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"'resnet99-avg'; see eeutils\.weights\.weights_table\(\)"):
        Session(quick=False).weights_name("resnet99-avg")
