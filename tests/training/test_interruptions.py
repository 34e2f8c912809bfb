import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eeutils.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials fork")


def trial(action: str, folder: Path, seed: int = 0) -> dict:
    """Run one of trials.py and return its report."""
    command = [sys.executable, Path(__file__).with_name("trials.py"), action, folder, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "{}")


def results(folder: Path) -> list[dict]:
    """The history without what depends on the clock."""
    rows = json.loads((folder / "history.json").read_text())
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def visible_or_not_empty(folder: Path) -> set[str]:
    """Names of files; the empty file of a lock does not count."""
    return {file.name for file in folder.iterdir() if file.is_dir() or file.stat().st_size}


def test_fit_killed_again_and_again_ends_with_the_weights_of_an_undisturbed_run(tmp_path):
    seed = secrets.randbits(32)
    report = trial("killed", tmp_path / "killed", seed)
    print(f"seed {seed}: {report}")
    assert report["places"][0] == [1, 0]  # the half-written checkpoint of epoch 2 has not replaced that of epoch 1
    assert report["places"] == sorted(report["places"])
    assert set(report["ends"]) <= {0, -9, -15, 143}
    ours, expected = (load_file(tmp_path / name / "weights.safetensors") for name in ("killed", "undisturbed"))
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")
    assert visible_or_not_empty(tmp_path / "killed") == {"checkpoint.pt", "weights.safetensors", "history.json"}


def test_fit_on_a_full_disk_keeps_the_earlier_checkpoint(tmp_path):
    report = trial("full_disk", tmp_path)
    assert f"cannot write {tmp_path}" in report["error"]
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1
    assert visible_or_not_empty(tmp_path) == {"checkpoint.pt"}
