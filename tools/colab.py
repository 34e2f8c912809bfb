"""Install what the notebooks need into Colab's Python: `python tools/colab.py` in a sparse clone.

Only packages that are missing or too old are installed; torch, torchvision and numpy stay as they are.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

KEPT = ("torch", "torchvision", "numpy")
PROJECT = Path(__file__).resolve().parents[1]


def missing(requirements: list[str]) -> list[str]:
    """Requirements ("name>=1.2") that are not installed or too old, without `KEPT`."""
    return [each for each in requirements if _name(each) not in KEPT and not _is_met(each)]


def kept() -> list[str]:
    """Constraints that keep the installed versions of `KEPT`."""
    return [f"{name}=={version}" for name in KEPT if (version := _installed(name))]


def main() -> None:
    """Install what is missing, then the project itself, and say what was done."""
    before = kept()
    wanted = missing(tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"])
    print("Installing", ", ".join(map(_name, wanted)) or "nothing", "beside", ", ".join(before))
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        print(*before, sep="\n", file=constraints, flush=True)
        if wanted:
            subprocess.run([*pip, "--constraint", constraints.name, *wanted], check=True)
        subprocess.run([*pip, "--no-deps", "--editable", str(PROJECT)], check=True)
    if kept() != before:
        sys.exit(f"error: {', '.join(KEPT)} must stay {before}, got {kept()}; restart the runtime and try again")


def _name(requirement: str) -> str:
    return re.split(r"[^\w-]", requirement)[0]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_met(requirement: str) -> bool:
    installed, wanted = _installed(_name(requirement)), requirement.partition(">=")[2]
    return installed is not None and _numbers(installed) >= _numbers(wanted)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


if __name__ == "__main__":
    main()
