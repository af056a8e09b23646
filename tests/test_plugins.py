"""What other packages bring: found by name alone, loaded when it is asked for, and refused in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from distil_cache.errors import UserError
from distil_cache.plugins import Package, Registry, same_distribution
from plugin_packages import write_package


def checked(name: str, loaded: object, package: Package) -> str:
    if not isinstance(loaded, str):
        raise ValueError("it is no text.")
    return f"{loaded} of {package}"


def registry() -> Registry[str]:
    return Registry("thing", {"own": "built in"}, checked)


def bring(folder: Path, name: str, *things: str, code: str = "value = 'value'") -> None:
    module = name.replace("-", "_")
    entries = {"distil_cache.things": dict.fromkeys(things, f"{module}:value")}
    write_package(folder, name, "1.0", entries, {module: code})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_name_is_known_without_loading_its_package(site: Path) -> None:
    bring(site, "distil-b", "b", code="raise RuntimeError('loaded')")
    bring(site, "distil-a", "a")
    known = registry()
    assert list(known) == ["own", "a", "b"]
    assert len(known) == 3
    assert "b" in known
    assert "c" not in known
    assert known.package("b") == Package("distil-b", "1.0")
    assert known.package("own") is None
    assert not {"distil_a", "distil_b"} & sys.modules.keys()


def test_what_is_asked_for_is_loaded_once_and_given_its_package(site: Path) -> None:
    bring(site, "distil-once", "once")
    known = registry()
    assert known["once"] == "value of distil-once 1.0"
    assert known["once"] is known["once"]
    assert known["own"] == "built in"
    with pytest.raises(KeyError):
        known["nothing"]


def test_a_package_that_cannot_be_loaded_is_named_in_one_sentence_and_disturbs_no_other(site: Path) -> None:
    bring(site, "distil-broken", "broken", code="raise RuntimeError('line one\\nline two')")
    bring(site, "distil-whole", "whole")
    known = registry()
    with pytest.raises(
        UserError, match=r"thing broken: distil-broken 1\.0.*RuntimeError: line one\)\. Update"
    ) as error:
        known["broken"]
    assert "\n" not in str(error.value)
    assert known["whole"] == "value of distil-whole 1.0"


def test_a_package_that_brings_something_else_is_named_with_the_reason(site: Path) -> None:
    bring(site, "distil-number", "number", code="value = 7")
    with pytest.raises(UserError, match=r"thing number: distil-number 1\.0, .* is at fault: it is no text\."):
        registry()["number"]


def test_a_name_of_two_packages_is_refused_and_both_are_named(site: Path) -> None:
    bring(site, "distil-one", "shared")
    bring(site, "distil-two", "shared", "own")
    known = registry()
    with pytest.raises(UserError, match=r"thing shared: is provided by distil-one 1\.0 and by distil-two 1\.0"):
        known["shared"]
    with pytest.raises(UserError, match=r"thing own: is provided by distil-cache itself and by distil-two 1\.0"):
        known["own"]


def test_one_distribution_may_be_written_in_several_ways() -> None:
    assert same_distribution("Distil.Bands", "distil_bands")
    assert same_distribution("distil--bands", "distil-bands")
    assert not same_distribution("distil-bands", "distilbands")
