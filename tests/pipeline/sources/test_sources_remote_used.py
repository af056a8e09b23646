"""What works on sources, when these lie in an object store: builds, audits, workers, predictions; and the real S3 protocol."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import Cache
from distil_cache.errors import UserError
from distil_cache.images.file import ImageRejected, content_key
from distil_cache.inference.arguments import expand_arguments
from distil_cache.pipeline.audit.run import run_audit
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.cluster.messages import read_entries, read_task, write_files, write_task
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.planning.plan import Task
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.read import read_source_bytes
from distil_cache.progress import Silent
from distil_cache.storage import RemotePath
from faulty_proxy import FaultyProxy
from image_bytes import noise, saved
from remote_sources import Forbidden, picture, put, small_set
from s3_server import point_at
from small_models import STEPS, write_adm
from tar_bytes import sample, write_tar


def build_config(source: object, cache: Path, adm: Path) -> BuildConfig:
    return BuildConfig.checked(
        sources=(source,), cache=cache, dataset="d", adm=str(adm), steps=STEPS, features=("image,eps",), batch_size=4,
        decode_threads=2, device="cpu",
    )  # fmt: skip


def test_a_build_from_a_store_makes_what_a_build_from_the_same_files_makes(
    tmp_path: Path, memory_bucket: RemotePath
) -> None:
    adm = write_adm(tmp_path / "adm.safetensors")
    small_set(memory_bucket).download(tmp_path / "files")
    here = run_build(build_config(tmp_path / "files", tmp_path / "c1", adm), Silent())
    there = run_build(build_config(str(memory_bucket), tmp_path / "c2", adm), Silent())
    assert (there["revision"], there["samples"], there["opened"]) == (here["revision"], 6, 6)
    one, two = (
        {store.folder.name: {m.shard: m.sha256 for m in store.markers()} for store in Cache.open(cache).features()}
        for cache in (tmp_path / "c1", tmp_path / "c2")
    )
    assert one == two
    assert not verify(Cache.open(tmp_path / "c2"))
    again = run_build(build_config(str(memory_bucket), tmp_path / "c2", adm), Silent())
    assert Counter(opened=again["opened"], decoded=again["decoded"], adm=again["adm_calls"]) == Counter()


def test_an_object_that_vanishes_before_its_pixels_are_wanted_is_left_out(
    tmp_path: Path, memory_bucket: RemotePath
) -> None:
    adm = write_adm(tmp_path / "adm.safetensors")
    config = build_config(str(small_set(memory_bucket)), tmp_path / "c", adm)

    class Unlinking(Silent):
        def start(self, stage: str, total: int) -> None:
            if stage == "image":  # the scan is over
                (memory_bucket / "real/0.png").unlink()

    result = run_build(config, Unlinking())
    assert result["samples"] == 5
    rejects = Cache.open(tmp_path / "c").datasets().rejects("d")
    assert [(reject["path"], reject["reason"]) for reject in rejects] == [(f"{memory_bucket}/real/0.png", "missing")]


def test_a_build_ends_when_the_store_does_not_let_it_read_any_more(tmp_path: Path, memory_bucket: RemotePath) -> None:
    fsspec.register_implementation("forbidden", Forbidden, clobber=True)
    adm = write_adm(tmp_path / "adm.safetensors")
    small_set(memory_bucket / "real" / "set", 32)
    place = str(memory_bucket / "real" / "set").replace("memory://", "forbidden://")
    config = build_config(place, tmp_path / "c", adm)

    class Forbidding(Silent):
        def start(self, stage: str, total: int) -> None:
            if stage == "image":  # the scan is over
                Forbidden.open_folder = "none"

    try:
        with pytest.raises(UserError, match=rf"{place}/\S+: unreadable: Access Denied; nor can 63 other images"):
            run_build(config, Forbidding())
    finally:
        Forbidden.open_folder = "real"
    assert not Cache.open(tmp_path / "c").datasets().names()
    result = run_build(config, Silent())
    assert (result["samples"], result["opened"]) == (64, 0)


def test_an_audit_of_a_store_finds_what_one_of_the_same_files_finds(tmp_path: Path, memory_bucket: RemotePath) -> None:
    put(memory_bucket, {f"real/{n}.jpg": saved(noise(64, 64, n), "JPEG") for n in range(40)})
    put(memory_bucket, {f"fake/{n}.png": saved(noise(64, 64, n + 100)) for n in range(40)}).download(tmp_path)
    here, there = (run_audit([place], sample=0) for place in (tmp_path, str(memory_bucket)))
    assert there["found"]
    for told in (here, there):
        told["accounts"][0]["source"] = told["sources"] = told["seconds"] = 0
    assert there == here


def test_a_worker_gets_what_the_listing_said(tmp_path: Path, memory_bucket: RemotePath) -> None:
    pytest.importorskip("distributed")
    from distil_cache.pipeline.cluster.worker import scan_block

    memory = tmp_path / "scan.parquet"
    files = discover(small_set(memory_bucket)).files
    scanned = scan(files, memory=memory)
    task = Task(None, tuple(row.key for row in scanned.rows), {})
    by_key = {row.key: row.file for row in scanned.rows}
    assert read_task(write_task(task, by_key))[1] == by_key
    answers = read_entries(scan_block(write_files(files, [None] * 6)))
    found = [answer for answer in answers if not isinstance(answer, bool)]
    assert [finding.key for finding in found] == [row.key for row in scanned.rows]
    memory_bucket.remove()
    assert read_entries(scan_block(write_files(files, [*found[:5], None]))) == [*[True] * 5, False]


def test_a_url_to_predict_stands_for_an_object_a_folder_or_a_pattern(memory_bucket: RemotePath) -> None:
    names = ["a.png", "sub/b.jpg", "sub/c.mp4", "sub/.d.png", "sub/deep/e.png", "n.txt", "odd[1].png"]
    put(memory_bucket, {name: picture(1) for name in names})

    def named(name: str) -> list[str]:
        return [
            url.removeprefix(f"{memory_bucket}/") for url in expand_arguments([f"{memory_bucket}/{name}".rstrip("/")])
        ]

    assert named("") == ["a.png", "odd[1].png", "sub/b.jpg", "sub/c.mp4", "sub/deep/e.png"]
    assert named("sub/*.*") == ["sub/b.jpg", "sub/c.mp4"]
    assert named("*/*/?.png") == ["sub/deep/e.png"]
    assert named("odd[1].png") == ["odd[1].png"]
    assert named("absent.png") == ["absent.png"]
    for name, message in (("*.gif", "no object matches"), ("**/*.png", "is not a valid pattern for an object store")):
        with pytest.raises(UserError, match=message):
            named(name)
    assert read_source_bytes(f"{memory_bucket}/a.png") == picture(1)
    for name, reason in (("absent.png", "missing"), ("sub", "missing"), ("\udcff.png", "unreadable-name")):
        with pytest.raises(ImageRejected) as caught:
            read_source_bytes(f"{memory_bucket}/{name}")
        assert caught.value.reason == reason


# Over the S3 protocol


def test_over_s3_a_folder_is_listed_once_and_each_object_asked_for_once(
    tmp_path: Path, s3_bucket: str, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_set(RemotePath(f"{s3_bucket}/set"))
    put(folder, {"fake/größe #1 %41+?.png": picture(70)})
    point_at(s3_proxy.address, monkeypatch)
    s3_proxy.calm()
    memory = tmp_path / "scan.parquet"
    scanned = scan(discover(folder).files, memory=memory)
    assert Counter(request.method for request in s3_proxy.requests) == {"GET": 1 + 7}
    assert sorted(row.key for row in scanned.rows) == sorted(map(content_key, pictures_of(folder)))
    s3_proxy.calm()
    again = scan(discover(folder).files, memory=memory)
    assert [request.target for request in s3_proxy.requests] == [f"/{s3_bucket[5:]}?set/"]
    assert (again.remembered, again.rows) == (7, scanned.rows)


def pictures_of(folder: RemotePath) -> list[bytes]:
    return [entry.path.read_bytes() for entry in folder.below()]


def test_over_s3_a_build_goes_through_faults_and_makes_what_one_from_files_makes(
    tmp_path: Path, s3_bucket: str, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    adm = write_adm(tmp_path / "adm.safetensors")
    folder = small_set(RemotePath(f"{s3_bucket}/set"))
    folder.download(tmp_path / "files")
    members = [m for n in range(3) for m in sample(f"{n}", picture(n + 30), label=n % 2)]
    (RemotePath(s3_bucket) / "tars/train.tar").write(write_tar(tmp_path / "files.tar", members).read_bytes())
    point_at(s3_proxy.address, monkeypatch)
    s3_proxy.inject("500", "GET", "*/real/0.png", times=2)
    s3_proxy.inject("cut", "GET", "*/fake/1.png")
    s3_proxy.inject("503", "GET", "*train.tar")
    s3_proxy.inject("reset", "GET", "*?set/")

    def build(cache: str, *sources: object) -> dict[str, Any]:
        config = build_config(sources[0], tmp_path / cache, adm)
        return run_build(config.model_copy(update={"sources": config.sources + sources[1:]}), Silent())

    there = build("c1", folder, RemotePath(f"{s3_bucket}/tars"))
    here = build("c2", tmp_path / "files", tmp_path / "files.tar")
    assert s3_proxy.injected == {"500": 2, "cut": 1, "503": 1, "reset": 1}
    assert (there["revision"], there["samples"], there["rejected"]) == (here["revision"], 9, 0)


def test_over_s3_names_that_no_path_has_neither_break_nor_escape(s3_bucket: str, s3_server: str) -> None:
    import botocore.session
    from s3_server import REGION, SETTINGS

    client = botocore.session.get_session().create_client(
        "s3", endpoint_url=s3_server, region_name=REGION, aws_access_key_id=SETTINGS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=SETTINGS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    odd = ("real//a.png", "real/./a.png", "real/../fake/a.png", "/real/a.png", "real/b.png/", "real/", "../c.png")
    for key in ("real/a.png", *odd):
        client.put_object(Bucket=s3_bucket[5:], Key=f"set/{key}", Body=picture(1 if key == "real/a.png" else 2))
    client.close()
    rows = scan(discover(RemotePath(f"{s3_bucket}/set")).files).rows
    assert [(row.file.path, row.key) for row in rows] == [("real/a.png", content_key(picture(1)))]


def test_over_s3_what_may_not_be_listed_or_is_not_there_is_one_sentence(
    s3_bucket: str, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_set(RemotePath(f"{s3_bucket}/set"))
    with pytest.raises(UserError, match="not found in the object store"):
        discover(RemotePath("s3://no-such-bucket-here/set"))
    point_at(s3_proxy.address, monkeypatch)
    s3_proxy.inject("403", "GET", "*?set/", times=9)
    with pytest.raises(UserError, match=rf"{folder}: cannot be listed \(Access Denied\)\. Check"):
        discover(folder)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    other = {"endpoint_url": s3_proxy.address, "use_ssl": False}
    monkeypatch.setitem(fsspec.config.conf, "s3", other)  # other options, so another client
    with pytest.raises(UserError, match=rf"{folder}: cannot be listed \(Unable to locate credentials\)"):
        discover(folder)
