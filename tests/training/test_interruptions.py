import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def results(folder: Path) -> list[dict]:
    """The history without what depends on the clock."""
    rows = json.loads((folder / "history.json").read_text())
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials fork")
def test_fit_killed_again_and_again_ends_with_the_weights_of_an_undisturbed_run(tmp_path):
    seed = secrets.randbits(32)
    command = [sys.executable, Path(__file__).with_name("trials.py"), tmp_path, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(f"seed {seed}: {report}")
    assert report["places"] == sorted(report["places"])
    assert set(report["ends"]) <= {0, -9, -15, 143}
    ours, expected = (load_file(tmp_path / name / "weights.safetensors") for name in ("killed", "undisturbed"))
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")
    left = {file.name for file in (tmp_path / "killed").iterdir() if file.stat().st_size}  # the file of a lock is empty
    assert left == {"checkpoint.pt", "weights.safetensors", "history.json"}
