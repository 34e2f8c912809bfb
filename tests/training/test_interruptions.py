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
    """Run one of trials.py; returns what it reports."""
    command = [sys.executable, Path(__file__).with_name("trials.py"), action, folder, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "{}")


def results(folder: Path) -> list[dict]:
    """The history without what depends on the clock."""
    rows = json.loads((folder / "history.json").read_text())
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def test_a_run_killed_again_and_again_ends_with_the_very_weights_of_an_undisturbed_one(tmp_path):
    seed = secrets.randbits(32)
    report = trial("killed", tmp_path / "killed", seed)
    print(f"seed {seed}: {report}")
    assert report["epochs"][0] == 1  # the half-written checkpoint of epoch 2 has not taken the place of epoch 1's
    assert report["epochs"] == sorted(report["epochs"])
    ours, expected = (load_file(tmp_path / name / "weights.safetensors") for name in ("killed", "undisturbed"))
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")


def test_a_full_disk_stops_the_run_and_leaves_the_earlier_checkpoint(tmp_path):
    report = trial("full_disk", tmp_path)
    assert "cannot write" in report["error"]
    assert "Free some space" in report["error"]
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
