"""Loose files of the official scripts become shards: the same values, marked as imported, nothing computed."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.cache.gather import gather
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.spec import imported_from
from distil_cache.cache.store import Cache
from distil_cache.choices import StoredPreset
from distil_cache.cli import app, main
from distil_cache.errors import UsageError, UserError
from distil_cache.features.builtin.recon import truncated_pixels
from distil_cache.features.builtin.teacher import TeacherSpec, teacher_views
from distil_cache.images.decode import decode
from distil_cache.images.file import ImageRejected, content_key
from distil_cache.images.spec import ImageSpec
from distil_cache.models.backbones import load_teacher
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.importing.import_config import ImportConfig
from distil_cache.pipeline.importing.importer import run_import
from distil_cache.pipeline.importing.loose_files import load_tensor
from distil_cache.progress import Silent
from distil_cache.train.data.select import choose_build
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bytes import noise, saved, turned
from loose_files import SIDE, eps_of, picture, put_distildire, write_dire, write_distildire
from small_models import STEPS, write_adm, write_teacher
from typer.testing import CliRunner


def imported(cache: Path, *sources: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "sources": sources,
        "cache": cache,
        "dataset": "d",
        "kind": "distildire",
        "device": "cpu",
        "decode_threads": 2,
    }
    return run_import(ImportConfig.checked(**{**values, **changes}), Silent())


def record(cache: Path, result: dict[str, Any]) -> BuildRecord:
    return Cache.open(cache).builds().read(result["build"])


def row(cache: Path, result: dict[str, Any], feature: str, number: int) -> np.ndarray:
    folder = record(cache, result).features[feature].folder
    return gather(Cache.open(cache).open_feature(folder), [content_key(saved(picture(number)))])[0]


def reasons(result: dict[str, Any]) -> dict[str, str]:
    return {Path(reject["path"]).name: reject["reason"] for reject in result["rejects"]}


def test_eps_dire_and_images_are_those_of_the_files(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 3, "test": 2})
    result = imported(tmp_path / "c", source, origin="adm 256 uncond, ddim20, fp16", shard_size=4)
    assert (result["samples"], result["rejected"], result["size"]) == (10, 0, SIDE)
    assert {name: entry["imported"] for name, entry in result["features"].items()} == {
        "image": 10,
        "eps": 10,
        "dire": 10,
    }
    for number in range(10):
        assert (row(tmp_path / "c", result, "image", number) == picture(number).transpose(2, 0, 1)).all()
        assert (row(tmp_path / "c", result, "dire", number) == picture(number + 1000).transpose(2, 0, 1)).all()
        eps = row(tmp_path / "c", result, "eps", number)
        assert eps.dtype == np.float16
        assert (eps == eps_of(number).half().numpy()).all()
    table = Cache.open(tmp_path / "c").datasets().read("d")
    labels = dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert [labels[content_key(saved(picture(n)))] for n in range(10)] == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert verify(Cache.open(tmp_path / "c")) == []


def test_reconstructions_and_dire_of_dires_folders_are_imported_in_any_layout(tmp_path: Path) -> None:
    paths = ["train/lsun/real/a.png", "train/lsun/adm/b.png", "test/lsun/real/c.png", "test/lsun/adm/d.v1.png"]
    source = write_dire(tmp_path / "data", paths)
    result = imported(tmp_path / "c", source, kind="dire")
    assert set(result["features"]) == {"image", "recon", "dire"}
    for number in range(4):
        assert (row(tmp_path / "c", result, "recon", number) == picture(number + 2000).transpose(2, 0, 1)).all()
        assert (row(tmp_path / "c", result, "dire", number) == picture(number + 1000).transpose(2, 0, 1)).all()
    table = Cache.open(tmp_path / "c").datasets().read("d")
    assert set(
        zip(table["split"].to_pylist(), table["generator"].to_pylist(), table["group"].to_pylist(), strict=True)
    ) == {(split, generator, "lsun") for split in ("train", "test") for generator in ("real", "adm")}


def test_an_import_is_marked_and_shares_nothing_with_a_computed_feature(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 2})
    adm = str(write_adm(tmp_path / "adm.safetensors"))
    computed = run_build(
        BuildConfig.checked(
            sources=(source,), cache=tmp_path / "c", dataset="d", adm=adm, steps=STEPS, features=("image,eps,dire",),
            layout="distildire", batch_size=4, device="cpu",
        ),
        Silent(),
    )  # fmt: skip
    result = imported(tmp_path / "c", source, origin="fp16")
    other = imported(tmp_path / "c", source, origin="fp32")
    assert result["revision"] == computed["revision"]
    prints = [{row["fingerprint"] for row in one["features"].values()} for one in (computed, result, other)]
    assert not prints[0] & prints[1]
    assert not prints[1] & prints[2]
    for name, feature in record(tmp_path / "c", result).features.items():
        spec = Cache.open(tmp_path / "c").open_feature(feature.folder).spec
        assert imported_from(spec) == "distildire: fp16", name
    cache = Cache.open(tmp_path / "c")
    needed = {"train": ("image", "eps")}
    with pytest.raises(UserError, match="several builds serve"):
        choose_build(cache, "d", None, needed, purpose="x")
    assert choose_build(cache, "d", result["build"], needed, purpose="x").id == result["build"]


def test_a_build_that_joins_imported_eps_with_computed_dire_is_never_trained_from(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 2})
    one, two = imported(tmp_path / "c", source, origin="a"), imported(tmp_path / "c", source, origin="b")
    cache = Cache.open(tmp_path / "c")
    first, second = record(tmp_path / "c", one), record(tmp_path / "c", two)
    mixed = BuildRecord.new("d", one["revision"], {**first.features, "dire": second.features["dire"]}, {})
    cache.builds().write(mixed)
    with pytest.raises(UserError, match=r"mixes dire \(imported, distildire: b\), eps \(imported, distildire: a\)"):
        choose_build(cache, "d", mixed.id, {"train": ("eps", "dire")}, purpose="x")


def test_an_interrupted_import_goes_on_and_a_second_one_reads_and_writes_nothing(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 6})
    whole = imported(tmp_path / "whole", source, shard_size=4)
    imported(tmp_path / "c", source, shard_size=4)
    for feature, place in (("image", 2), ("eps", 0), ("dire", 1)):
        store = Cache.open(tmp_path / "c").open_feature(record(tmp_path / "whole", whole).features[feature].folder)
        shard = store.marker_ids()[place]
        (store.shards / f"{shard}.json").unlink()
        (tmp_path / "c" / "builds" / f"{whole['build']}.json").unlink()
        again = imported(tmp_path / "c", source, shard_size=4)
        assert again["build"] == whole["build"]
        assert again["features"][feature]["imported"] == 4
        assert sum(entry["imported"] for entry in again["features"].values()) == 4
    assert verify(Cache.open(tmp_path / "c")) == []
    shutil.rmtree(source / "train" / "eps" / "fakes")
    (source / "train" / "eps" / "fakes").mkdir()
    assert imported(tmp_path / "c", source)["samples"] == 12


def test_new_samples_are_added_and_a_changed_file_under_the_same_origin_is_refused(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 2})
    imported(tmp_path / "c", source)
    put_distildire(source / "train", "fakes", 50)
    more = imported(tmp_path / "c", source)
    assert (more["samples"], more["features"]["eps"]["imported"]) == (5, 1)
    torch.save(eps_of(777), source / "train" / "eps" / "reals" / "img000.pt")
    with pytest.raises(UserError, match=r"img000.png: the cache holds another eps .* give them their own --origin"):
        imported(tmp_path / "c", source)
    assert imported(tmp_path / "c", source, origin="the second run")["features"]["eps"]["imported"] == 5


def test_files_that_do_not_fit_are_rejected_with_the_reason_and_the_rest_is_imported(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 14})
    train = source / "train"
    eps, dire, images = (train / name / "reals" for name in ("eps", "dire", "images"))
    (eps / "img000.pt").unlink()
    (dire / "img001.png").unlink()
    (eps / "img002.pt").write_bytes((eps / "img002.pt").read_bytes()[:-300])
    torch.save(eps_of(3, 20), eps / "img003.pt")
    torch.save({"eps": eps_of(4)}, eps / "img004.pt")
    torch.save(eps_of(5).long(), eps / "img005.pt")
    torch.save(torch.full((3, SIDE, SIDE), float("nan")), eps / "img006.pt")
    torch.save(1e6 * eps_of(7), eps / "img007.pt")
    (dire / "img008.png").write_bytes(saved(picture(8, 20)))
    (dire / "img009.png").write_bytes(saved(picture(9), "JPEG"))
    (images / "img010.png").write_bytes(saved(picture(10, 20)))
    (images / "img011.png").write_bytes(saved(picture(11), exif=turned(6)))
    (dire / "img012.png").write_bytes(saved(noise(SIDE, SIDE)[..., 0]))
    (images / "img013.png").write_bytes(saved(np.dstack([picture(13), picture(13)[..., :1]])))
    result = imported(tmp_path / "c", source)
    assert reasons(result) == {
        "img000.png": "missing", "img001.png": "missing", "img002.png": "damaged", "img003.png": "size-differs",
        "img004.png": "damaged", "img005.png": "damaged", "img006.png": "out-of-range", "img007.png": "out-of-range",
        "img008.png": "size-differs", "img009.png": "lossy", "img010.png": "size-differs", "img011.png": "turned",
        "img012.png": "unsupported-mode", "img013.png": "transparent",
    }  # fmt: skip
    assert result["samples"] == 14
    assert {entry["rows"] for entry in result["features"].values()} == {14}
    (eps / "img000.pt").write_bytes((eps / "img001.pt").read_bytes())
    mended = imported(tmp_path / "c", source)
    assert (mended["samples"], mended["features"]["eps"]["imported"]) == (15, 1)


def test_a_pt_file_that_would_run_code_or_unpack_to_more_than_it_is_is_never_loaded(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 3})
    eps = source / "train" / "eps" / "reals"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"x": Bomb()}, eps / "img000.pt")
    torch.save(eps_of(1), eps / "img001.pt", _use_new_zipfile_serialization=False)
    with (
        zipfile.ZipFile(eps / "img002.pt") as whole,
        zipfile.ZipFile(tmp_path / "z", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    shutil.move(tmp_path / "z", eps / "img002.pt")
    result = imported(tmp_path / "c", source)
    assert reasons(result) == dict.fromkeys(("img000.png", "img001.png", "img002.png"), "damaged")
    assert not (tmp_path / "executed").exists()


def test_names_that_share_a_file_are_given_it_only_if_it_is_clear_whose_it_is(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 1})
    train = source / "train"
    for name, number in (("a.png", 20), ("a.b.png", 21), ("c.d.png", 22), ("e.f.png", 23)):
        put_distildire(train, "fakes", number, name=name)
    torch.save(eps_of(23), train / "eps" / "fakes" / "e.f.pt")
    result = imported(tmp_path / "c", source)
    assert reasons(result) == {"a.png": "ambiguous", "a.b.png": "ambiguous"}
    for number in (22, 23):
        assert (row(tmp_path / "c", result, "eps", number) == eps_of(number).half().numpy()).all()


def test_a_tensor_with_a_batch_axis_or_in_half_precision_is_the_same_row(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 1})
    torch.save(eps_of(0)[None], source / "train" / "eps" / "reals" / "img000.pt")
    torch.save(eps_of(1).half(), source / "train" / "eps" / "fakes" / "img001.pt")
    result = imported(tmp_path / "c", source, storage="float32")
    assert (row(tmp_path / "c", result, "eps", 0) == eps_of(0).numpy()).all()
    assert (row(tmp_path / "c", result, "eps", 1) == eps_of(1).half().float().numpy()).all()


def test_eps_imported_as_integers_is_rounded_and_the_same_files_are_not_taken_for_others(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 1})
    for _ in range(2):
        result = imported(tmp_path / "c", source, storage="int8")
        found, exact = row(tmp_path / "c", result, "eps", 0), eps_of(0).numpy()
        assert found.dtype == np.float16
        assert 0 < np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)


def test_the_folder_of_one_split_and_one_without_dire_are_understood(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"val": 2, "train": 1}, with_dire=False)
    result = imported(tmp_path / "c", source / "val", source / "train")
    table = Cache.open(tmp_path / "c").datasets().read("d")
    assert sorted(table["split"].to_pylist()) == ["train"] * 2 + ["val"] * 4
    assert set(result["features"]) == {"image", "eps"}


def test_dire_that_is_there_for_one_split_is_asked_of_that_split_only(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 2, "test": 2})
    shutil.rmtree(source / "test" / "dire")
    result = imported(tmp_path / "c", source)
    assert (result["samples"], result["rejected"]) == (8, 0)
    assert result["features"]["dire"]["splits"] == ["train"]
    assert result["features"]["eps"]["splits"] == ["test", "train"]
    assert set(imported(tmp_path / "c2", source, features=("dire",))["features"]) == {"image", "dire"}


def test_resize_and_lossy_take_more_files_and_are_part_of_the_specs(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 2})
    (source / "train" / "images" / "reals" / "img000.png").write_bytes(saved(noise(20, 24, 5)))
    (source / "train" / "dire" / "fakes" / "img002.png").write_bytes(saved(picture(2), "JPEG"))
    strict, free = imported(tmp_path / "c", source), imported(tmp_path / "c", source, resize=True, lossy=True)
    assert reasons(strict) == {"img000.png": "size-differs", "img002.png": "lossy"}
    assert (free["samples"], free["rejected"]) == (4, 0)
    differing = {
        name for name in free["features"]
        if free["features"][name]["fingerprint"] != strict["features"][name]["fingerprint"]
    }  # fmt: skip
    assert differing == {"image", "dire"}


def test_the_teacher_is_computed_from_imported_dire_if_asked(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 3, "test": 1})
    weights = write_teacher(tmp_path / "teacher.safetensors")
    imported(tmp_path / "c", source)
    result = imported(tmp_path / "c", source, teacher="small", teacher_weights=weights, batch_size=4)
    assert result["features"]["teacher"]["imported"] == 6
    assert result["features"]["teacher"]["splits"] == ["train"]
    feature = record(tmp_path / "c", result).features["teacher"]
    store = Cache.open(tmp_path / "c").open_feature(feature.folder)
    spec = TeacherSpec.model_validate({**store.spec, "views": tuple(store.spec["views"])})
    assert spec.fingerprint() == store.fingerprint
    model = load_teacher("small", weights).model
    dire = torch.from_numpy(picture(1001).transpose(2, 0, 1).copy())[None]
    assert np.allclose(
        row(tmp_path / "c", result, "teacher", 1), teacher_views(model, dire, spec)[0].numpy(), atol=1e-3
    )
    assert imported_from(store.spec) == "distildire: not told"


def test_a_batch_of_the_teacher_is_halved_for_good_when_memory_does_not_suffice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_teacher(tmp_path / "teacher.safetensors")
    sizes: list[int] = []

    def small(model: torch.nn.Module, dire: torch.Tensor, spec: TeacherSpec) -> torch.Tensor:
        sizes.append(len(dire))
        if len(dire) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return teacher_views(model, dire, spec)

    monkeypatch.setattr("distil_cache.features.builtin.teacher.teacher_views", small)
    source = write_distildire(tmp_path / "data", {"train": 3})
    asked = {"teacher": "small", "teacher_weights": weights, "batch_size": 4, "shard_size": 3}
    result = imported(tmp_path / "c", source, **asked)
    assert result["features"]["teacher"]["imported"] == 6
    assert sizes == [4, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"origin": ""}, UsageError, "--origin"),
        ({"features": ("recon",)}, UsageError, "--features recon: the kind distildire has eps, dire"),
        ({"kind": "dire"}, UserError, "has no folder `images`"),
        ({"layout": "dire"}, UsageError, "--layout"),
        ({"teacher": "small", "features": ("eps",)}, UserError, "there is none to import|needs --teacher-weights"),
    ],
)
def test_what_does_not_fit_is_one_sentence_before_any_work(
    tmp_path: Path, change: dict[str, Any], kind: type[UserError], sentence: str
) -> None:
    source = write_distildire(tmp_path / "data", {"train": 1})
    with pytest.raises(kind, match=sentence):
        imported(tmp_path / "c", source, **change)
    assert not (tmp_path / "c").exists()


def test_features_of_a_size_that_is_not_stored_and_images_that_are_none_are_one_sentence(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 1})
    for path in (source / "train").glob("images/*/*"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the 2 images can be used .*not-an-image"):
        imported(tmp_path / "c", source)
    for path in (source / "train").glob("dire/*/*"):
        path.write_bytes(saved(picture(1, 8)))
    with pytest.raises(UserError, match="a side of 8 pixels"):
        imported(tmp_path / "c", source, features=("dire",))


@given(position=st.integers(0, 5000), value=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=150)
def test_a_changed_pt_file_is_a_tensor_or_a_reject(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("pt") / "x.pt"
    torch.save(eps_of(1), path)
    data = bytearray(path.read_bytes())
    position %= len(data)
    data[position] = value
    path.write_bytes(data[:position] if cut else data)
    with contextlib.suppress(ImageRejected):
        assert isinstance(load_tensor(str(path)), torch.Tensor)


def test_a_student_trains_from_an_import_and_an_import_can_be_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_distildire(tmp_path / "data", {"train": 8})
    weights = write_teacher(tmp_path / "teacher.safetensors")

    def run(*arguments: str) -> Any:
        monkeypatch.setattr("sys.argv", ["distil-cache", *arguments, "--json"])
        with contextlib.suppress(SystemExit):
            main()
        return json.loads(capsys.readouterr().out)

    cache = str(tmp_path / "c")
    done = run(
        "cache", "import", cache, str(source), "--dataset", "d", "--kind", "distildire", "--origin", "fp16",
        "--teacher", "small", "--teacher-weights", str(weights), "--train-size", "16", "--device", "cpu",
    )  # fmt: skip
    trained = run(
        "train", "--cache", cache, "--dataset", "d", "--run", str(tmp_path / "run"), "--backbone", "small", "--epochs", "1",
        "--batch-size", "4", "--device", "cpu",
    )  # fmt: skip
    assert trained["build"] == done["build"]
    exported = run("cache", "export", cache, "--build", done["build"], "--out", str(tmp_path / "out"))
    assert exported["splits"]["train"]["features"] == ["image", "eps", "dire", "teacher"]
    assert "imported (kind distildire, origin fp16)" in (tmp_path / "out" / "README.md").read_text()


def test_images_without_any_feature_file_are_refused(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 1}, with_dire=False)
    shutil.rmtree(source / "train" / "eps")
    with pytest.raises(UserError, match="has no feature file beside the images"):
        imported(tmp_path / "c", source)


def write_diffusion_forensics(root: Path) -> Path:
    """DiffusionForensics as published: photographs of their own sizes; DIRE has the format and the name of its source."""
    paths = [f"{split}/imagenet/real/n01/ILSVRC2012_{n}.JPEG" for split in ("train", "test") for n in range(3)]
    paths += [f"{split}/imagenet/adm/{n}.png" for split in ("train", "test") for n in range(3)]
    for number, path in enumerate(paths):
        form = "JPEG" if path.endswith("JPEG") else "PNG"
        height, width = (40 + number, 51 - number) if form == "JPEG" else (SIDE, SIDE)
        pictures = {"images": noise(height, width, number), "recons": picture(number + 2000), "dire": picture(number)}
        for folder, pixels in pictures.items():
            file = root / folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(saved(pixels, form))
    return root


def test_diffusion_forensics_as_published_is_imported_with_what_its_script_made_of_the_images(tmp_path: Path) -> None:
    source = write_diffusion_forensics(tmp_path / "data")
    result = imported(tmp_path / "c", source, kind="dire", resize=True, lossy=True)
    assert (result["samples"], result["rejected"], result["lost_classes"]) == (12, 0, [])
    image = record(tmp_path / "c", result).features["image"]
    store = Cache.open(tmp_path / "c").open_feature(image.folder)
    assert store.spec["resize"] == "dire-center-crop"
    data = (source / "images/train/imagenet/real/n01/ILSVRC2012_2.JPEG").read_bytes()
    expected = decode(data, ImageSpec(size=SIDE, preset="dire-center-crop"))
    np.testing.assert_array_equal(gather(store, [content_key(data)])[0], expected)
    assert "JPEG or WebP file of 6 of 6 real and 0 of 6 generated images" in result["notes"][0]
    table = Cache.open(tmp_path / "c").datasets().read("d")
    assert set(table["generator"].to_pylist()) == {"real", "adm"}


def test_an_import_that_leaves_one_class_says_so_and_how_to_keep_the_other(tmp_path: Path) -> None:
    source = write_diffusion_forensics(tmp_path / "data")
    small = imported(tmp_path / "c", source, kind="dire", lossy=True)
    assert (small["lost_classes"], small["rejected_by_class"]) == (["real"], {"size-differs": {"real": 6, "fake": 0}})
    assert small["notes"][0].startswith("No real image is left (6 size-differs)")
    assert "--resize" in small["notes"][0]
    lossy = imported(tmp_path / "c", source, kind="dire", resize=True)
    assert lossy["rejected_by_class"] == {"lossy": {"real": 6, "fake": 0}}
    assert "--lossy takes them" in lossy["notes"][0]
    shutil.rmtree(source / "images/test/imagenet/real/n01")
    (source / "dire/train/imagenet/real/n01/ILSVRC2012_0.JPEG").write_bytes(saved(picture(0)))
    (source / "recons/train/imagenet/real/n01/ILSVRC2012_0.JPEG").write_bytes(saved(picture(1)))
    partly = imported(tmp_path / "c", source, kind="dire", resize=True)
    assert (partly["lost_classes"], partly["rejected_by_class"]["lossy"]["real"]) == ([], 2)


def test_a_split_without_one_class_and_a_source_of_one_class_are_named(tmp_path: Path) -> None:
    source = write_distildire(tmp_path / "data", {"train": 2, "test": 1})
    (source / "test" / "dire" / "fakes" / "img005.png").unlink()
    assert imported(tmp_path / "c", source)["notes"] == ["No generated image is left in split test: all were rejected."]
    for split in ("train", "test"):
        shutil.rmtree(source / split / "images" / "fakes")
        (source / split / "images" / "fakes").mkdir()
    alone = imported(tmp_path / "c", source)
    assert alone["lost_classes"] == []
    assert alone["notes"] == [f"There is no generated image below {source}."]


def test_the_command_ends_with_code_3_if_a_class_is_lost(tmp_path: Path) -> None:
    source = write_diffusion_forensics(tmp_path / "data")
    command = ["cache", "import", str(tmp_path / "c"), str(source), "--dataset", "d", "--kind", "dire"]
    lost = CliRunner().invoke(app, [*command, "--resize"])
    said = " ".join(lost.stdout.split())
    assert lost.exit_code == 3
    assert "Warning: No real image is left (6 lossy)" in said
    assert "lossy 6 real, 0 generated" in said
    whole = CliRunner().invoke(app, [*command, "--resize", "--lossy"])
    assert whole.exit_code == 0
    assert "6 of 6 real" in " ".join(whole.stdout.split())


@pytest.mark.parametrize(("preset", "explained"), [("dire-center-crop", True), ("dire", False)])
def test_dire_of_images_that_were_resized_otherwise_is_found_out(
    tmp_path: Path, preset: StoredPreset, explained: bool
) -> None:
    for number in range(4):
        data = saved(noise(40, 51, number))
        image = decode(data, ImageSpec(size=SIDE, preset=preset)).transpose(1, 2, 0).astype(int)
        recon = np.clip(image + np.random.default_rng(number).normal(0, 9, image.shape), 0, 255)
        dire = np.abs(image - recon).astype(np.uint8)
        kind = ("real", "adm")[number % 2]
        for folder, content in (("images", data), ("recons", saved(recon.astype(np.uint8))), ("dire", saved(dire))):
            file = tmp_path / "data" / folder / "train" / "lsun" / kind / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    notes = imported(tmp_path / "c", tmp_path / "data", kind="dire", resize=True)["notes"]
    assert (notes == []) is explained
    assert explained or "DIRE is not the difference between image and reconstruction" in notes[0]


def test_a_recon_that_is_computed_is_what_the_script_would_have_written() -> None:
    made = truncated_pixels(torch.tensor([-1.2, -1, -0.5, 0, 0.9999, 1, 1.3]))
    assert (made.dtype, made.tolist()) == (torch.uint8, [0, 0, 63, 127, 254, 255, 255])
