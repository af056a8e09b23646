"""Records of a cache from a stranger: whatever stands in them, each that reads one says one short sentence, or it does no harm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from distil_cache import cli
from distil_cache.cache.index.file import Header
from distil_cache.cache.lease import FOLDER as BUILDERS
from distil_cache.cache.lease import Lease, lease, read_leases
from distil_cache.cache.maintenance.listing import summary
from distil_cache.cache.maintenance.trash import REMOVED
from distil_cache.cache.records.about import About, Layout, Provider
from distil_cache.cache.records.audit import Carrier, Check, HeaderAudit
from distil_cache.cache.records.builds import BuildRecord, BuiltFeature, Ref, _id_of, read_build
from distil_cache.cache.records.sources import SourceRecord, SourceRecords, UncoveredImages, UnreadPlace
from distil_cache.cache.set_aside import read_set_aside, write_set_aside
from distil_cache.cache.shards.marker import Marker
from distil_cache.cache.spec import fingerprint_of, folder_name, imported_from
from distil_cache.cache.store import Cache
from distil_cache.errors import DistilCacheError, IntegrityError, UserError
from distil_cache.storage import json_record
from distil_cache.storage.json_record import InvalidRecordError, first_fault, parse_model
from maintained_cache import NAME, SIDE, Picture, build, key_of, train
from pydantic import BaseModel, ValidationError
from run_damage import changed, places

KEY = key_of("set aside")
ABOUT = About(
    layout=Layout((3, SIDE, SIDE), "uint8", "image"), description="the image",
    provider=Provider(distribution="distil-cache", version="1"),
)  # fmt: skip
AUDIT = HeaderAudit(real=1, fake=1, sample=1, found=False, sentence="", checks=(), told=())
ACCOUNT = SourceRecord(
    source="/pictures", layout="cnndet", files=1, images=1, used=1, rejected={"truncated": 0}, leaked=0, not_images=0,
    hidden=0, uncovered=(), unreadable=(), notes=("one",),
)  # fmt: skip

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cache": ("cache.json", Cache.open),
    "build": ("builds/*.json", lambda root: Cache.open(root).builds().all()),
    "reference": ("refs/run.json", lambda root: Cache.open(root).builds().refs()),
    "head": (f"datasets/{NAME}/HEAD-000001.json", lambda root: Cache.open(root).datasets().history(NAME)),
    "rejects": (f"datasets/{NAME}/*.rejects.jsonl", lambda root: list(Cache.open(root).datasets().rejects(NAME))),
    "audit": (f"datasets/{NAME}/*.audit.json", lambda root: Cache.open(root).datasets().audit(NAME)),
    "sources": (f"datasets/{NAME}/*.sources.json", lambda root: Cache.open(root).datasets().sources(NAME)),
    "spec": (
        "features/image-*/spec.json",
        lambda root: [summary(Cache.open(root)), [imported_from(store.spec) for store in Cache.open(root).features()]],
    ),
    "about": ("features/image-*/about.json", lambda root: [store.geometry for store in Cache.open(root).features()]),
    "marker": (
        "features/image-*/shards/*.json",
        lambda root: [marker for store in Cache.open(root).features() for marker in store.markers()],
    ),
    "lease": (f"{BUILDERS}/*.json", read_leases),
    "set aside": (
        "features/image-*/set-aside/*.json",
        lambda root: [read_set_aside(store) for store in Cache.open(root).features()],
    ),
}
"""Where each record lies, and what reads it."""

CONTENTS = {
    "nothing": b"",
    "NUL": b"\0" * 4096,
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a lone surrogate": b'{"a": "\\ud800"}',
    "a name with a surrogate": b'{"\\udcff": 1}',
    "a long name": b'{"' + b"k" * 2**20 + b'": 1}',
    "names that fake lines": b'{"a\\n\\u001b[31mb": 1}',
    "many names": json.dumps(dict.fromkeys(map(str, range(3000)))).encode(),
    "a long text": b'"' + b"k" * 2**20 + b'"',
    "a long number": b"9" * 5000,
    "a number": b"7",
    "a list": b"[1]",
    "NaN": b"NaN",
}
"""What may stand in a file instead. None of these is a record."""
HARMLESS = {
    "rejects": {
        "nothing",
        "a name with a surrogate",
        "a lone surrogate",
        "a long name",
        "names that fake lines",
        "many names",
    }
}
"""A list of rejects may be empty, and its objects may be of any form."""

ODD = (
    "", "/etc/passwd", "../../x", "a\0b", "two\nlines", "\x1b[31m", "\u202e", "\ud800", "x" * 2**16, 7, -1, 10**30, 1e308,
    float("nan"), None, True, [], {}, [{}], {"../x": "y"},
)  # fmt: skip
"""What may stand in any place of a record."""
TEXTS = [value for value in ODD if isinstance(value, str)]
FREE = {
    "build": {("features", "*", "splits", 0), ("versions", "*")},
    "reference": {("path",)},
    "lease": {("host",), ("dataset",), ("features", 0)},
    "audit": {("sentence",)},
    "sources": {("sources", 0, "source"), ("sources", 0, "layout"), ("sources", 0, "notes", 0)},
    "about": {("description",)},
    "marker": {("rejected", "*")},
    "set aside": {(KEY,)},
}
"""Places where any text may stand, since it is shown and nothing else; ``*`` is any name."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "cache"
    record, _ = build(root, train(0, 1, 2), rejected={key_of("bad"): "truncated: it ends early"})
    cache = Cache.open(root)
    cache.builds().add_ref("run", record.id, "/runs/run")
    cache.datasets().add_audit(NAME, record.revision, AUDIT)
    cache.datasets().add_sources(NAME, record.revision, SourceRecords(sources=(ACCOUNT,)))
    write_set_aside(cache.feature(Picture(), about=ABOUT), {KEY: "changed: its file"})
    with lease(root, "build", ["image-0123456789abcdef"], NAME) as path:
        shutil.copy(path, root / "kept")
    shutil.move(root / "kept", path)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "cache"))


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """End the tests where something is waited for."""
    signal.alarm(120)
    yield
    signal.alarm(0)


def refusal(read: Callable[[Path], object], root: Path) -> str:
    """Return the sentence with which reading is refused, or nothing; any other error is that of the code under test."""
    said = ""
    try:
        read(root)
    except DistilCacheError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 1000
    return said


@pytest.mark.parametrize("kind", READERS)
def test_whatever_stands_in_the_file_of_a_record_is_one_short_sentence(root: Path, kind: str) -> None:
    pattern, read = READERS[kind]
    path = next(root.glob(pattern))
    assert not refusal(read, root)
    accepted = set()
    for name, content in CONTENTS.items():
        path.write_bytes(content)
        accepted |= set() if refusal(read, root) else {name}
    assert accepted == HARMLESS.get(kind, set())


def seal(kind: str, path: Path, content: Any) -> Path:
    """Return where a record must lie to belong to its content, as a stranger would put it; its id is set to fit."""
    with suppress(ValueError, TypeError, AttributeError, LookupError):  # such a content belongs nowhere
        if kind == "build":
            features = {name: BuiltFeature.model_validate(value) for name, value in content["features"].items()}
            content["id"] = _id_of(content["dataset"], content["revision"], features)
            return path.with_name(f"{content['id']}.json")
        if kind == "spec":
            folder = folder_name(content["feature"], fingerprint_of(content)).replace("\0", "")[:250]
            return path.parents[1] / Path(folder).name / path.name
    return path


def refused(kind: str, root: Path, content: Any) -> bool:
    """Put a record in the place of the whole one, and return whether it is refused."""
    pattern, read = READERS[kind]
    path = next(root.glob(pattern))
    whole, target = path.read_bytes(), seal(kind, path, content)
    path.unlink()
    if target.parent != path.parent:
        path.parent.rename(target.parent)
    target.write_text(json.dumps(content))
    try:
        return bool(refusal(read, root))
    finally:
        target.unlink()
        if target.parent != path.parent:
            target.parent.rename(path.parent)
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind not in ("rejects", "spec")])
def test_odd_values_in_any_place_of_a_record_are_one_short_sentence_or_a_text_that_is_only_shown(
    root: Path, kind: str
) -> None:
    text = next(root.glob(READERS[kind][0])).read_text()
    free = {("id",), *FREE.get(kind, ())}  # the id is set anew
    for place in places(json.loads(text)):
        accepted = [value for value in ODD if not refused(kind, root, json.loads(changed(text, place, value)))]
        if not any(_fits(place, pattern) for pattern in free):
            assert not [value for value in accepted if value in TEXTS], place


def test_a_spec_of_any_values_under_its_own_name_is_listed_or_refused_and_harms_no_command(root: Path) -> None:
    text = next(root.glob(READERS["spec"][0])).read_text()
    deep: Any = 1
    for _ in range(400):
        deep = {"feature": deep}
    for place in [*places(json.loads(text)), ("preset",), ("perturb",), ("harmonize",)]:
        for value in (*ODD, deep, {"feature": deep}, {"kind": ODD}, {"name": {}}):
            refused("spec", root, json.loads(changed(text, place, value)))


def _fits(place: tuple[str | int, ...], pattern: tuple[str | int, ...]) -> bool:
    return len(place) == len(pattern) and all(two in ("*", one) for one, two in zip(place, pattern, strict=True))


WRONG: dict[str, tuple[type[BaseModel], object]] = {
    "keys of a marker": (Marker, {"keys": [""] * 3000}),
    "offsets of a marker": (Marker, {"offsets": ["x"] * 3000}),
    "shards that a marker replaces": (Marker, {"merged": [[]] * 3000}),
    "shape in a marker": (Marker, {"shape": [[]] * 3000}),
    "reasons in a marker": (Marker, {"rejected": dict.fromkeys(map(str, range(3000)))}),
    "shards of a build": (BuiltFeature, {"shards": [{}] * 3000}),
    "splits of a build": (BuiltFeature, {"splits": [{}] * 3000}),
    "features of a build": (BuildRecord, {"features": dict.fromkeys(map(str, range(3000)))}),
    "versions of a build": (BuildRecord, {"versions": dict.fromkeys(map(str, range(3000)))}),
    "shards of an index": (Header, {"shards": [""] * 3000}),
    "rows of an index": (Header, {"rows": [""] * 3000}),
    "bytes of an index": (Header, {"bytes": [""] * 3000}),
    "reasons in an index": (Header, {"rejected": dict.fromkeys(map(str, range(3000)))}),
    "reasons of a shard in an index": (Header, {"rejected": {KEY: dict.fromkeys(map(str, range(3000)))}}),
    "shards that an index replaces": (Header, {"merged": dict.fromkeys(map(str, range(3000)))}),
    "sources of a revision": (SourceRecords, {"sources": [1] * 3000}),
    "folders in an account": (SourceRecord, {"uncovered": [1] * 3000}),
    "places in an account": (SourceRecord, {"unreadable": [1] * 3000}),
    "notes of an account": (SourceRecord, {"notes": [1] * 3000}),
    "reasons in an account": (SourceRecord, {"rejected": dict.fromkeys(map(str, range(3000)))}),
    "comparisons of an audit": (HeaderAudit, {"checks": [1] * 3000}),
    "features of a comparison": (Check, {"carried_by": [1] * 3000}),
    "reported features of an audit": (HeaderAudit, {"told": [1] * 3000}),
    "features of a lease": (Lease, {"features": [[]] * 3000}),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_of_many_wrong_items_the_first_is_enough_since_each_error_takes_memory(what: str) -> None:
    form, content = WRONG[what]
    with pytest.raises(ValidationError) as caught:
        form.model_validate_json(json.dumps(content))
    assert caught.value.error_count() < 20  # with the fields that are missing


def test_of_very_many_faults_their_number_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        Ref.model_validate_json(json.dumps(dict.fromkeys(map(str, range(3000)))))
    assert first_fault(caught.value) == "3,003 of its values are wrong"


@pytest.mark.parametrize("inner", [False, True])
def test_of_too_many_names_in_one_object_none_becomes_an_error(monkeypatch: pytest.MonkeyPatch, inner: bool) -> None:
    monkeypatch.setattr(json_record, "MOST_NAMES", 20)
    names = dict.fromkeys(map(str, range(21)), 0)
    with pytest.raises(InvalidRecordError, match="one object has 21 names") as caught:
        parse_model(Ref, json.dumps([{"a": 1}, names] if inner else names).encode())
    assert caught.value.__cause__ is None
    with pytest.raises(InvalidRecordError, match="one object has 30 names"):
        parse_model(Ref, b"{" + b",".join([b'"run":0'] * 30) + b"}")
    several = json.dumps([{str(n): 0} for n in range(21)]).encode()
    with pytest.raises(InvalidRecordError, match="should be an object"):
        parse_model(Ref, several)
    with pytest.raises(InvalidRecordError, match="nvalid JSON"):
        parse_model(Ref, b":" * 21)


def test_a_record_of_too_many_names_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_record, "MOST_NAMES", 20)
    path = next(root.glob("builds/*.json"))
    path.write_text(json.dumps(dict.fromkeys(map(str, range(21)), 0)))
    with pytest.raises(IntegrityError, match=r"is not a valid record \(one object has 21 names\)"):
        read_build(path)


def test_an_account_of_too_many_places_lists_those_with_most_images_and_still_adds_up(root: Path) -> None:
    uncovered = tuple(
        UncoveredImages(folder=f"folder {n}", reason="no class", images=n, example=f"{n}.png") for n in range(1, 401)
    )
    unreadable = tuple(UnreadPlace(path=f"place {n}", reason="leads out") for n in range(400))
    notes, images = tuple(f"note {n}" for n in range(400)), sum(range(1, 401))
    whole = ACCOUNT.model_copy(
        update={"files": 1 + images, "uncovered": uncovered, "unreadable": unreadable, "notes": notes}
    )
    records = SourceRecords(sources=(whole, ACCOUNT)).within(8000)
    assert len(records.as_json()) <= 8000
    shorter = SourceRecord.model_validate_json(records.sources[0].model_dump_json())  # it adds up
    listed = len(shorter.uncovered) - 1
    assert [entry.images for entry in shorter.uncovered[:-1]] == list(range(400, 400 - listed, -1))
    assert shorter.uncovered[-1].folder == f"{400 - listed} other folders"
    assert shorter.unreadable[-1] == UnreadPlace(path=f"{400 - listed} other places", reason="leads out")
    assert shorter.notes[-1] == f"{400 - listed} other notes are not listed."
    assert records.sources[1] == ACCOUNT
    assert SourceRecords(sources=(ACCOUNT,)).within(8000) == SourceRecords(sources=(ACCOUNT,))


def test_an_audit_of_too_many_parts_lists_the_clearest_and_counts_the_others() -> None:
    carrier = Carrier(feature="width", auc=1, words="64 against 32")

    def check(number: int) -> Check:
        judged = number % 3 > 0
        return Check(
            part=f"generator {number}", features="headers", real=2, fake=1, auc=0.5 if judged else None,
            interval=(0.4, 0.6) if judged else None, level=0.95, found=number == 200, reason="",
            carried_by=(carrier,) if number == 200 else (),
        )  # fmt: skip

    whole = AUDIT.model_copy(update={"checks": tuple(check(number) for number in range(300))})
    shorter = HeaderAudit.model_validate_json(whole.within(9000).as_json())
    assert len(shorter.as_json()) <= 9000
    assert shorter.checks[0].part == "generator 200"
    assert all(one.auc is not None for one in shorter.checks[:-1])
    others = 301 - len(shorter.checks)
    assert (shorter.checks[-1].part, shorter.checks[-1].real) == (f"{others} other parts", 2 * others)
    assert whole.within(10**6) == whole


def test_a_reference_under_the_name_of_another_run_is_refused(root: Path) -> None:
    (root / "refs" / "run.json").rename(root / "refs" / "other.json")
    assert "is the reference of another run, run" in refusal(READERS["reference"][1], root)


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[object, str]:
    """Run the program; return its exit code and what it said."""
    monkeypatch.setattr(sys, "argv", ["distil-cache", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return ended.value.code, printed.out + printed.err


def _second_data(root: Path) -> Path:
    """Return a marker with two data of which either may be its own."""
    path = next(root.glob(READERS["marker"][0]))
    data = next(path.parent.glob(f"{path.stem}-*.zarr"))
    shutil.copytree(data, data.with_name(f"{path.stem}-{'0' * 16}.zarr"))
    return path


def test_no_command_waits_for_a_pipe_in_the_place_of_a_marker_or_takes_it_for_damage_elsewhere(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = _second_data(root)
    marker.unlink()
    os.mkfifo(marker)
    for command in (("gc",), ("gc", "--yes", "--grace", "0"), ("ls",), ("verify",)):
        code, said = run(capsys, monkeypatch, "cache", command[0], root, *command[1:])
        assert "Traceback" not in said
        assert code in (0, 4)
    assert len(list(marker.parent.glob(f"{marker.stem}-*.zarr"))) == 2


@pytest.mark.parametrize("content", ["a = " + "[" * 50_000, "a = " + "{b = " * 50_000])
def test_a_deep_recipe_is_a_sentence_for_the_command_and_none_for_a_listing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    recipe = tmp_path / "deep.toml"
    recipe.write_text(content)
    code, said = run(capsys, monkeypatch, "build", recipe)
    assert (code, said.count("\n")) == (1, 1)
    assert "is not a recipe in TOML" in said
    record = next(root.glob("builds/*.json"))
    shutil.copy(recipe, record.with_suffix(".toml"))
    assert Cache.open(root).builds().adm_name(record.stem) is None


def test_what_lies_in_the_trash_of_builds_is_checked_like_any_record(root: Path) -> None:
    trashed = root / "builds" / REMOVED / next(root.glob("builds/*.json")).name
    trashed.parent.mkdir()
    os.mkfifo(trashed)
    with pytest.raises(UserError, match="is not a regular file"):
        read_build(trashed)
