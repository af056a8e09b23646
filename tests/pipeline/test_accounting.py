"""What a build says of its sources: where every file went, how the images are distributed, and what one class means."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.records.sources import SourceRecords, parse_sources
from distil_cache.cache.store import Cache
from distil_cache.cli import app
from distil_cache.errors import IntegrityError, UsageError, UserError
from distil_cache.pipeline.audit.run import run_audit
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig, build_requests
from distil_cache.progress import Silent
from image_bytes import noise, saved
from small_models import write_adm
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def adm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adm(tmp_path_factory.mktemp("adm") / "adm.safetensors")


def picture(seed: int) -> bytes:
    return saved(noise(20, 24, seed))


def written(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def built(adm: Path, cache: Path, *, dry_run: bool = False, **settings: Any) -> dict[str, Any]:
    values = {"cache": cache, "dataset": "d", "adm": str(adm), "features": ("image",), "device": "cpu"}
    return run_build(BuildConfig.checked(**{**values, **settings}), Silent(), dry_run=dry_run)


def strange(root: Path) -> Path:
    """A source with used, rejected, leaked, uncovered and hidden files, and others."""
    files = {f"train/real/{n}.png": picture(n) for n in range(3)} | {
        f"train/fake/{n}.png": picture(9 + n) for n in range(3)
    }
    files |= {"test/fake/again.png": picture(9), "test/fake/note.txt": b"x", "test/real/.x.png": picture(1)}
    files |= {"train/masks/m.png": picture(20), "train/fake/both.png": picture(0)}
    files |= {"train/real/cut.png": picture(30)[:900]}  # its header is whole, so only the decoder finds out
    files |= {"train/real/none.png": b"nothing"}
    return written(root, files)


def test_a_build_accounts_for_every_file_and_keeps_the_account(adm: Path, tmp_path: Path) -> None:
    source = strange(tmp_path / "s")
    result = built(adm, tmp_path / "c", sources=(source,))
    (account,) = result["sources"]
    assert (account["source"], account["layout"]) == (str(source), "real-fake")
    assert account["files"] == sum(path.is_file() for path in source.rglob("*")) == 13
    assert account["rejected"] == {"label-conflict": 2, "not-an-image": 1, "truncated": 1}
    assert [account[name] for name in ("images", "used", "leaked", "not_images", "hidden")] == [10, 5, 1, 1, 1]
    assert account["used"] == result["occurrences"]
    assert [(entry["folder"], entry["example"]) for entry in account["uncovered"]] == [
        ("train/masks", "train/masks/m.png")
    ]
    assert "1 image in train/masks/ (such as train/masks/m.png) is not used" in result["warnings"][0]
    assert result["counts"] == [
        {"split": "test", "label": 1, "generator": "fake", "images": 1},
        {"split": "train", "label": 0, "generator": "real", "images": 2},
        {"split": "train", "label": 1, "generator": "fake", "images": 2},
    ]
    cache = Cache.open(tmp_path / "c")
    stored = cache.datasets().sources("d")
    assert stored is not None
    assert [record.model_dump(mode="json") for record in stored.sources] == result["sources"]
    assert list(verify(cache)) == []


def test_a_dry_run_after_a_build_names_the_rejects_of_the_build(adm: Path, tmp_path: Path) -> None:
    source = strange(tmp_path / "s")
    before = built(adm, tmp_path / "c", sources=(source,), dry_run=True)
    result = built(adm, tmp_path / "c", sources=(source,))
    after = built(adm, tmp_path / "c", sources=(source,), dry_run=True)
    assert {reject["reason"] for reject in result["rejects"]} - {r["reason"] for r in before["rejects"]} == {
        "truncated"
    }
    for name in ("rejects", "rejected", "sources", "counts", "warnings", "samples", "occurrences"):
        assert after[name] == result[name], name


def test_several_sources_are_accounted_for_one_by_one(adm: Path, tmp_path: Path) -> None:
    one = written(tmp_path / "one", {"real/a.png": picture(1), "fake/b.png": picture(2), "fake/c.png": b"x"})
    two = written(tmp_path / "two", {"test/real/a.png": picture(3), "test/fake/b.png": picture(2), "x.png": picture(4)})
    result = built(adm, tmp_path / "c", sources=(one, two, one))
    assert [(s["used"], sum(s["rejected"].values()), s["leaked"]) for s in result["sources"]] == [
        (1, 1, 1),
        (2, 0, 0),
        (1, 1, 1),
    ]
    assert [len(s["uncovered"]) for s in result["sources"]] == [0, 1, 0]


def test_revisions_without_accounts_open_and_a_damaged_account_is_found(adm: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "s", {"real/a.png": picture(1), "fake/b.png": picture(2)})
    revision = built(adm, tmp_path / "c", sources=(source,))["revision"]
    cache = Cache.open(tmp_path / "c")
    path = tmp_path / "c" / "datasets" / "d" / f"{revision}.sources.json"
    whole = path.read_bytes()
    for damaged in (b"[]", whole.replace(b'"used": 2', b'"used": 3'), whole.replace(b'"hidden"', b'"hiding"')):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="is not a valid account of sources"):
            cache.datasets().sources("d")
        assert any(path.name in str(problem.path) for problem in verify(cache))
    path.unlink()
    assert cache.datasets().sources("d") is None
    assert list(verify(cache)) == []
    assert built(adm, tmp_path / "c", sources=(source,))["revision"] == revision
    assert path.read_bytes() == whole
    assert isinstance(parse_sources(whole, "x"), SourceRecords)


SPLIT_CLASSES = [("train", "real"), ("train", "fake"), ("test", "real"), ("test", "fake")]


def test_a_source_of_one_class_is_refused_unless_it_is_meant(adm: Path, tmp_path: Path) -> None:
    real = written(tmp_path / "r", {"real/a.png": picture(1)})
    fake = written(tmp_path / "f", {"fake/b.png": picture(2)})
    for dry_run in (True, False):
        with pytest.raises(UserError, match=r"has only one class: all of its 1 images are real .*a\.png.*--one-class"):
            built(adm, tmp_path / "c", sources=(real,), dry_run=dry_run)
    assert "only one class: generated" in built(adm, tmp_path / "c", sources=(fake,), one_class=True)["notes"][0]
    assert built(adm, tmp_path / "c", sources=(real, fake), dataset="both")["notes"] == []


def test_images_of_one_class_that_are_for_no_training_are_taken_and_noted(adm: Path, tmp_path: Path) -> None:
    for split in ("val", "test"):
        source = written(tmp_path / split, {f"{split}/fake/a.png": picture(1)})
        assert "only one class: generated" in built(adm, tmp_path / "c", sources=(source,), dataset=split)["notes"][0]


def test_a_build_without_test_images_says_how_to_have_some(adm: Path, tmp_path: Path) -> None:
    pictures = {f"{split}/{name}/{split}.png": picture(n) for n, (split, name) in enumerate(SPLIT_CLASSES)}
    source = written(tmp_path / "s", {name: data for name, data in pictures.items() if name.startswith("train")})
    told = built(adm, tmp_path / "c", sources=(source,), dry_run=True)["untested"]
    assert "none is left to test a student. Divide them with --split-by 70/15/15" in told
    assert built(adm, tmp_path / "c", sources=(written(source, pictures),), dry_run=True)["untested"] is None


def test_folders_of_no_class_are_named_where_a_class_is_missing(adm: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "s", {"real/a.png": picture(1), "one/b.png": picture(2), "other/c.png": picture(3)})
    with pytest.raises(UserError, match=r"one/ \(1\), other/ \(1\)\. .*--real DIR --fake NAME=DIR --fake NAME=DIR"):
        built(adm, tmp_path / "c", sources=(source,), dry_run=True)


def test_a_class_that_is_rejected_whole_is_named(adm: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "s", {"real/a.png": picture(1)[:900], "fake/b.png": picture(2)})
    with pytest.raises(UserError, match="The 1 images of the other class were all rejected"):
        built(adm, tmp_path / "c", sources=(source,))


def test_strict_ends_with_3_where_images_are_not_covered(adm: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "s", {"real/a.png": picture(1), "fake/b.png": picture(2)})
    arguments = ["build", str(source), "--cache", str(tmp_path / "c"), "--dataset", "d", "--adm", str(adm)]
    arguments += ["--features", "image", "--device", "cpu", "--strict"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    written(source, {"masks/c.png": picture(3)})
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 3
    assert "masks/" in shown.output
    assert "layout real-fake" in shown.output
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert told["sources"][0]["uncovered"][0]["folder"] == "masks"


def test_an_audit_accounts_for_its_sources_and_repeats_the_account_of_a_dataset(adm: Path, tmp_path: Path) -> None:
    source = strange(tmp_path / "s")
    result = built(adm, tmp_path / "c", sources=(source,))
    told = run_audit([source], sample=0)
    assert told["warnings"] == result["warnings"]
    assert told["accounts"][0]["files"] == 13
    assert run_audit(cache=tmp_path / "c", dataset="d", sample=0)["accounts"] == result["sources"]


# Declared folders


def test_declared_folders_are_a_data_set(adm: Path, tmp_path: Path) -> None:
    written(tmp_path, {"coco/x/a.png": picture(1), "coco/b": picture(2), "mj/c.png": picture(3), "more/d.txt": b"x"})
    written(tmp_path, {"more/train2017/e.png": picture(4), "more/val2017/f.png": picture(5)})
    result = built(
        adm, tmp_path / "c", real=(tmp_path / "coco",), fake=(f"mj={tmp_path}/mj", f"sd={tmp_path}/more"),
    )  # fmt: skip
    assert [tuple(row.values()) for row in result["counts"]] == [
        ("train", 0, "real", 2),
        ("train", 1, "mj", 1),
        ("train", 1, "sd", 1),
        ("val", 1, "sd", 1),
    ]
    assert [source["layout"] for source in result["sources"]] == ["declared"] * 3
    assert [source["not_images"] for source in result["sources"]] == [0, 0, 1]
    moved = built(adm, tmp_path / "c", real=(tmp_path / "coco",), fake=(f"sd={tmp_path}/more",), split="test")
    assert {row["split"] for row in moved["counts"]} == {"test"}


def test_declared_folders_join_sources_and_a_folder_named_for_the_other_class_is_noted(
    adm: Path, tmp_path: Path
) -> None:
    written(
        tmp_path, {"set/test/real/a.png": picture(1), "set/test/fake/b.png": picture(2), "mj/real/c.png": picture(3)}
    )
    result = built(adm, tmp_path / "c", sources=(tmp_path / "set",), fake=(f"mj={tmp_path}/mj",), split="test")
    assert [tuple(row.values()) for row in result["counts"]] == [
        ("test", 0, "real", 1),
        ("test", 1, "fake", 1),
        ("test", 1, "mj", 1),
    ]
    assert "--split changes nothing" in result["notes"][0]
    assert "named for the other class: real" in result["notes"][1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fake": ("folder",)}, "write NAME=DIR"),
        ({"split": "train", "split_by": "8/1/1"}, "give one of them"),
        ({"split_by": "80/20"}, "shares of train, val and test"),
        ({"split_by": "0/0/0"}, "shares of train, val and test"),
        ({"split_by": "nan/1/1"}, "shares of train, val and test"),
        ({"split_by": "-1/1/1"}, "shares of train, val and test"),
        ({"layout": "{colour}"}, "colour"),
        ({"layout": "nothing"}, "no such layout"),
        ({"labels": "real:fake"}, "write WORD=real or WORD=fake"),
        ({"columns": "path"}, "write MEANING=COLUMN"),
    ],
)
def test_declarations_that_cannot_be_read_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        BuildConfig.checked(cache=tmp_path, dataset="d", sources=(tmp_path,), **settings)


def test_a_declared_place_that_is_no_folder_or_has_no_image_is_refused(adm: Path, tmp_path: Path) -> None:
    written(tmp_path, {"a.png": picture(1), "empty/x.txt": b"x"})
    with pytest.raises(UserError, match="is not a folder"):
        built(adm, tmp_path / "c", real=(tmp_path / "a.png",))
    with pytest.raises(UserError, match="has no image file"):
        built(adm, tmp_path / "c", real=(tmp_path / "empty",))
    with pytest.raises(UsageError, match="--real and --fake"):
        build_requests(cache=tmp_path, dataset="d", sources=())


def test_a_division_keeps_its_shares_is_stable_and_keeps_together_what_belongs_together(
    adm: Path, tmp_path: Path
) -> None:
    for n in range(60):
        written(tmp_path, {f"real/{n}.png": picture(n), f"mj/{n}.png": picture(1000 + n)})
    written(tmp_path, {"mj/copy of 3.png": picture(1003), "real/3.jpg": saved(noise(20, 24, 3), "JPEG", quality=95)})
    declared = {"real": (tmp_path / "real",), "fake": (f"mj={tmp_path}/mj",), "split_by": "80/10/10"}

    def splits(**changes: Any) -> dict[str, str]:
        name = f"d{len(list((tmp_path / 'c').glob('datasets/*')))}"
        result = built(adm, tmp_path / "c", dataset=name, **{**declared, **changes})
        assert result["occurrences"] == result["sources"][0]["used"] + result["sources"][1]["used"]
        rows = Cache.open(tmp_path / "c").datasets().read(name, columns=["source", "path", "split"]).to_pylist()
        return {f"{Path(row['source']).name}/{row['path']}": row["split"] for row in rows}

    first = splits()
    assert first == splits()
    assert len(first) == 122
    assert 80 < sum(split == "train" for split in first.values()) < 110
    assert {"train", "val", "test"} == set(first.values())
    assert first["mj/3.png"] == first["mj/copy of 3.png"]
    assert first["real/3.png"] == first["real/3.jpg"]
    assert first != splits(split_seed=1)
    for n in range(60, 80):
        written(tmp_path, {f"real/{n}.png": picture(n)})
    later = splits()
    assert {name: later[name] for name in first} == first


def test_a_division_leaves_named_splits_and_keeps_groups_together(adm: Path, tmp_path: Path) -> None:
    names = [
        f"{generator}/{group}/{kind}/{number}.png"
        for generator in ("biggan", "progan")
        for group in ("cat", "car", "sofa", "cow")
        for kind in ("0_real", "1_fake")
        for number in range(3)
    ]
    files = {name: picture(zlib.crc32(name.encode())) for name in names}
    source = written(tmp_path / "s", files)
    named = written(tmp_path / "t", {"val/real/a.png": picture(1), "val/fake/b.png": picture(2)})
    built(adm, tmp_path / "c", sources=(source, named), split_by="50/25/25")
    rows = Cache.open(tmp_path / "c").datasets().read("d").to_pylist()
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["group"] or row["source"], set()).add(row["split"])
    assert splits.pop(str(named)) == {"val"}
    assert all(len(found) == 1 for found in splits.values())
    assert len(splits) == 4


def test_a_dry_run_refuses_the_places_for_a_cache_that_a_build_refuses(adm: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "s", {"real/a.png": picture(1), "fake/b.png": picture(2)})
    listing = tmp_path / "list.csv"
    listing.write_text("path,label\n")
    for dry_run in (True, False):
        with pytest.raises(UserError, match=r"list\.csv: is a file\. Give a new folder for the cache"):
            built(adm, listing, sources=(source,), dry_run=dry_run)
        with pytest.raises(UserError, match="neither empty nor a cache"):
            built(adm, source, sources=(source,), dry_run=dry_run)
    built(adm, tmp_path / "new", sources=(source,), dry_run=True)
    assert not (tmp_path / "new").exists()
