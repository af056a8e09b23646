"""Compare the pixels of images/upright.py with those of ImageMagick and libvips, over some hundred small files.

    python benchmarks/decoders.py [--keep DIR]

Needs ImageMagick's ``convert`` or ``magick`` (not a stand-in) or the package pyvips with libvips; what is missing is left
out. The files are made here: PNG, TIFF, GIF and BMP by hand in every kind of pixel, others with Pillow. A file agrees if
no value differs by more than its tolerance: 1 level where values are rounded, more after lossy codecs. Each file is also
cut at several places; what is left must be refused, or have the pixels of the whole file.
"""

from __future__ import annotations

import argparse
import io
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from distil_cache.images.file import ImageRejected, Limits
from distil_cache.images.upright import load_rgb
from image_bytes import saved
from pixel_files import chunk, png, samples_of, smooth, tiff

try:
    import pyvips
except (ImportError, OSError):
    pyvips = None

Pixels = NDArray[np.uint8]
SIZES = ((1, 1), (5, 7), (20, 33), (40, 24))
CUTS = (0.3, 0.6, 0.9, 0.98)


class Variant(NamedTuple):
    """A file, what it is called, by how much its pixels may differ, and which decoders read it as the standard says."""

    name: str
    data: bytes
    tolerance: int = 1
    judges: str = "im vips"


def pngs() -> Iterator[Variant]:
    kinds = [(0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))]
    for (colour, depths), (height, width), interlaced, clear in product(kinds, SIZES, (0, 1), (False, True)):
        if clear and colour in (4, 6):
            continue
        for depth in depths:
            channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
            samples = samples_of(height, width, channels, depth, depth + height)
            before = b""
            if colour == 3:
                palette = samples_of(1 << depth, 1, 3, 8, 9).astype(np.uint8).tobytes()
                before = chunk(b"PLTE", palette)
            if clear and colour == 3:
                before += chunk(b"tRNS", bytes((0, 128, 255)[: 1 << depth]))
            elif clear:
                before += chunk(b"tRNS", b"".join(struct.pack(">H", int(v)) for v in samples[0, 0]))
            data = png(samples, depth, colour, before, interlaced=bool(interlaced))
            name = f"png colour {colour} {depth} bits {width}x{height}{' adam7' * interlaced}{' tRNS' * clear}"
            yield Variant(name, data, 2 if depth == 16 and colour in (4, 6) else 1)


def tiffs() -> Iterator[Variant]:
    for order, rows, (height, width) in product("<>", (1, 3, 64), SIZES[1:]):
        where = f"{width}x{height} {'II' if order == '<' else 'MM'} strips of {rows}"
        for bits, photometric in product((1, 2, 4, 8, 16), (0, 1)):
            grey = samples_of(height, width, 1, bits, bits)
            yield Variant(
                f"tiff grey {bits} bits photometric {photometric} {where}",
                tiff(grey, bits, photometric, order, rows),
                1,
                "vips",
            )
        for bits, planar in product((8, 16), (False, True)):
            rgb = samples_of(height, width, 3, bits, bits)
            yield Variant(
                f"tiff rgb {bits} bits planar {planar} {where}", tiff(rgb, bits, 2, order, rows, planar=planar)
            )
        for bits, extra in product((8, 16), (0, 1, 2)):
            rgba, la = samples_of(height, width, 4, bits, bits), samples_of(height, width, 2, bits, bits)
            if extra == 1:
                rgba[..., :3] = np.minimum(rgba[..., :3], rgba[..., 3:])
                la[..., :1] = np.minimum(la[..., :1], la[..., 1:])
            judges = "" if extra == 0 else "im vips"  # both take an unspecified channel for alpha
            yield Variant(
                f"tiff rgb+{extra} {bits} bits {where}", tiff(rgba, bits, 2, order, rows, extra=extra), 3, judges
            )
            yield Variant(
                f"tiff grey+{extra} {bits} bits {where}", tiff(la, bits, 1, order, rows, extra=extra), 3, judges
            )
        for bits in (1, 4, 8):
            palette = (samples_of(3, 1 << bits, 1, 8, bits).astype(int) * 257).ravel().tolist()
            index = samples_of(height, width, 1, bits, bits)
            yield Variant(f"tiff palette {bits} bits {where}", tiff(index, bits, 3, order, rows, palette=palette))
        cmyk = samples_of(height, width, 4, 8, 5)
        yield Variant(f"tiff cmyk {where}", tiff(cmyk, 8, 5, order, rows), 2, "im")
    for mode, compression in product(
        ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"),
        ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "zstd", "lzma", "webp"),
    ):
        image = Image.fromarray(smooth(40, 24)).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 200)
        try:
            data = saved(image, "TIFF", compression=compression)
        except (OSError, SystemError, ValueError, KeyError):
            continue
        judges = "im" if mode == "CMYK" or compression in ("zstd", "lzma") else "im vips"  # libvips may lack these
        yield Variant(f"tiff {mode} {compression}", data, 4 if compression in ("jpeg", "webp") else 1, judges)


def gifs() -> Iterator[Variant]:
    for (height, width), clear, interlaced, offset in product(SIZES, (None, 3), (False, True), ((0, 0), (4, 2))):
        pixels = Image.fromarray(samples_of(height, width, 1, 4, 3)[..., 0].astype(np.uint8), "P")
        pixels.putpalette(samples_of(16, 1, 3, 8, 9).astype(np.uint8).tobytes())
        options = {} if clear is None else {"transparency": clear}
        data = bytearray(saved(pixels, "GIF", interlace=interlaced, optimize=False, **options))
        block = data.index(b"\x2c\0\0\0\0")
        data[6:10] = struct.pack("<HH", width + 2 * offset[0], height + 2 * offset[1])
        data[block + 1 : block + 5] = struct.pack("<HH", *offset)
        # Beside an opaque frame, one fills with the background, the other with black; browsers show what is behind.
        judges = "" if clear is None and any(offset) else "im vips"
        name = f"gif {width}x{height} at {offset}{' clear' * (clear is not None)}{' lace' * interlaced}"
        yield Variant(name, bytes(data), 1, judges)


def bmps() -> Iterator[Variant]:
    for (height, width), (bits, masks), down in product(
        SIZES,
        ((1, ()), (4, ()), (8, ()), (16, ()), (16, (0xF800, 0x7E0, 0x1F)), (24, ()), (32, ())),
        (False, True),
    ):
        stride = (width * bits + 31) // 32 * 4
        body = np.random.default_rng(bits).integers(0, 256, (height, stride), dtype=np.uint8).tobytes()
        palette = samples_of(1 << bits, 1, 4, 8, 2).astype(np.uint8).tobytes() if bits <= 8 else b""
        extra = struct.pack("<3I", *masks) if masks else b""
        at = 14 + 40 + len(extra) + len(palette)
        info = struct.pack(
            "<IiiHHIIiiII", 40, width, -height if down else height, 1, bits, 3 if masks else 0, len(body), 0, 0, 0, 0
        )
        data = b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + info + extra + palette + body
        yield Variant(
            f"bmp {bits} bits {masks} {width}x{height}{' top-down' * down}",
            data,
            8 if bits == 16 else 1,
            "" if bits == 32 else "im",
        )


def others() -> Iterator[Variant]:
    for height, width in SIZES[1:]:
        rgb, rgba = Image.fromarray(smooth(height, width)), Image.fromarray(smooth(height, width, 4))
        for quality, sampling, progressive in product((30, 90), (0, 1, 2), (False, True)):
            options = {"quality": quality, "subsampling": sampling, "progressive": progressive}
            yield Variant(f"jpeg {options} {width}x{height}", saved(rgb, "JPEG", **options), 3)
        yield Variant(f"jpeg grey {width}x{height}", saved(rgb.convert("L"), "JPEG"), 3)
        yield Variant(f"jpeg cmyk {width}x{height}", saved(rgb.convert("CMYK"), "JPEG"), 3, "im")
        for turn in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = turn
            yield Variant(f"jpeg turned {turn} {width}x{height}", saved(rgb, "JPEG", exif=exif, quality=95), 3)
            yield Variant(f"png turned {turn} {width}x{height}", saved(rgb, "PNG", exif=exif), 1, "vips")
        for image, lossless in product((rgb, rgba), (False, True)):
            name = f"webp {image.mode} {'lossless' if lossless else 'lossy'} {width}x{height}"
            yield Variant(name, saved(image, "WEBP", lossless=lossless), 1 if lossless else 6)
        if features.check("jpg_2000"):
            for image in (rgb, rgba, rgb.convert("L")):
                yield Variant(f"jp2 {image.mode} {width}x{height}", saved(image, "JPEG2000"), 1)
        if features.check("avif"):
            for image in (rgb, rgba):
                yield Variant(f"avif {image.mode} {width}x{height}", saved(image, "AVIF", quality=95), 12, "vips")


def magick() -> Callable[[bytes], Pixels | None] | None:
    program = next((p for p in ("magick", "convert-im6.q16", "convert") if shutil.which(p)), None)
    if program is None or b"ImageMagick" not in subprocess.run([program, "-version"], capture_output=True).stdout:
        return None

    def decode(data: bytes) -> Pixels | None:
        kind = {b"\xff\xd8": "jpg:", b"BM": "bmp:"}.get(data[:2], "")
        flat = ["-coalesce", "-auto-orient", "-background", "white", "-alpha", "remove", "-alpha", "off"]
        command = [program, f"{kind}-[0]", *flat, "-colorspace", "sRGB", "-depth", "8", "ppm:-"]
        done = subprocess.run(command, input=data, capture_output=True)
        if done.returncode or not done.stdout:
            return None
        return np.asarray(Image.open(io.BytesIO(done.stdout)).convert("RGB"))

    return decode


def vips() -> Callable[[bytes], Pixels | None] | None:
    if pyvips is None:
        return None

    def decode(data: bytes) -> Pixels | None:
        try:
            image = pyvips.Image.new_from_buffer(data, "").autorot()
            if image.hasalpha():
                image = image.flatten(background=65535 if image.format == "ushort" else 255)
            if image.format == "ushort":
                image = (image / 257).rint().cast("uchar").copy(interpretation="b-w" if image.bands == 1 else "srgb")
            image = image.colourspace("srgb")
            found = np.ndarray(
                buffer=image.write_to_memory(), dtype=np.uint8, shape=(image.height, image.width, image.bands)
            )
        except pyvips.Error:
            return None
        return found[..., :3]

    return decode


def ours(data: bytes) -> Pixels | str:
    try:
        return load_rgb(data, Limits(min_side=1))
    except ImageRejected as rejected:
        return f"{rejected.reason}: {rejected.detail}"


def differ(ours: Pixels, theirs: Pixels) -> int:
    if ours.shape != theirs.shape:
        return 999
    return int(np.abs(ours.astype(int) - theirs).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="write the files that do not agree to this folder")
    options = parser.parse_args()
    judges = {name: decode for name, decode in (("im", magick()), ("vips", vips())) if decode is not None}
    if not judges:
        print("Neither ImageMagick nor libvips is installed: nothing to compare with.")
        return 0
    counts, cuts = Counter[str](), Counter[str]()
    for maker in (pngs, tiffs, gifs, bmps, others):
        for variant in maker():
            found = ours(variant.data)
            if isinstance(found, str):
                outcome = f"refused: {found.partition(':')[0]}"
                print(f"{variant.name}: {found}")
            else:
                theirs = {n: judges[n](variant.data) for n in variant.judges.split() if n in judges}
                off = {n: differ(found, pixels) for n, pixels in theirs.items() if pixels is not None}
                wrong = {n: value for n, value in off.items() if value > variant.tolerance}
                outcome = f"agrees with {len(off) - len(wrong)} of {len(off)}"
                if wrong:
                    print(f"{variant.name}: off by {wrong}")
                    if options.keep:
                        options.keep.mkdir(parents=True, exist_ok=True)
                        (options.keep / variant.name.replace(" ", "_").replace("/", "-")).write_bytes(variant.data)
                cuts.update(cut_outcomes(variant, found))
            counts[f"{maker.__name__:6} {outcome}"] += 1
    for name, count in sorted(counts.items()):
        print(f"{count:5}  {name}")
    print("cut off:", dict(cuts))
    return 0


def cut_outcomes(variant: Variant, whole: Pixels) -> Iterator[str]:
    for share in CUTS:
        found = ours(variant.data[: int(len(variant.data) * share)])
        if isinstance(found, str):
            yield found.partition(":")[0]
        elif np.array_equal(found, whole):
            yield "all pixels there"
        else:
            print(f"{variant.name}, cut at {share}: other pixels, not refused")
            yield "OTHER PIXELS"


if __name__ == "__main__":
    sys.exit(main())
