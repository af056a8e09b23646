"""A build as webdataset tars: what is in them, in which order, and that they appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from distil_cache.cache.export.webdataset import BLOCK_ROWS, POOL_BLOCKS, Occurrence, export_build, group_by_split
from distil_cache.cache.gather import gather
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.store import Cache
from distil_cache.errors import IntegrityError, UsageError, UserError
from distil_cache.storage.locks import FolderLock
from fault_injection import signalled_at
from hypothesis import given
from hypothesis import strategies as st
from plain_cache import make_cache, rows
from recorded_progress import Recorded

TEACHER = ("image", "eps", "dire", "teacher")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, BuildRecord]:
    """Twelve training samples, one of them twice, and four test samples without a teacher."""
    table = [*rows("train", 6, {"sd14": 6}), *rows("test", 2, {"adm": 2})]
    return make_cache(tmp_path_factory.mktemp("c") / "cache", [*table, {**table[3], "path": "twice.png"}], shard_rows=5)


def members(folder: Path, split: str) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                assert (info.mtime, info.uid, info.gid, info.uname) == (0, 0, 0, "")
                content = tar.extractfile(info)
                assert content is not None
                assert info.name not in found
                found[info.name] = content.read()
    return found


def arrays(built: tuple[Cache, BuildRecord], feature: str, keys: list[str]) -> np.ndarray:
    return gather(built[0].open_feature(built[1].features[feature].folder), keys)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_every_sample_is_there_once_with_the_cached_rows_and_what_the_dataset_says(
    built: tuple[Cache, BuildRecord], tmp_path: Path
) -> None:
    progress = Recorded()
    result = export_build(built[0], tmp_path / "out", dataset="pictures", samples_per_shard=4, progress=progress)
    exported = sum(split["samples"] for split in result["splits"].values())
    assert (progress.totals, progress.done) == ({"export": exported}, {"export": exported})
    assert result["splits"]["train"]["tars"] == [f"train-{n:06d}.tar" for n in range(4)]
    assert result["splits"]["test"]["features"] == ["image", "eps", "dire"]
    found = members(tmp_path / "out", "train")
    said = [json.loads(data) for name, data in found.items() if name.endswith(".json")]
    names = [name.removesuffix(".json") for name in found if name.endswith(".json")]
    assert len(said) == 13
    assert len({entry["key"] for entry in said}) == 12
    for feature in TEACHER:
        expected = arrays(built, feature, [entry["key"] for entry in said])
        for name, row in zip(names, expected, strict=True):
            with (tmp_path / "x.npy").open("wb") as file:
                file.write(found[f"{name}.{feature}.npy"])
            loaded = np.load(tmp_path / "x.npy", allow_pickle=False)
            assert (loaded.dtype, loaded.shape) == (row.dtype, row.shape)
            assert (loaded == row).all()
    fakes = [entry for entry in said if entry["label"]]
    assert {(e["split"], e["generator"], e["family"], e["group"]) for e in fakes} == {
        ("train", "sd14", "diffusion", "scenes")
    }


def test_the_webdataset_package_reads_it_as_the_readme_says(
    built: tuple[Cache, BuildRecord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export_build(built[0], tmp_path / "out", build=built[1].id, splits=["train"], samples_per_shard=5)
    dataset = webdataset.WebDataset(f"{tmp_path}/out/train-{{000000..000002}}.tar", shardshuffle=False).decode()
    samples = list(dataset)
    assert len(samples) == 13
    for sample in samples:
        assert (sample["image.npy"] == arrays(built, "image", [sample["json"]["key"]])[0]).all()
        assert sample["__key__"].startswith(sample["json"]["key"])
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    exec(code, {})
    assert "[(3, 32, 32), (3, 32, 32), (3, 32, 32), (2, 128, 4, 4)]" in capsys.readouterr().out


def test_the_seed_decides_every_byte_whatever_the_shards_of_the_cache(tmp_path: Path) -> None:
    table = rows("train", 150, {"sd14": 150})
    features = {"image": ["train"]}
    for name, shard_rows in (("a", 20), ("b", 300)):
        cache, record = make_cache(tmp_path / name, table, features=features, shard_rows=shard_rows)
        export_build(cache, tmp_path / f"out-{name}", build=record.id, samples_per_shard=100, seed=1)
    export_build(cache, tmp_path / "other", build=record.id, samples_per_shard=100, seed=2)
    one, two, other = (digests(tmp_path / name) for name in ("out-a", "out-b", "other"))
    tars = [name for name in one if name.endswith(".tar")]
    assert len(tars) == 3
    assert [one[name] for name in tars] == [two[name] for name in tars]
    assert all(one[name] != other[name] for name in tars)


@given(count=st.integers(1, 700), seed=st.integers(0, 5))
def test_a_pool_is_a_few_blocks_of_neighbours_and_every_row_comes_once(count: int, seed: int) -> None:
    given_rows = [Occurrence(f"{n:05d}", f"{n:05d}", 0, "train", "", "", "") for n in range(count)]
    found = list(group_by_split(given_rows, seed))
    assert sorted(row for pool in found for row in pool) == given_rows
    for pool in found:
        blocks = {int(row.key) // BLOCK_ROWS for row in pool}
        assert len(blocks) <= POOL_BLOCKS
        assert len(pool) <= BLOCK_ROWS * POOL_BLOCKS


def test_checksums_specs_and_readme_describe_the_files(built: tuple[Cache, BuildRecord], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_build(built[0], out, build=built[1].id)
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: digest for name, digest in digests(out).items() if name != "SHA256SUMS"}
    assert set(sums) == {"README.md", "specs.json", "train-000000.tar", "test-000000.tar"}
    specs = json.loads((out / "specs.json").read_text())
    assert specs["features"]["teacher"]["fingerprint"] == built[1].features["teacher"].fingerprint
    assert specs["features"]["eps"]["dtype"] == "float16"
    readme = (out / "README.md").read_text()
    assert "| image | uint8 | 3 x 32 x 32 | " in readme
    assert "steps ddim20" in readme


def test_just_the_asked_features_and_splits(built: tuple[Cache, BuildRecord], tmp_path: Path) -> None:
    export_build(built[0], tmp_path / "out", build=built[1].id, features=["image", "teacher"], splits=["train"])
    kinds = {name.partition(".")[2] for name in members(tmp_path / "out", "train")}
    assert kinds == {"image.npy", "teacher.npy", "json"}
    assert not list((tmp_path / "out").glob("test-*"))


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"features": ["teacher"], "splits": ["test"]}, UserError, "has no teacher for split test"),
        ({"splits": ["val"]}, UserError, "has no split 'val', only test, train"),
        ({"build": None}, UsageError, "either --build ID or --dataset"),
        ({"samples_per_shard": 0}, UsageError, "--samples-per-shard 0"),
        ({"build": "0" * 16}, UserError, "has no build 0000"),
    ],
)
def test_what_the_build_lacks_is_one_sentence_and_leaves_nothing(
    built: tuple[Cache, BuildRecord], tmp_path: Path, change: dict[str, Any], kind: type[UserError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        export_build(built[0], tmp_path / "out", **{"build": built[1].id, **change})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over_and_nothing_into_the_cache(built: tuple[Cache, BuildRecord], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(UserError, match="full: is not empty"):
        export_build(built[0], tmp_path / "full", build=built[1].id)
    with pytest.raises(UsageError, match="inside the cache"):
        export_build(built[0], built[0].root / "out", build=built[1].id)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "train-000000.tar").write_text("left by an export")
    (tmp_path / "out.partial" / "mine").write_text("x")
    with pytest.raises(UserError, match=r"has files that no export wrote \(mine\)"):
        export_build(built[0], tmp_path / "out", build=built[1].id)
    assert sorted(path.name for path in (tmp_path / "out.partial").iterdir()) == ["mine", "train-000000.tar"]
    (tmp_path / "linked.partial").symlink_to(tmp_path / "full")
    with pytest.raises(UserError, match="is in the way"):
        export_build(built[0], tmp_path / "linked", build=built[1].id)
    (tmp_path / "busy.partial").mkdir()
    with FolderLock(tmp_path / "busy.partial", ""), pytest.raises(UserError, match="another export is writing it"):
        export_build(built[0], tmp_path / "busy", build=built[1].id)
    (tmp_path / "empty").mkdir()
    export_build(built[0], tmp_path / "empty", build=built[1].id)
    assert (tmp_path / "empty" / "README.md").is_file()
    assert (tmp_path / "full" / "mine").read_text() == "x"


def test_a_strange_cache_cannot_name_files_outside_the_folder(tmp_path: Path) -> None:
    table = [{**row, "split": "../../train"} for row in rows("train", 2, {"sd14": 2})]
    cache, record = make_cache(tmp_path / "cache", table, features={"image": ["../../train"]})
    with pytest.raises(IntegrityError, match="not a valid name of a split"):
        export_build(cache, tmp_path / "a" / "b" / "out", build=record.id)
    assert [path.name for path in tmp_path.rglob("*.tar")] == []


def test_a_dataset_with_two_builds_asks_which(tmp_path: Path) -> None:
    table = rows("train", 3, {"sd14": 3})
    for steps in ("ddim20", "ddim10"):
        cache, _ = make_cache(tmp_path / "cache", table, steps=steps)
    with pytest.raises(UserError, match=r"has several builds\. Choose one:\n  --build [0-9a-f]{16}  .*\n  --build "):
        export_build(cache, tmp_path / "out", dataset="pictures")
    newest = cache.builds().all()[-1].id
    assert export_build(cache, tmp_path / "out", dataset="pictures", build=newest)["build"] == newest
    with pytest.raises(UsageError, match="is a build of pictures, not of others"):
        export_build(cache, tmp_path / "other", dataset="others", build=newest)


def test_a_killed_export_leaves_no_folder_of_the_asked_name_and_the_next_one_takes_over(tmp_path: Path) -> None:
    cache, record = make_cache(tmp_path / "cache", rows("train", 400, {"sd14": 400}), features={"image": ["train"]})
    code = (
        "import sys; from pathlib import Path; from distil_cache.cache.store import Cache\n"
        "from distil_cache.cache.export.webdataset import export_build\n"
        "export_build(Cache.open(sys.argv[1]), Path(sys.argv[2]), build=sys.argv[3], samples_per_shard=50)"
    )
    dying = signalled_at("open", "*/out.partial/train-000001.tar*", signal.SIGKILL)
    command = [sys.executable, "-c", dying + code, str(cache.root), str(tmp_path / "out"), record.id]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").is_dir()
    export_build(cache, tmp_path / "out", build=record.id, samples_per_shard=50)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 16
    assert not (tmp_path / "out.partial").exists()
