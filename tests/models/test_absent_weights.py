"""What is said of weights that would have to be downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from distil_cache.models.download import AbsentWeightsError, WeightsFile, announcement, download, no_downloads

FILE = WeightsFile("net.pt", "https://example.org/net.pt?signature=secret", bytes=2_211_383_297)


def test_a_download_is_announced_with_its_size_its_two_places_and_the_way_without(tmp_path: Path) -> None:
    said = announcement(FILE, tmp_path)
    assert "net.pt (2,211 MB) from https://example.org/net.pt to" in said
    assert f"put it at {tmp_path / 'net.pt'}." in said
    assert "--profile small needs no download" in said
    assert "secret" not in said


def test_where_downloads_are_forbidden_only_a_file_that_is_here_is_used(tmp_path: Path) -> None:
    with no_downloads():
        with pytest.raises(AbsentWeightsError, match=r"not here yet: net\.pt"):
            download(FILE, tmp_path / "weights")
        assert not (tmp_path / "weights").exists()
        (tmp_path / "plain.pt").write_bytes(b"x")
        assert download(WeightsFile("plain.pt", FILE.url), tmp_path) == tmp_path / "plain.pt"
