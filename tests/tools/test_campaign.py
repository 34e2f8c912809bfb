import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eeutils.errors import IntegrityError
from tools.campaign import children
from tools.campaign.children import watched
from tools.campaign.formats import Format, _samples

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="children are measured by /proc")


@pytest.mark.slow  # half a minute on a core of its own; the tests of every format flip bits and cut files, too
@pytest.mark.timeout(900)
def test_campaign_of_seconds_finds_no_fault():
    command = [sys.executable, "-m", "tools.campaign", "--minutes", "0.05", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 30
    for kind, samples, equal, read, refused, faults, *_ in rows:
        assert int(samples) == int(equal) + int(read) + int(refused) > 0, kind
        assert int(faults) == 0, kind


TASKS = {
    "fine": lambda: "fine",
    "executed os.system": lambda: os.system("true"),
    "executed exec": lambda: eval("1"),
    "KeyError: 'x'": lambda: {}["x"],
    "died with -9": lambda: os.kill(os.getpid(), 9),
    "took 0.3 GB": lambda: str(len(b"x" * 300_000_000)),
    "died with -14": lambda: time.sleep(30),
}


def test_watched_names_what_each_task_did(monkeypatch):
    monkeypatch.setattr(children, "MOST_BYTES", 250_000_000)
    monkeypatch.setattr(children, "MOST_SECONDS", 1)
    assert [outcome.answer for outcome in watched([*TASKS.values(), lambda: "last"])] == [*TASKS, "last"]


def refuse_odd_numbers(path: Path) -> int:
    if path.read_bytes()[0] % 2:
        raise IntegrityError("odd")
    return 0 if path.read_bytes()[0] < 8 else 1


@pytest.mark.parametrize("checked", [True, False])
def test_campaign_samples_tell_refusals_from_silent_changes(tmp_path, checked):
    (tmp_path / "file").write_bytes(b"\x00")
    each = Format(tmp_path / "file", refuse_odd_numbers, checked=checked)
    change = lambda content, draw: bytes([draw.choice((2, 3, 8))])  # noqa: E731
    outcomes = _samples(each, b"\x00", 0, change, [random.Random(seed) for seed in range(20)])
    other = "a silent change" if checked else "read"
    assert {outcome.answer for outcome in outcomes} == {"equal", "refused", other}
    assert each.path.read_bytes() == b"\x00"
