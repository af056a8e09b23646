from __future__ import annotations

import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from distil_cache.errors import UserError
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.file import DiscoveredSource, SourceFile
from distil_cache.pipeline.sources.folders.layouts import LAYOUTS, family_of
from source_trees import BESIDE, TREES, plant


def described(found: DiscoveredSource) -> dict[str, tuple[int, str, str, str, str]]:
    return {file.path: (file.label, file.split, file.generator, file.family, file.group) for file in found.files}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_layout_is_recognised_on_sight_and_by_name(layout: str, tmp_path: Path) -> None:
    root = plant(tmp_path, TREES[layout] + BESIDE.get(layout, []))
    on_sight = discover(root)
    assert on_sight.layout == layout
    assert on_sight == discover(root, layout)
    assert [file.path for file in on_sight.files] == sorted(TREES[layout])
    assert {file.root for file in on_sight.files} == {str(root)}
    assert on_sight.account.uncovered == ()


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_tree_is_not_taken_for_another_layout(layout: str, tmp_path: Path) -> None:
    root = plant(tmp_path, TREES[layout])
    for other in set(LAYOUTS) - {layout, "class-folders"}:
        with pytest.raises(UserError, match=f"Expected .*{other}"):
            discover(root, other)


def test_distildire_names_its_images_real_and_fake(tmp_path: Path) -> None:
    assert described(discover(plant(tmp_path, TREES["distildire"]))) == {
        "train/images/reals/a.png": (0, "train", "real", "real", ""),
        "train/images/fakes/b.png": (1, "train", "fake", "unknown", ""),
        "test/images/fakes/c.png": (1, "test", "fake", "unknown", ""),
    }


def test_cnndet_reals_belong_to_the_generator_of_their_folder_and_a_class_is_the_group(tmp_path: Path) -> None:
    assert described(discover(plant(tmp_path, TREES["cnndet"]))) == {
        "train/progan/horse/0_real/a.png": (0, "train", "progan", "gan", "horse"),
        "train/progan/horse/1_fake/b.png": (1, "train", "progan", "gan", "horse"),
        "val/adm/0_real/c.png": (0, "val", "adm", "diffusion", ""),
        "val/adm/1_fake/d.png": (1, "val", "adm", "diffusion", ""),
    }


def test_dire_reals_belong_to_their_group_and_every_other_folder_is_a_generator(tmp_path: Path) -> None:
    assert described(discover(plant(tmp_path, TREES["dire"]))) == {
        "train/imagenet/real/n01/a.JPEG": (0, "train", "real", "real", "imagenet"),
        "train/imagenet/adm/b.png": (1, "train", "adm", "diffusion", "imagenet"),
        "test/imagenet/sdv1/c.png": (1, "test", "sdv1", "diffusion", "imagenet"),
        "test/lsun_bedroom/real/d.jpg": (0, "test", "real", "real", "lsun_bedroom"),
        "test/lsun_bedroom/stylegan/e.png": (1, "test", "stylegan", "gan", "lsun_bedroom"),
    }


def test_genimage_keeps_val_and_takes_the_generator_from_the_folder(tmp_path: Path) -> None:
    assert described(discover(plant(tmp_path, TREES["genimage"]))) == {
        "Midjourney/train/ai/a.png": (1, "train", "Midjourney", "diffusion", ""),
        "Midjourney/val/nature/b.JPEG": (0, "val", "Midjourney", "diffusion", ""),
        "BigGAN/val/ai/c.png": (1, "val", "BigGAN", "gan", ""),
    }


def test_real_and_fake_folders_without_splits_are_all_for_training(tmp_path: Path) -> None:
    assert described(discover(plant(tmp_path, ["Real/a.jpg", "fake/sub/b.jpg"]))) == {
        "Real/a.jpg": (0, "train", "real", "real", ""),
        "fake/sub/b.jpg": (1, "train", "fake", "unknown", ""),
    }


def test_a_folder_called_valid_is_the_split_val(tmp_path: Path) -> None:
    assert [file.split for file in discover(plant(tmp_path, ["valid/real/a.jpg"])).files] == ["val"]


@pytest.mark.parametrize(
    ("generator", "family"),
    [
        ("latent-diffusion", "diffusion"),
        ("sd14", "diffusion"),
        ("sdv1_new1", "diffusion"),
        ("stable_diffusion_v_1_4", "diffusion"),
        ("imagenet_ai_0419_vqdm", "diffusion"),
        ("glide_100_27", "diffusion"),
        ("DALL-E", "diffusion"),
        ("dalle2", "diffusion"),
        ("IF", "diffusion"),
        ("StyleGAN2-ada", "gan"),
        ("diff-projectedgan", "gan"),
        ("real", "real"),
        ("fake", "unknown"),
        ("deepfake", "unknown"),
    ],
)
def test_the_family_follows_from_the_name_of_the_generator(generator: str, family: str) -> None:
    assert family_of(generator) == family


def test_names_with_dots_spaces_and_other_letters_are_kept(tmp_path: Path) -> None:
    names = ["fake/a.b.c.PNG", "fake/a b.Jpeg", "fake/größe 写真.webp", "fake/x;y'z\\.tiff"]
    assert [file.path for file in discover(plant(tmp_path, names)).files] == sorted(names)


def test_other_files_are_ignored_and_counted_and_clutter_is_passed_over(tmp_path: Path) -> None:
    files = ["real/a.png", "real/notes.txt", "fake/b.png.part", "fake/labels.csv"]
    clutter = ["real/.a.png", "real/._b.jpg", "fake/Thumbs.db", "__MACOSX/real/c.png", "real/__MACOSX/d.png"]
    found = discover(plant(tmp_path, files + clutter + [".git/fake/e.png", "real/.cache/f.png"]))
    assert [file.path for file in found.files] == ["real/a.png"]
    assert found.account.not_images == 3


def test_linked_folders_are_followed_and_those_that_lead_out_are_named(tmp_path: Path) -> None:
    elsewhere = plant(tmp_path / "elsewhere", ["x.png"])
    root = plant(tmp_path / "source", ["train/adm/0_real/a.png", "train/adm/1_fake/b.png"])
    (root / "train/ldm").mkdir()
    (root / "train/ldm/0_real").symlink_to(root / "train/adm/0_real")
    (root / "train/ldm/1_fake").symlink_to(elsewhere)
    (root / "train/adm/1_fake/more").symlink_to(elsewhere)
    (root / "train/adm/1_fake/linked.png").symlink_to(elsewhere / "x.png")
    found = discover(root)
    assert [file.path for file in found.files] == [
        "train/adm/0_real/a.png",
        "train/adm/1_fake/b.png",
        "train/adm/1_fake/linked.png",
        "train/adm/1_fake/more/x.png",
        "train/ldm/0_real/a.png",
        "train/ldm/1_fake/x.png",
    ]
    assert found.account.notes == (
        "2 links that lead out of the source are followed: train/adm/1_fake/more, train/ldm/1_fake.",
    )
    inside = discover(root, follow_out=False)
    assert [file.path for file in inside.files if "x.png" in file.path] == []
    assert {(place.path, place.reason) for place in inside.account.unreadable} == {
        ("train/ldm/1_fake", "is a link that leads out of the source"),
        ("train/adm/1_fake/more", "is a link that leads out of the source"),
    }


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    root = plant(tmp_path, ["real/one/a.png", "real/two/b.png", "fake/c.png"])
    (root / "real/up").symlink_to(root)
    (root / "real/one/two").symlink_to(root / "real/two")
    (root / "real/two/one").symlink_to(root / "real/one")
    (root / "real/self.png").symlink_to(root / "real/self.png")
    (root / "real/dangling.jpg").symlink_to(root / "nowhere.jpg")
    found = discover(root)
    assert {file.path: file.label for file in found.files} == {
        "fake/c.png": 1,
        "real/dangling.jpg": 0,
        "real/one/a.png": 0,
        "real/self.png": 0,
        "real/two/b.png": 0,
    }
    assert {place.path: place.reason for place in found.account.unreadable} == {
        "real/up": "is a link to a folder above it",
        "real/one/two/one": "is a link to a folder above it",
        "real/two/one/two": "is a link to a folder above it",
        "real/one/two": "is real/two again, which is read once",
        "real/two/one": "is real/one again, which is read once",
    }


def test_an_unknown_structure_is_refused_with_what_was_looked_for_and_found(tmp_path: Path) -> None:
    root = plant(tmp_path, ["photos/cats/a.png", "b.png"])
    with pytest.raises(UserError) as caught:
        discover(root)
    message = str(caught.value)
    assert str(root) in message
    assert "photos/cats/" in message
    assert all(layout.rows[0].pattern in message for layout in LAYOUTS.values())


def test_links_that_lead_out_are_named_where_they_are_not_followed(tmp_path: Path) -> None:
    elsewhere = plant(tmp_path / "elsewhere", ["x.png"])
    root = plant(tmp_path / "source", ["other/a.png"])
    (root / "real").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"Not entered: real is a link that leads out of the source\."):
        discover(root, follow_out=False)


def test_a_tree_of_two_layouts_that_one_covers_is_read_whole(tmp_path: Path) -> None:
    root = plant(tmp_path, TREES["cnndet"] + TREES["real-fake"])
    found = discover(root)
    assert (found.layout, len(found.files), found.account.uncovered) == ("class-folders", 7, ())
    assert described(found)["train/progan/horse/1_fake/b.png"] == (1, "train", "progan", "gan", "horse")
    part = discover(root, "cnndet")
    assert len(part.files) == 4
    assert [(entry.folder, entry.images) for entry in part.account.uncovered] == [
        ("test", 1),
        ("train/FAKE", 1),
        ("train/REAL", 1),
    ]


def test_layouts_that_disagree_ask_for_one(tmp_path: Path) -> None:
    root = plant(tmp_path, ["train/real/0_real/a.png", "train/real/1_fake/b.png"])
    with pytest.raises(UserError, match=r"cnndet and real-fake, which differ.*--layout"):
        discover(root)


def test_layouts_that_cover_different_parts_ask_for_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"parts of it fit the layouts .* and .*--layout"):
        discover(plant(tmp_path, TREES["cnndet"] + TREES["dire"]))


def test_a_layout_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image file"):
        discover(plant(tmp_path, ["real/a.txt", "fake/b.txt"]))


def test_a_source_that_is_not_there_or_a_layout_that_is_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        discover(tmp_path / "missing")
    with pytest.raises(UserError, match="no such layout"):
        discover(tmp_path, "imagenet")
    with pytest.raises(UserError, match="needs a CSV or Parquet file"):
        discover(tmp_path, "table")


def test_a_folder_whose_name_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff"))
    try:
        plant(odd, TREES["real-fake"])
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(UserError, match=r"odd\\xff: the name is not valid UTF-8"):
        discover(odd)


def test_real_photographs_in_the_cnndet_layout_are_found(shared: Path, tmp_path: Path) -> None:
    with tarfile.open(shared / "data" / "photos256.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    found = discover(tmp_path / "photos256")
    assert (found.layout, len(found.files), found.account.not_images) == ("cnndet", 192, 0)
    assert {(file.generator, file.family, file.group) for file in found.files} == {
        ("latent-diffusion", "diffusion", "")
    }
    assert Counter(Path(file.path).suffix for file in found.files) == {".jpg": 96, ".png": 96}
    assert all((file.label == 0) == file.path.endswith(".jpg") for file in found.files)


def test_a_file_knows_its_location() -> None:
    assert SourceFile("data/x", "real/a.png", 0, "train", "real", "real", "").location == "data/x/real/a.png"


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (
            ["real/train/a.png", "real/val/b.png", "fake/train/c.png", "fake/val/d.png"],
            {"real/train/a.png": (0, "train"), "real/val/b.png": (0, "val")}
            | {"fake/train/c.png": (1, "train"), "fake/val/d.png": (1, "val")},
        ),
        (
            ["human/Testing/a.png", "ai/x/Testing/b.png"],
            {"human/Testing/a.png": (0, "test"), "ai/x/Testing/b.png": (1, "test")},
        ),
        (
            ["biggan/0_real/test/a.png", "biggan/1_fake/b.png"],
            {"biggan/0_real/test/a.png": (0, "test"), "biggan/1_fake/b.png": (1, "train")},
        ),
        (["0/test/a.png", "1/test/b.png"], {"0/test/a.png": (0, "test"), "1/test/b.png": (1, "test")}),
    ],
)
def test_splits_below_the_folders_of_classes_are_read(
    paths: list[str], expected: dict[str, tuple[int, str]], tmp_path: Path
) -> None:
    found = discover(plant(tmp_path, paths))
    assert {file.path: (file.label, file.split) for file in found.files} == expected


def test_splits_and_generators_below_fakes_are_read_in_either_order(tmp_path: Path) -> None:
    paths = ["fake/flux/val/a.png", "fake/test/sdxl/b.png", "fake/test/odd/c.png", "real/test/d.png"]
    found = discover(plant(tmp_path, paths))
    assert {file.path: (file.split, file.generator) for file in found.files} == {
        "fake/flux/val/a.png": ("val", "flux"),
        "fake/test/sdxl/b.png": ("test", "sdxl"),
        "fake/test/odd/c.png": ("test", "odd"),
        "real/test/d.png": ("test", "real"),
    }
    assert "Subfolders of generated images are taken for generators: flux, odd, sdxl." in found.account.notes


def test_a_note_names_folders_of_splits_below_what_the_users_pattern_describes(tmp_path: Path) -> None:
    found = discover(plant(tmp_path, ["real/val/a.png", "fake/val/b.png"]), "{label}")
    assert {file.split for file in found.files} == {"train"}
    assert any("splits (val)" in note and "{label}/{split}" in note for note in found.account.notes)


def test_a_note_names_folders_without_a_split_beside_splits(tmp_path: Path) -> None:
    root = plant(tmp_path, ["train/real/a.png", "train/fake/b.png", "unseen/real/c.png", "unseen/fake/d.png"])
    found = discover(root)
    assert {file.split for file in found.files} == {"train"}
    assert any("taken for train: unseen/fake/, unseen/real/" in note for note in found.account.notes)


@pytest.mark.parametrize(
    ("paths", "generators"),
    [
        (
            ["GenImage/imagenet_midjourney/val/ai/a.png", "GenImage/imagenet_glide/val/nature/b.png"],
            {"imagenet_midjourney", "imagenet_glide"},
        ),
        (["diffusion_datasets/laion/0_real/a.png", "diffusion_datasets/ldm_200/1_fake/b.png"], {"real", "ldm_200"}),
        # A generator with classes, and one in whose folder the data set was unpacked, keep their names.
        (["R3GAN/car/0_real/a.png", "R3GAN/cat/1_fake/b.png"], {"R3GAN"}),
        (["VQDM/imagenet_ai_0419_vqdm/val/ai/a.png", "VQDM/imagenet_ai_0419_vqdm/val/nature/b.png"], {"VQDM"}),
    ],
)
def test_the_folder_that_holds_all_generators_is_none(paths: list[str], generators: set[str], tmp_path: Path) -> None:
    found = discover(plant(tmp_path, paths))
    assert {file.generator for file in found.files} == generators
    assert found.account.images == len(paths)


def test_the_folder_of_one_generator_is_answered_with_how_to_declare_it(tmp_path: Path) -> None:
    root = plant(tmp_path, ["test/imagenet/adm/a.png"]) / "test/imagenet/adm"
    with pytest.raises(UserError, match=r"folder of one generator.*--real DIR --fake adm=\S+/test/imagenet/adm\.$"):
        discover(root)


def test_a_cache_as_a_source_is_called_a_cache(tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a cache, which holds features.*--from-cache"):
        discover(tmp_path)
