"""Measure what the audit claims: what it finds in real data and variants of them, false alarms, duplicates that were planted.

    python benchmarks/audit_claims.py --confounded photos256 --clean cifake [--clean demo-out/images/main] [--relabelings 20]

``--confounded`` is a folder whose real images are JPEG photographs of many sizes and whose generated ones are PNG of one
size; ``--clean`` are folders without such a flaw. All have the layout of ForenSynths.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from distil_cache.pipeline.audit.checks import all_checks
from distil_cache.pipeline.audit.files import near_duplicates, read_sample
from distil_cache.pipeline.audit.run import AuditRow, run_audit
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.discover import discover
from distil_cache.progress import Silent
from PIL import Image

SIDE = 256


def png(image: Image.Image) -> tuple[str, bytes]:
    return _saved(image, "png")


def cut_out(image: Image.Image) -> tuple[str, bytes] | None:
    if min(image.size) < SIDE:
        return None
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return _saved(image.crop((left, top, left + SIDE, top + SIDE)), "png")


def resized(image: Image.Image) -> tuple[str, bytes]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return _saved(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC), "png")


def jpeg(image: Image.Image) -> tuple[str, bytes]:
    return _saved(image, "jpeg", quality=95)


VARIANTS: dict[str, Callable[[Image.Image], tuple[str, bytes] | None]] = {
    "all saved again as PNG": png,
    "centre cut out, PNG": cut_out,
    "centre square resized, PNG": resized,
    "all saved as JPEG of quality 95": jpeg,
}


def _saved(image: Image.Image, kind: str, **options: int) -> tuple[str, bytes]:
    """Save the pixels and the colour profile, which Pillow hands on by itself as well."""
    buffer = io.BytesIO()
    profile = image.info.get("icc_profile")
    image.save(buffer, kind, **({"icc_profile": profile} if profile else {}), **options)
    return {"jpeg": "jpg"}.get(kind, kind), buffer.getvalue()


def convert(source: Path, target: Path, change: Callable[[Image.Image], tuple[str, bytes] | None]) -> Path:
    """Write a changed copy of a folder of images, leaving out those that ``change`` has nothing for."""
    for path in sorted(path for path in source.rglob("*.*") if path.is_file()):
        with Image.open(path) as image:
            profile = image.info.get("icc_profile")
            picture = image.convert("RGB")
            picture.info = {"icc_profile": profile} if profile else {}
        made = change(picture)
        if made is not None:
            place = (target / path.relative_to(source)).with_suffix(f".{made[0]}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(made[1])
    return target


def show(name: str, source: Path) -> None:
    """Audit a folder, and print the checks of all its images and what carries them."""
    result = run_audit([source])
    print(f"\n{name}: {result['real']} real, {result['fake']} generated; found: {result['found']}")
    for check in result["checks"]:
        low, high = check["interval"] or (float("nan"), float("nan"))
        found = "FOUND" if check["found"] else "-"
        print(f"  {check['part']:26}{check['features']:9}{check['auc'] or 0:.3f} ({low:.3f} to {high:.3f}) {found}")
        if check["part"] == "all":
            for carrier in check["carried_by"]:
                print(f"      {carrier['auc']:.2f}  {carrier['words']}")
    print(f"  duplicates: { {key: value for key, value in result['duplicates'].items() if key != 'near_examples'} }")


def rows_of(source: Path, sample: int) -> list[AuditRow]:
    """Return what an audit judges of a folder."""
    rows = scan(discover(source).files).rows
    _, group, _ = near_duplicates(rows, Silent())
    return read_sample(rows, group, sample, Silent())[0]


def false_alarms(name: str, rows: Sequence[AuditRow], relabelings: int) -> None:
    """Draw the labels anew, within each split, and count the checks that alarm."""
    rng = random.Random(0)
    checks = alarms = audits = 0
    for _ in range(relabelings):
        labels = {}
        for split in sorted({row.file.split for row in rows}):
            places = [place for place, row in enumerate(rows) if row.file.split == split]
            drawn = [rows[place].file.label for place in places]
            rng.shuffle(drawn)
            labels.update(zip(places, drawn, strict=True))
        drawn_rows = [replace(row, file=replace(row.file, label=labels[place])) for place, row in enumerate(rows)]
        found = [check["found"] for check in all_checks(drawn_rows)]
        checks, alarms, audits = checks + len(found), alarms + sum(found), audits + any(found)
    print(f"{name}: {audits} of {relabelings} random relabelings alarm, in {alarms} of {checks} checks", flush=True)


def planted(source: Path, target: Path) -> None:
    """Plant duplicates in a copy, and print how many of them are found."""
    shutil.copytree(source, target)
    generator = next(folder.name for folder in (target / "train").iterdir())
    train, test = (target / split / generator for split in ("train", "test"))
    reals, fakes = (sorted((train / kind).iterdir()) for kind in ("0_real", "1_fake"))
    for path in reals[:5]:
        shutil.copy(path, test / "0_real" / f"same-{path.name}")
    for path in reals[5:8]:
        shutil.copy(path, train / "1_fake" / f"same-{path.name}")
    for number, path in enumerate([*reals[10:20], *fakes[10:20]]):
        with Image.open(path) as image:
            smaller = image.convert("RGB").resize((image.width * 9 // 10, image.height * 9 // 10))
        place = train / "1_fake" if number < 5 else test / path.parent.name
        smaller.save(place / f"near-{path.stem}.jpg", quality=85)
    print(
        "\nplanted: 5 same bytes in both splits, 3 with both labels; 20 near ones, 5 of them with the other label, 15 in test"
    )
    found = run_audit([target], sample=0)["duplicates"]
    print({key: value for key, value in found.items() if key != "near_examples"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--confounded", type=Path, required=True)
    parser.add_argument("--clean", type=Path, action="append", default=[])
    parser.add_argument("--relabelings", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        show("as it is", options.confounded)
        variants = {name: convert(options.confounded, work / name, change) for name, change in VARIANTS.items()}
        for name, source in [*variants.items(), *((str(source), source) for source in options.clean)]:
            show(name, source)
        planted(options.confounded, work / "planted")
        print()
        for name, source in {
            "as it is": options.confounded,
            **variants,
            **{str(path): path for path in options.clean},
        }.items():
            false_alarms(name, rows_of(source, 200), options.relabelings)


if __name__ == "__main__":
    main()
