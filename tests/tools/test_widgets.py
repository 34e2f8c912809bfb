import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from tests.toys import free_port, wait_for

CHROMIUM = shutil.which("chromium")
browser_driver = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's Chromium: apt-get install chromium"),
    pytest.mark.timeout(900),
]

FOLDER = Path(__file__).parents[2] / "notebooks"
WITH_CONTROLS = [path for path in sorted(FOLDER.glob("*.ipynb")) if "explore(" in path.read_text("utf-8")]
PATIENCE_MS = 240_000  # on a busy machine a kernel takes long to import torch


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and folder of a JupyterLab that runs notebooks in quick mode."""
    folder = tmp_path_factory.mktemp("lab")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    options = [f"--port={port}", f"--ServerApp.root_dir={folder}", "--IdentityProvider.token=", "--no-browser"]
    settings = {"EEUTILS_QUICK": "1", "EEUTILS_CACHE": str(folder / "cache"), "JUPYTER_CONFIG_DIR": str(folder / "etc")}
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"} | settings
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", *options]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(f"{address}/api", server)
            yield address, folder
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with browser_driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def up_to_its_controls(path: Path) -> nbformat.NotebookNode:
    """The notebook's code up to the cell that makes the controls, without outputs."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    last = next(index for index, cell in enumerate(cells) if "explore(" in cell.source)
    notebook.cells = cells[: last + 1]
    for cell in notebook.cells:
        cell.outputs, cell.execution_count = [], None
    return notebook


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path != WITH_CONTROLS[0])) for path in WITH_CONTROLS],
)
def test_explore_changes_the_figure_with_every_control(path, lab, browser):
    address, folder = lab
    nbformat.write(up_to_its_controls(path), folder / path.name)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{address}/lab/tree/{path.name}?reset")
    page.get_by_text("| Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    figure = page.locator("img.jupyter-widgets")
    figure.wait_for()

    controls = page.locator(".widget-dropdown select, .widget-slider .noUi-handle")
    assert controls.count() > 0
    for number in range(controls.count()):
        before, control = figure.get_attribute("src"), controls.nth(number)
        pixels = figure.screenshot()
        if control.evaluate("control => control.tagName") == "SELECT":
            control.select_option(index=1)
        else:
            control.press("PageUp")
        page.wait_for_function("([image, before]) => image.src != before", arg=[figure.element_handle(), before])
        page.wait_for_timeout(500)
        assert figure.screenshot() != pixels
    page.close()
