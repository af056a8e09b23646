"""Features as webdataset streams them: the tar shards of a cache, and the tars of an export."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Literal

import distil_cache as dc
import numpy as np
import pytest
from distil_cache.cache.export.webdataset import export_build
from plain_cache import SIDE, Eps, Picture, make_cache, rows, write_cache

TABLE = [*rows("train", 50, {"adm": 50}), *rows("test", 5, {"adm": 5})]
TABLE.append({**TABLE[0], "path": "again.png"})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tars") / "cache"
    make_cache(root, TABLE, form="webdataset")
    return root


@pytest.fixture(scope="module")
def export(root: Path) -> Path:
    out = root.parent / "export"
    export_build(dc.open(root).store, out, dataset="pictures", samples_per_shard=40)
    return out


def _check(data: dc.DatasetView, samples: list[dict[str, object]], *features: str) -> None:
    """Each row once, with the values that the cache's own reader gives."""
    assert sorted(sample["__row__"] for sample in samples) == list(range(len(data)))
    for name in features:
        expected = data.feature(name).numpy()
        for sample in samples:
            assert np.array_equal(sample[f"{name}.npy"], expected[sample["__row__"]])
    for sample in samples:
        row = data.table.slice(sample["__row__"], 1).to_pylist()[0]
        assert sample["json"] == {name: row[name] for name in sample["json"]}
        assert str(sample["__key__"]).startswith(row["key"])


def test_the_tar_shards_of_several_features_are_joined(root: Path) -> None:
    data = dc.open(root).dataset("pictures").split("train")
    _check(data, list(data.to_webdataset("image", "eps", "teacher")), "image", "eps", "teacher")


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_tars_of_rounded_rows_give_the_float16_that_the_cache_reads(
    tmp_path: Path, storage: Literal["int8", "int4"]
) -> None:
    class Rounded(Eps):
        storage: Literal["int8", "int4"]

    def value_of(feature: str, key: str, label: int) -> np.ndarray:
        rng = np.random.default_rng(int(key[:12], 16))
        return (
            rng.normal(size=(3, SIDE, SIDE)).astype(np.float16) if feature == "eps" else np.zeros((3, 1, 1), np.uint8)
        )

    specs = {"image": Picture(), "eps": Rounded(storage=storage)}
    everywhere = {name: ["train", "test"] for name in specs}
    write_cache(tmp_path / "cache", TABLE, specs, value_of, features=everywhere, form="webdataset")
    data = dc.open(tmp_path / "cache").dataset("pictures").split("test")
    samples = list(data.to_webdataset("image", "eps"))
    assert {sample["eps.npy"].dtype.name for sample in samples} == {"float16"}
    _check(data, samples, "image", "eps")


def test_rows_that_were_not_selected_are_left_out(root: Path) -> None:
    data = dc.open(root).dataset("pictures")
    part = data.split("train").select("generator=adm")
    _check(part, list(part.feature("eps").to_webdataset()), "eps")


def test_shards_of_other_rows_are_joined_by_key(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", TABLE, form="webdataset", shard_rows=16, features={"image": ["train", "test"]})
    make_cache(tmp_path / "cache", TABLE, form="webdataset", features={"image": ["train"], "eps": ["train"]})
    data = dc.open(tmp_path / "cache").dataset("pictures").split("train")
    _check(data, list(data.to_webdataset("image", "eps")), "image", "eps")
    _check(data, list(data.to_webdataset("eps", "image")), "image", "eps")


def test_an_export_is_streamed_as_the_cache(root: Path, export: Path) -> None:
    data = dc.open(root).dataset("pictures").split("train")
    _check(data, list(data.to_webdataset("image", "teacher", export=export)), "image", "teacher")


def test_a_pipeline_takes_webdatasets_own_stages(root: Path) -> None:
    data = dc.open(root).dataset("pictures").split("test")
    batches = list(data.to_webdataset("eps").shuffle(5).to_tuple("eps.npy", "json").batched(4, collation_fn=list))
    assert [len(batch) for batch in batches] == [4, 4, 2]


def test_zarr_shards_are_refused_with_what_to_do(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", TABLE)
    with pytest.raises(dc.UserError, match=r"holds zarr shards.*--format webdataset.*cache export, and name that"):
        dc.open(tmp_path / "cache").dataset("pictures").feature("eps").to_webdataset()


def test_a_tar_that_is_not_what_its_marker_says_is_damage(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", TABLE, form="webdataset")
    eps = dc.open(tmp_path / "cache").dataset("pictures").split("test").feature("eps")
    marker = next(one for one in eps.store.markers() if eps.keys[0] in one.keys)
    path = eps.store.shards / marker.data
    content = bytearray(path.read_bytes())
    content[:4] = b"pipe"
    path.write_bytes(content)
    with pytest.raises(dc.IntegrityError, match=r"is not the member"):
        list(eps.to_webdataset())


def test_another_export_is_refused(root: Path, export: Path, tmp_path: Path) -> None:
    data = dc.open(root).dataset("pictures")
    with pytest.raises(dc.UserError, match=r"is no export that can be read"):
        data.to_webdataset("eps", export=tmp_path)
    about = json.loads((export / "specs.json").read_text())
    for field, value, message in (
        ("revision", "0" * 16, "of the revision 0000000000000000"),
        ("splits", {}, "has no eps for the split test"),
        ("features", {}, "its eps was built with other settings"),
    ):
        (tmp_path / "specs.json").write_text(json.dumps({**about, field: value}))
        with pytest.raises(dc.UserError, match=message):
            data.to_webdataset("eps", export=tmp_path)
    about["splits"]["test"]["tars"] = ["pipe:true"]
    (tmp_path / "specs.json").write_text(json.dumps(about))
    with pytest.raises(dc.UserError, match=r"'pipe:true' is no name of a tar"):
        data.to_webdataset("eps", export=tmp_path)


@pytest.mark.parametrize("kind", ["compressed", "link", "pickle"])
def test_what_no_export_writes_is_refused_before_it_is_decoded(
    root: Path, export: Path, tmp_path: Path, kind: str
) -> None:
    data = dc.open(root).dataset("pictures").split("test")
    (tmp_path / "specs.json").write_bytes((export / "specs.json").read_bytes())
    (name,) = json.loads((export / "specs.json").read_text())["splits"]["test"]["tars"]
    if kind == "compressed":
        (tmp_path / name).write_bytes(gzip.compress((export / name).read_bytes()))
    else:
        with tarfile.open(tmp_path / name, "w") as tar:
            columns = json.dumps(
                data.table.select(("key", "label", "split", "generator", "family", "group")).to_pylist()[0]
            )
            content = io.BytesIO()
            np.save(content, np.array([object()]), allow_pickle=True)
            for suffix, value in (("json", columns.encode()), ("eps.npy", content.getvalue())):
                info = tarfile.TarInfo(f"{data.keys[0]}.{suffix}")
                info.size = len(value)
                if kind == "link" and suffix == "eps.npy":
                    info.type, info.size, info.linkname = tarfile.SYMTYPE, 0, "/etc/passwd"
                tar.addfile(info, io.BytesIO(value))
    with pytest.raises(dc.IntegrityError, match=r"cannot be read as a tar|is not one that an export|no array eps"):
        list(data.to_webdataset("eps", export=tmp_path))
