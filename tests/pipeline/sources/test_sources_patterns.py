"""Patterns of folders that users write."""

from __future__ import annotations

from pathlib import Path

import pytest
from distil_cache.errors import UsageError
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.folders.patterns import compile_pattern
from distil_cache.pipeline.sources.reading import parse_reading
from source_trees import plant


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("{split}/{label}", "training/FAKE", {"split": "train", "label": "1"}),
        ("{split}/{label}", "training/x", None),
        ("{split}/{label}", "x/training/real", None),
        ("**/{split}/{label}", "x/y/test/real", {"split": "test", "label": "0"}),
        ("{generator}/**/{label}", "adm/a/b/ai", {"generator": "adm", "label": "1"}),
        ("{generator}/**/{label}", "adm/ai", {"generator": "adm", "label": "1"}),
        ("[{split}/]{generator}/{label}", "adm/ai", {"generator": "adm", "label": "1"}),
        ("[{split}/]{generator}/{label}", "val/adm/ai", {"split": "val", "generator": "adm", "label": "1"}),
        ("{generator}/{label}", "train/ai", None),
        ("{split}_{label}", "train_real", {"split": "train", "label": "0"}),
        ("{class}/{family}/{label:yes,fake}", "cat/gan/FAKE", {"group": "cat", "family": "gan", "label": "1"}),
        ("{label:0_real,1_fake}", "real", None),
        ("image*/{label}", "Images2/real", {"label": "0"}),
        ("*/{label}", "any/real", {"label": "0"}),
        ("{generator:known}", "stylegan3-t", {"generator": "stylegan3-t"}),
        ("{generator:known}", "holidays", None),
        ("{generator:known}", "real_stylegan", None),
    ],
)
def test_a_pattern_says_what_the_path_of_a_folder_means(
    pattern: str, path: str, expected: dict[str, str] | None
) -> None:
    assert compile_pattern(pattern).match(path.split("/")) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{split}/{colour}", "colour"),
        ("{split}/{split}", "occurs twice"),
        ("{split}/{label", "cannot be read"),
        ("[{split}/{label}", "without a ]"),
        ("{split}]/{label}", r"a \] without"),
        ("**/**/**/{label}", "more than 2"),
        ("[a/]" * 40 + "{label}", "too many optional parts"),
    ],
)
def test_a_pattern_that_cannot_be_read_is_refused(pattern: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        discover(plant(tmp_path, ["a.png"]), pattern)


def test_a_pattern_of_the_users_is_read_with_the_words_of_the_user(tmp_path: Path) -> None:
    root = plant(tmp_path, ["adm/training/nature/a.png", "adm/training/robots/b.png", "glide/dev/robots/c.png"])
    found = discover(root, "{generator}/{split}/{label}", parse_reading("robots=fake", None))
    assert [(file.split, file.label, file.generator) for file in found.files] == [
        ("train", 0, "adm"),
        ("train", 1, "adm"),
        ("val", 1, "glide"),
    ]
    assert found.layout == "{generator}/{split}/{label}"


def test_a_pattern_without_a_label_takes_it_from_the_names_of_generators(tmp_path: Path) -> None:
    root = plant(tmp_path, ["coco/a.png", "mystery/b.png", "sdxl/c.png", "authentic/d.png"])
    found = discover(root, "{generator}", parse_reading("coco=real,*=fake", None))
    assert {(file.path, file.label, file.generator) for file in found.files} == {
        ("coco/a.png", 0, "real"),
        ("mystery/b.png", 1, "mystery"),
        ("sdxl/c.png", 1, "sdxl"),
        ("authentic/d.png", 0, "real"),
    }
    account = discover(root, "{generator}", parse_reading("coco=real", None)).account
    assert [entry.folder for entry in account.uncovered] == ["mystery"]


def test_words_of_the_user_are_known_in_every_layout(tmp_path: Path) -> None:
    root = plant(tmp_path, ["train/echt/a.png", "train/falsch/b.png"])
    found = discover(root, None, parse_reading("echt=real,falsch=fake", None))
    assert [(file.label, file.generator) for file in found.files] == [(0, "real"), (1, "fake")]
