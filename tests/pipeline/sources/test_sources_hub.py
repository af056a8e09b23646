"""Data sets of the Hub by URL, over a local server that speaks its protocol, in a process of its own for each endpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from distil_cache.errors import UserError
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.discover import discover
from distil_cache.storage import to_path
from hub_parquet import class_label, images, write_shard
from hub_server import hub_of
from patience import PATIENCE
from remote_sources import picture

pytest.importorskip("huggingface_hub")

READ = """
import sys
from pathlib import Path
from distil_cache.errors import UserError
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.discover import discover
from distil_cache.storage import to_path
try:
    found = discover(to_path(sys.argv[1]))
    found.account.check()
    first = scan(found.files, memory=Path(sys.argv[2]))
    again = scan(found.files, memory=Path(sys.argv[2]))
    for row in first.rows:
        print(row.file.path, row.file.label, row.file.split, row.file.generator, row.key)
    print("opened", first.opened, again.opened)
except UserError as error:
    print("refused:", error)
"""


def read(source: str, folder: Path, endpoint: str, **environment: str) -> list[str]:
    """Discover and scan a source in a fresh process; returns what it says."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", READ, source, str(folder / "scan.parquet")],
        capture_output=True, text=True, check=False, timeout=PATIENCE, env={**os.environ, **settings},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data set as ``push_to_hub`` lays it out."""
    features = {
        "image": {"_type": "Image"},
        "label": class_label("FAKE", "REAL"),
        "generator": class_label("ADM", "Real"),
    }
    for number, split in enumerate(("train", "test")):
        columns = {
            "image": images([picture(2 * number), picture(2 * number + 1)]),
            "label": [0, 1],
            "generator": [0, 1],
        }
        write_shard(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet", columns, features)
    (tmp_path / "set" / "README.md").write_text("a card")
    return tmp_path / "set"


def test_a_data_set_of_the_hub_has_the_rows_of_its_files_here(dataset: Path, tmp_path: Path) -> None:
    here = scan(discover(dataset).files).rows
    expected = [f"{row.file.path} {row.file.label} {row.file.split} {row.file.generator} {row.key}" for row in here]
    with hub_of(dataset) as (endpoint, asked):
        said = read("hf://datasets/OWNER/NAME", tmp_path, endpoint)
        assert said == [*expected, "opened 4 0"]
        assert all("bytes=" in request for request in asked if "/resolve/" in request)
        one = read("hf://datasets/OWNER/NAME/data/test-00000-of-00001.parquet", tmp_path / "x", endpoint)
    assert [line.split(" ", 1)[1] for line in one[:2]] == [line.split(" ", 1)[1] for line in expected[:2]]


@pytest.mark.parametrize("url", ["hf://datasets/OWNER", "hf://OWNER/NAME", "hf://datasets/OW NER/NAME"])
def test_a_url_that_names_no_data_set_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="Write hf://datasets/OWNER/NAME"):
        discover(to_path(url))


def test_what_cannot_be_reached_or_is_not_there_is_one_sentence(dataset: Path, tmp_path: Path) -> None:
    with hub_of(dataset) as (endpoint, _):
        absent = read("hf://datasets/OWNER/OTHER", tmp_path, endpoint)
    gone = read("hf://datasets/OWNER/NAME", tmp_path, endpoint)
    offline = read("hf://datasets/OWNER/NAME", tmp_path, "https://huggingface.co", HF_HUB_OFFLINE="1")
    for said in (absent, gone, offline):
        assert len(said) == 1
        assert said[0].startswith("refused: hf://datasets/OWNER/")
    assert "not found" in absent[0]
