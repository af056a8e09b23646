"""The recipe beside a build record goes when its record is gone, and not before."""

from __future__ import annotations

from pathlib import Path

from distil_cache.cache.maintenance.garbage import find_garbage
from plain_cache import make_cache, rows


def test_the_recipe_of_a_build_is_garbage_once_its_record_is_neither_there_nor_to_be_restored(tmp_path: Path) -> None:
    cache, build = make_cache(tmp_path / "cache", rows("train", 2, {"adm": 2}))
    cache.builds().write_recipe(build.id, b'command = "build"\n')
    cache.builds().write_recipe(build.id, b"another\n")
    recipe = cache.root / "builds" / f"{build.id}.toml"
    assert cache.builds().adm_name(build.id) is None
    assert recipe.read_text() == 'command = "build"\n'
    record = recipe.with_suffix(".json")
    assert recipe not in [item.path for item in find_garbage(cache)]
    (record.parent / "removed").mkdir()
    record.rename(record.parent / "removed" / record.name)
    assert recipe not in [item.path for item in find_garbage(cache)]
    (record.parent / "removed" / record.name).unlink()
    assert recipe in [item.path for item in find_garbage(cache)]
