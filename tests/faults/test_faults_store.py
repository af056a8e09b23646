"""Compactions and collections of a cache on S3, killed at a request: nothing that is needed is lost, and another run ends the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE
from s3_server import point_at

if TYPE_CHECKING:
    from faulty_proxy import FaultyProxy

SUPPORT = Path(__file__).parents[1] / "support"


def test_a_collection_killed_between_a_copy_and_a_deletion_loses_nothing_and_the_next_one_ends_it(
    s3_server: str, s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fault_store_kills import WRITING, Server, kill, scenarios

    point_at(s3_server, monkeypatch)
    collection = list(scenarios(tmp_path, "webdataset"))[1]
    server = Server(s3_server, s3_proxy)
    killed = kill(collection, server, f"killed-{os.getpid()}", method=WRITING, at=9, moment="after")
    assert killed == {"work": "gc", "at": 9, "moment": "after", "request": "PUT removal", "killed": True, "wrong": []}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zarr", "webdataset"])
def test_compactions_and_collections_killed_at_any_request_lose_nothing(
    s3_server: str, tmp_path: Path, form: str
) -> None:
    command = [sys.executable, str(SUPPORT / "fault_store_kills.py"), str(tmp_path), form, "4", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kill for kill in kills if kill["wrong"]] == []
    reached = Counter((kill["work"], kill["moment"]) for kill in kills if kill["killed"])
    assert {(work, moment): reached[work, moment] for work in ("compact", "gc") for moment in ("before", "after")} == {
        ("compact", "before"): 8, ("compact", "after"): 8, ("gc", "before"): 8, ("gc", "after"): 8,
    }  # fmt: skip
