"""The trees of public data sets as they are unpacked, their parts, and folders as people arrange them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from distil_cache.errors import UserError
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.folders.census import take_census
from distil_cache.pipeline.sources.folders.metadata import labelled_tables
from distil_cache.pipeline.sources.tree import LocalTree
from source_trees import plant

FORENSICS = [
    f"images/{split}/{folder}"
    for split in ("train", "test")
    for folder in ("lsun/real/1.png", "lsun/adm/2.png", "imagenet/real/n03982430/3.JPEG", "imagenet/sdv1/4.png")
]


def counts(root: Path) -> dict[str, int]:
    """Return the number of images by split/label/generator/group."""
    files = discover(root).files
    return dict(Counter(f"{file.split}/{file.label}/{file.generator}/{file.group}" for file in files))


@pytest.mark.parametrize(
    ("files", "below", "expected"),
    [
        pytest.param(
            ["real/a.png", "flux/b.png", "sd15/c.png"],
            "",
            {"train/0/real/": 1, "train/1/flux/": 1, "train/1/sd15/": 1},
            id="reals beside generators",
        ),
        pytest.param(
            ["Real/a.png", "AI-generated/b.png"], "", {"train/0/real/": 1, "train/1/fake/": 1}, id="another word"
        ),
        pytest.param(
            ["train/real/a.png", "train/fake/b.png", "train/fake_sdxl/c.png"],
            "",
            {"train/0/real/": 1, "train/1/fake/": 1, "train/1/fake_sdxl/": 1},
            id="a third folder",
        ),
        pytest.param(
            ["training/real/a.png", "training/fake/b.png", "validation/real/c.png", "validation/fake/d.png"],
            "",
            {"train/0/real/": 1, "train/1/fake/": 1, "val/0/real/": 1, "val/1/fake/": 1},
            id="other words for splits",
        ),
        pytest.param(
            ["train/sd14/0_real/a.png", "train/sd14/1_fake/b.png", "test/mj/0_real/c.png", "test/mj/fake/d.png"],
            "",
            {"train/0/sd14/": 1, "train/1/sd14/": 1, "test/0/mj/": 1, "test/1/mj/": 1},
            id="one class folder with another name",
        ),
        pytest.param(
            ["TRAIN/REAL/a.png", "train/fake/b.png"], "", {"train/0/real/": 1, "train/1/fake/": 1}, id="capitals"
        ),
        pytest.param(
            ["train/0_real/a.png", "train/1_fake/b.png", "val/progan/0_real/c.png", "val/progan/1_fake/d.png"],
            "",
            {"train/0/real/": 1, "train/1/fake/": 1, "val/0/progan/": 1, "val/1/progan/": 1},
            id="splits of different depth",
        ),
        pytest.param(
            ["train/real/coco/a.png", "train/fake/sd15/b.png", "train/fake/flux/c.png", "train/fake/d.png"],
            "",
            {"train/0/real/": 1, "train/1/sd15/": 1, "train/1/flux/": 1, "train/1/fake/": 1},
            id="generators below fake",
        ),
        pytest.param(
            ["mydata/train/real/a.png", "mydata/train/fake/b.png", "mydata/test/real/c.png"],
            "",
            {"train/0/real/": 1, "train/1/fake/": 1, "test/0/real/": 1},
            id="one folder too high",
        ),
        pytest.param(
            ["original/real/a.png", "original/fake/b.png"],
            "",
            {"train/0/real/": 1, "train/1/fake/": 1},
            id="a folder above that could be a class",
        ),
        pytest.param(
            ["train/images/real/a.png", "train/images/adm/b.png"],
            "",
            {"train/0/real/images": 1, "train/1/adm/images": 1},
            id="a group that is called images",
        ),
        pytest.param(
            ["real_stylegan/real/a.png", "real_stylegan/fake/b.png", "sd/real/c.png", "sd/fake/d.png"],
            "",
            {"train/0/real_stylegan/": 1, "train/1/real_stylegan/": 1, "train/0/sd/": 1, "train/1/sd/": 1},
            id="generators with words for real",
        ),
        pytest.param(
            [*FORENSICS, "dire/train/lsun/adm/2.png", "recons/train/lsun/adm/2.png"],
            "",
            {
                f"{split}/{rest}": 1
                for split in ("train", "test")
                for rest in ("0/real/lsun", "1/adm/lsun", "0/real/imagenet", "1/sdv1/imagenet")
            },
            id="DiffusionForensics",
        ),
        pytest.param(
            FORENSICS,
            "images/test",
            {"test/0/real/lsun": 1, "test/1/adm/lsun": 1, "test/0/real/imagenet": 1, "test/1/sdv1/imagenet": 1},
            id="a split of DiffusionForensics",
        ),
        pytest.param(
            FORENSICS,
            "images/test/lsun",
            {"test/0/real/lsun": 1, "test/1/adm/lsun": 1},
            id="a group of DiffusionForensics",
        ),
        pytest.param(
            [f"ADM/imagenet_ai_0508_adm/{name}" for name in ("train/ai/a.png", "val/nature/b.JPEG")]
            + ["Midjourney/imagenet_midjourney/val/ai/c.png"],
            "",
            {"train/1/ADM/": 1, "val/0/ADM/": 1, "val/1/Midjourney/": 1},
            id="GenImage as unzipped",
        ),
        pytest.param(
            ["imagenet_ai_0508_adm/train/ai/a.png", "imagenet_ai_0508_adm/val/nature/b.JPEG"],
            "imagenet_ai_0508_adm",
            {"train/1/imagenet_ai_0508_adm/": 1, "val/0/imagenet_ai_0508_adm/": 1},
            id="one generator of GenImage",
        ),
        pytest.param(
            [f"CNN_synth_testset/{name}/x.png" for name in ("biggan/0_real", "biggan/1_fake")]
            + [f"CNN_synth_testset/progan/cat/{name}/x.png" for name in ("0_real", "1_fake")],
            "CNN_synth_testset",
            {"test/0/biggan/": 1, "test/1/biggan/": 1, "test/0/progan/cat": 1, "test/1/progan/cat": 1},
            id="the test set of CNNDetection",
        ),
        pytest.param(
            ["test/FLUX1-dev/0_real/a.png", "test/FLUX1-dev/1_fake/b.png"],
            "test",
            {"test/0/FLUX1-dev/": 1, "test/1/FLUX1-dev/": 1},
            id="the test set of AIGIBench",
        ),
        pytest.param(
            ["test/0_real/a.png", "test/1_fake/b.png"], "", {"test/0/real/": 1, "test/1/fake/": 1}, id="Chameleon"
        ),
        pytest.param(
            ["DRCT-2M/sdxl-turbo/train2017/a.jpg", "DRCT-2M/lcm/val2017/b.jpg", "MSCOCO/val2017/c.jpg"],
            "",
            {"train/1/sdxl-turbo/": 1, "val/1/lcm/": 1, "val/0/real/": 1},
            id="DRCT-2M",
        ),
        pytest.param(
            ["DRCT-2M/sdxl-turbo/train2017/a.jpg"], "DRCT-2M", {"train/1/sdxl-turbo/": 1}, id="the fakes of DRCT-2M"
        ),
        pytest.param(
            ["imagenet/0_real/a.jpg", "laion/0_real/b.jpg", "ldm_200/1_fake/c.png", "guided/1_fake/d.png"],
            "",
            {"train/0/real/": 2, "train/1/ldm_200/": 1, "train/1/guided/": 1},
            id="UniversalFakeDetect",
        ),
        pytest.param(
            ["images/part-000001/a.png", "images/part-000001/part-000001.json"],
            "",
            {"train/1/stable-diffusion/": 1},
            id="DiffusionDB",
        ),
        pytest.param(
            ["train/REAL/a.jpg", "train/FAKE/b.jpg", "test/REAL/c.jpg", "test/FAKE/d.jpg"],
            "test",
            {"test/0/real/": 1, "test/1/fake/": 1},
            id="the test set of CIFAKE",
        ),
        pytest.param(
            ["dalle3/a.png", "firefly/b.png", "midjourney-v5/c.png", "stable-diffusion-xl/d.png"],
            "",
            {f"train/1/{name}/": 1 for name in ("dalle3", "firefly", "midjourney-v5", "stable-diffusion-xl")},
            id="Synthbuster",
        ),
        pytest.param(
            ["train/AI_SD_baroque/a.jpg", "test/AI_LD_realism/b.jpg", "test/realism/c.jpg"],
            "",
            {"train/1/stable-diffusion/baroque": 1, "test/1/latent-diffusion/realism": 1, "test/0/real/realism": 1},
            id="AI-ArtBench",
        ),
        pytest.param(
            ["images/reals/a.png", "images/fakes/b.png", "dire/fakes/b.png"],
            "",
            {"train/0/real/": 1, "train/1/fake/": 1},
            id="DistilDIRE's data root",
        ),
        pytest.param(
            ["train/0/a.png", "train/1/b.png"], "", {"train/0/real/": 1, "train/1/fake/": 1}, id="numbered folders"
        ),
    ],
)
def test_a_tree_is_read_as_its_data_set_describes_it(
    files: list[str], below: str, expected: dict[str, int], tmp_path: Path
) -> None:
    assert counts(plant(tmp_path, files) / below) == expected


def test_a_folder_whose_name_means_real_is_not_a_generator(tmp_path: Path) -> None:
    found = discover(plant(tmp_path, ["train/lsun/real/a.png", "train/lsun/authentic/b.png", "train/lsun/adm/c.png"]))
    assert {file.path: file.label for file in found.files} == {"train/lsun/real/a.png": 0, "train/lsun/adm/c.png": 1}
    assert [entry.folder for entry in found.account.uncovered] == ["train/lsun/authentic"]


def test_known_generators_in_a_folder_whose_name_could_mean_real_are_not_taken_for_real(tmp_path: Path) -> None:
    found = discover(plant(tmp_path, ["train/coco/real/a.png", "train/coco/adm/b.png", "train/photo/adm/c.png"]))
    assert [entry.folder for entry in found.account.uncovered] == ["train/photo"]
    assert [(file.label, file.group) for file in found.files] == [(1, "coco"), (0, "coco")]


def test_features_beside_images_are_named_and_left_alone(tmp_path: Path) -> None:
    account = discover(plant(tmp_path, [*FORENSICS, "dire/train/lsun/adm/2.png", "dire/a.png"])).account
    assert [(entry.folder, entry.images, entry.example) for entry in account.uncovered] == [("dire", 2, "dire/a.png")]
    assert "cache import" in account.uncovered[0].reason


@pytest.mark.parametrize("below", ["dire", "dire/train", "recons"])
def test_a_folder_of_reconstructions_is_not_built_as_photographs(below: str, tmp_path: Path) -> None:
    files = [f"{below.partition('/')[0]}/train/lsun/{name}/a.png" for name in ("real", "adm")]
    root = plant(tmp_path, files) / below
    with pytest.raises(UserError, match=r"not photographs.*cache import --kind dire"):
        discover(root)
    assert len(discover(root, "dire").files) == 2


def test_numbered_folders_are_taken_only_where_there_are_two_and_the_meaning_is_said(tmp_path: Path) -> None:
    root = plant(tmp_path, ["0/a.png", "1/b.png"])
    assert "--labels 0=fake,1=real" in discover(root).account.notes[0]
    plant(tmp_path, ["2/c.png"])
    with pytest.raises(UserError, match="unknown structure"):
        discover(root)


def test_a_folder_without_a_known_word_is_named_and_not_guessed(tmp_path: Path) -> None:
    account = discover(plant(tmp_path, ["train/real/a.png", "train/fake/b.png", "train/masks/x/c.png"])).account
    assert [(entry.folder, entry.images, entry.example) for entry in account.uncovered] == [
        ("train/masks", 1, "train/masks/x/c.png")
    ]


def test_subfolders_of_fakes_that_are_no_known_generators_stay_fake_and_that_is_said(tmp_path: Path) -> None:
    found = discover(plant(tmp_path, ["real/a.png", "fake/part1/b.png", "fake/part2/c.png"]))
    assert {file.generator for file in found.files} == {"real", "fake"}
    assert "part1, part2" in found.account.notes[0]
    assert "--real DIR --fake part1=DIR" in found.account.notes[0]
    assert "--layout" not in found.account.notes[0]
    for files, pattern in (
        (["real/r/a.png", "fake/part1/b.png"], "'{label}/{generator}'"),
        (["train/real/r/a.png", "train/fake/part1/b.png"], "'{split}/{label}/{generator}'"),
    ):
        assert f"--layout {pattern}" in discover(plant(tmp_path / files[0][:4], files)).account.notes[0]


def test_folders_of_unknown_words_are_answered_with_the_options_that_declare_them(tmp_path: Path) -> None:
    root = plant(tmp_path, ["midway/a.png", "snaps/b.png"])
    with pytest.raises(UserError, match=f"--real {root}/midway --fake snaps={root}/snaps"):
        discover(root)


def test_several_data_sets_in_a_folder_are_answered_with_the_command(tmp_path: Path) -> None:
    root = plant(
        tmp_path, ["one/train/real/a.png", "one/train/fake/b.png", "two/test/real/c.png", "two/test/fake/d.png"]
    )
    with pytest.raises(UserError, match=f"holds 2 data sets.*distil-cache build {root}/one {root}/two"):
        discover(root)


@pytest.mark.parametrize(
    ("below", "right"), [("set/train/real", "set"), ("set/train/real/n01", "set"), ("plain/fake", "plain")]
)
def test_the_folder_of_a_class_is_answered_with_the_folder_above(below: str, right: str, tmp_path: Path) -> None:
    root = plant(tmp_path, ["set/train/real/n01/a.png", "plain/fake/b.png"])
    with pytest.raises(UserError, match=rf"distil-cache build {root}/{right}\."):
        discover(root / below)


def test_metadata_with_labels_is_read_and_images_that_it_does_not_name_are_listed(tmp_path: Path) -> None:
    root = plant(tmp_path, ["train/0.png", "train/1.png", "val/2.png", "val/3.png"])
    (root / "train/metadata.csv").write_text("path,label\n0.png,real\n1.png,fake\n")
    (root / "val/metadata.csv").write_text("path,label\n2.png,fake\n")
    found = discover(root)
    assert found.layout == "metadata"
    assert [(file.root, file.path, file.label, file.split) for file in found.files] == [
        (str(root), "train/0.png", 0, "train"),
        (str(root), "train/1.png", 1, "train"),
        (str(root), "val/2.png", 1, "val"),
    ]
    assert [(entry.folder, entry.images) for entry in found.account.uncovered] == [("val", 1)]
    assert (found.account.files, found.account.not_images) == (6, 2)


def test_metadata_without_labels_leaves_the_folders_to_say_what_is_what(tmp_path: Path) -> None:
    root = plant(tmp_path, ["real/a.png", "authentic/b.png", "fake/c.png"])
    (root / "metadata.csv").write_text("path,prompt\nreal/a.png,a lake\n")
    assert discover(root).layout == "class-folders"


def test_metadata_of_a_part_does_not_take_the_place_of_class_folders(tmp_path: Path) -> None:
    root = plant(tmp_path, ["real/a.png", "fake/b.png", "more/c.png"])
    for content in ("path,label\nc.png,real\n", "path,label\nc.png,neither\n"):
        (root / "more/metadata.csv").write_text(content)
        found = discover(root)
        assert (found.layout, [entry.folder for entry in found.account.uncovered]) == ("real-fake", ["more"])


def test_the_tables_of_artifact_are_recognised_by_their_columns(tmp_path: Path) -> None:
    root = plant(tmp_path, ["coco/x/0.jpg", "stylegan2/x/0.jpg"])
    for folder, target in (("coco", 0), ("stylegan2", 6)):
        (root / folder / "metadata.csv").write_text(f"filename,image_path,target\n0.jpg,x/0.jpg,{target}\n")
    tables = labelled_tables(take_census(LocalTree(root)))
    assert [(table.folder, table.is_artifact) for table in tables] == [("coco", True), ("stylegan2", True)]


@pytest.mark.parametrize("name", ["metadata.csv", "Metadata.CSV"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_metadata_is_found_in_any_case_and_encoding_and_splits_are_in_its_paths(
    tmp_path: Path, name: str, encoding: str
) -> None:
    root = plant(tmp_path, ["train/a.png", "test/b.png"])
    (root / name).write_text("file_name,isFake\ntrain/a.png,0\ntest/b.png,1\n", encoding)
    found = discover(root)
    assert found.layout == "metadata"
    assert [(file.path, file.label, file.split) for file in found.files] == [
        ("train/a.png", 0, "train"),
        ("test/b.png", 1, "test"),
    ]


def test_artifacts_metadata_may_have_any_separator(tmp_path: Path) -> None:
    root = plant(tmp_path, ["sd/x/a.png", "sd/x/b.png"])
    (root / "sd/metadata.csv").write_text("filename;image_path;target\na.png;x/a.png;0\nb.png;x/b.png;6\n", "utf-16")
    assert [(file.label, file.generator) for file in discover(root).files] == [(0, "real"), (1, "sd")]


def test_metadata_with_labels_beside_class_folders_is_named(tmp_path: Path) -> None:
    root = plant(tmp_path, ["real/a.png", "fake/b.png"])
    (root / "metadata.csv").write_text("file_name,label\nreal/a.png,1\nfake/b.png,0\n")
    found = discover(root)
    assert found.layout == "real-fake"
    assert any("metadata with labels is not read: metadata.csv" in note for note in found.account.notes)


def test_a_folder_without_classes_and_with_a_table_is_answered_with_the_command(tmp_path: Path) -> None:
    root = plant(tmp_path, ["images/a.png", "images/b.png"])
    (root / "labels.csv").write_text("file_name,label\na.png,real\nb.png,fake\n")
    (root / "other.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match=r"Give the table: distil-cache build \S+/labels\.csv\.$"):
        discover(root)
