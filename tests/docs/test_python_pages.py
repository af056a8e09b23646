"""The Python page's example and the notebook are executed, and the page names what there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import distil_cache as dc
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "reference" / "python.md"


def _run(code: str, folder: Path) -> str:
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind, grain in (("real", 12), ("fake", 2)):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(16):
            pixels = (rng.integers(60, 200, 3) + rng.normal(0, grain, (40, 40, 3))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / kind / f"{number}.png")
    (example, *_) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    shown = _run(example, tmp_path)
    assert shown.startswith("32 images, 32 ADM calls")
    assert shown.endswith("report/report.html\n")


def test_the_page_names_every_public_name() -> None:
    text = PAGE.read_text()
    assert [name for name in dc.__all__ if name not in text and name != "__version__"] == []


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_in_one_process(tmp_path: Path) -> None:
    content = json.loads((DOCS / "notebook.ipynb").read_text())
    assert all(cell["outputs"] == [] for cell in content["cells"] if cell["cell_type"] == "code")
    code = "\n".join("".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code")
    redirected = f"import tempfile\ntempfile.tempdir = {str(tmp_path)!r}\n"
    shown = _run(redirected + code, tmp_path)
    assert "{'image': 72, 'eps': 72} then {'image': 0, 'eps': 0}" in shown
    assert shown.endswith("report/report.html\n")
