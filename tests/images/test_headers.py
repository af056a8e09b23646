"""What a scan reads off a file's header: plain files without Pillow and all others with it, always to the same result."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache

import numpy as np
import pytest
from distil_cache.images.file import ImageRejected
from distil_cache.images.headers import (
    FileHeader,
    HeaderTraits,
    parse_jpeg_header,
    parse_png_header,
    parse_traits,
    read_header,
    read_header_with_pillow,
)
from distil_cache.images.jpeg import parse_jpeg
from distil_cache.pipeline.audit.header_features import header_facts, row_facts
from distil_cache.pipeline.scan.rows import ScannedRow
from distil_cache.pipeline.sources.file import SourceFile
from hypothesis import example, given
from hypothesis import strategies as st
from image_bytes import bad_files, noise, saved, turned
from PIL import Image
from PIL.PngImagePlugin import PngInfo

pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def files() -> dict[str, bytes]:
    """Whole files of many kinds; plain ones begin with ``plain``."""
    text, late = PngInfo(), PngInfo()
    text.add_text("parameters", "a castle")
    late.add_text("XML:com.adobe.xmp", "<x/>", zip=True)
    many = io.BytesIO()
    Image.fromarray(noise()).save(many, "MPO", save_all=True, append_images=[Image.fromarray(noise(seed=1))])
    rgba = np.dstack([noise(), noise()[..., :1]])
    return {
        "plain jpeg": saved(noise(), "JPEG", quality=75),
        "plain progressive": saved(noise(), "JPEG", progressive=True, subsampling=0, quality=93, comment="x"),
        "plain grey jpeg": saved(noise()[..., 0], "JPEG"),
        "plain icc": saved(noise(), "JPEG", icc_profile=b"p" * 100_000, dpi=(72, 72)),
        "plain png": saved(noise()),
        "plain grey png": saved(noise()[..., 0], dpi=(300, 300)),
        "plain rgba": saved(rgba),
        "exif": saved(noise(), "JPEG", exif=turned(6)),
        "xmp": saved(noise(), "JPEG", xmp=b"<x:xmpmeta/>"),
        "mpo": many.getvalue(),
        "cmyk": saved(Image.fromarray(noise()).convert("CMYK"), "JPEG"),
        "palette": saved(Image.fromarray(noise()).quantize(8)),
        "16 bits": saved(np.full((16, 16), 1000, np.uint16)),
        "png text": saved(noise(), pnginfo=text),
        "png xmp": saved(noise(), pnginfo=late),
        "png exif": saved(noise(), exif=turned(8)),
        "webp": saved(noise(), "WEBP", exif=turned(6)),
        "gif": saved(Image.fromarray(noise()).quantize(8), "GIF"),
        "tiff": saved(noise(), "TIFF"),
        "bmp": saved(noise(), "BMP"),
    }


def outcome(look: object, data: bytes) -> FileHeader | str:
    try:
        found: FileHeader = look(data)  # type: ignore[operator]
    except ImageRejected as rejected:
        return f"{rejected.reason}: {rejected.detail}"
    return found


def is_plain(data: bytes) -> bool:
    return (
        parse_jpeg_header(parse_jpeg(data)) is not None
        if data.startswith(b"\xff\xd8")
        else parse_png_header(data) is not None
    )


@pytest.mark.parametrize("name", files())
def test_plain_files_and_only_these_are_read_without_pillow_and_to_the_same_result(name: str) -> None:
    data = files()[name]
    assert is_plain(data) == name.startswith("plain")
    assert read_header(data) == read_header_with_pillow(data)


def test_bad_files_are_refused_with_the_same_reason_by_both_ways() -> None:
    for data, _, _ in bad_files().values():
        assert outcome(read_header, data) == outcome(read_header_with_pillow, data)


WHOLE = st.sampled_from(sorted(name for name in files() if name.startswith("plain")))


@given(
    name=WHOLE,
    damage=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=3),
    cut=st.one_of(st.none(), st.integers(4, 900)),
)
@example(name="plain jpeg", damage=[(3, 0xE1)], cut=None)  # a JFIF segment that claims to be EXIF
@example(name="plain png", damage=[(25, 4)], cut=None)
def test_both_ways_agree_on_damaged_headers(name: str, damage: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(files()[name])
    for place, value in damage:
        data[place % len(data)] = value
    damaged = bytes(data[:cut])
    assert outcome(read_header, damaged) == outcome(read_header_with_pillow, damaged)


@given(
    name=WHOLE,
    marker=st.sampled_from([*range(0xC0, 0xFF)]),
    content=st.one_of(
        st.binary(max_size=40),
        st.builds(
            lambda start, rest: start + rest,
            st.sampled_from(
                [b"JFIF\0", b"Exif\0\0", b"Adobe", b"ICC_PROFILE\0", b"MPF\0", b"Photoshop 3.0\0", b"FPXR\0"]
            ),
            st.binary(max_size=20),
        ),
    ),
)
@example(name="plain jpeg", marker=0xE2, content=b"ICC_PROFILE\0")
@example(name="plain jpeg", marker=0xEE, content=b"Adobe")
@example(name="plain jpeg", marker=0xED, content=b"Photoshop 3.0\x008BIM")
def test_both_ways_agree_on_any_segment_or_chunk_that_is_put_in(name: str, marker: int, content: bytes) -> None:
    data = files()[name]
    if data.startswith(b"\xff\xd8"):
        more = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
        changed = data[:2] + more + data[2:]
    else:
        label = [b"tEXt", b"gAMA", b"sRGB", b"eXIf", b"PLTE", b"tRNS", b"acTL", b"pHYs"][marker % 8]
        chunk = struct.pack(">I", len(content)) + label + content + struct.pack(">I", zlib.crc32(label + content))
        place = 33 if marker % 3 else len(data) - 12
        changed = data[:place] + chunk + data[place:]
    assert outcome(read_header, changed) == outcome(read_header_with_pillow, changed)


def test_traits_survive_as_text_and_others_are_refused() -> None:
    traits = HeaderTraits("RGB", "COM", "DQT SOF0", "plain", 75, "3,2… #ab", "4:2:0")
    assert parse_traits(traits.as_text()) == traits
    assert parse_traits(HeaderTraits("L", "", "", "plain").as_text()).jpeg_quality is None
    for text in ("", "[]", "{}", '["L","","","plain","75",null,null]', '[1,"","","plain",null,null,null]'):
        with pytest.raises(ValueError, match=r".*"):
            parse_traits(text)


def test_a_scanned_row_has_the_facts_of_its_file_with_the_size_as_stored() -> None:
    data = files()["exif"]
    found = read_header(data)
    assert found.turned
    file = SourceFile("r", "a.JPG", 0, "train", "g", "unknown", "")
    row = ScannedRow(
        file,
        "0" * 32,
        found.height,
        found.width,
        found.format,
        len(data),
        found.turned,
        found.metadata_bytes,
        found.traits,
    )
    assert row_facts(row) == header_facts(data, "a.JPG")
    assert row_facts(row._replace(traits="")) is None
