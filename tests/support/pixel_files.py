"""PNG and TIFF files written by hand, in kinds of pixels that Pillow does not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def samples_of(height: int, width: int, channels: int, bits: int, seed: int = 0) -> NDArray[np.uint16]:
    """Return noise of so many bits, (height, width, channels)."""
    return np.random.default_rng(seed).integers(0, 1 << bits, (height, width, channels), dtype=np.uint16)


def smooth(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    """Return waves, which lossy codecs keep well: (height, width, channels)."""
    y, x = np.mgrid[0:height, 0:width] / 20
    waves = [127.5 + 110 * np.sin(x * (1 + i / 3) + y * (2 - i / 2) + i) for i in range(channels)]
    return np.stack(waves, -1).astype(np.uint8)


def packed(samples: NDArray[np.uint16], bits: int, order: str = ">") -> list[bytes]:
    """Rows of samples (height, width, channels) as bytes, each row padded to whole bytes."""
    rows = samples.reshape(samples.shape[0], -1)
    if bits == 16:
        return [row.astype(f"{order}u2").tobytes() for row in rows]
    if bits == 8:
        return [row.astype(np.uint8).tobytes() for row in rows]
    unpacked = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in unpacked]


def chunk(label: bytes, content: bytes, *, good: bool = True) -> bytes:
    """Return a chunk of a PNG, with a wrong checksum on request."""
    checksum = zlib.crc32(label + content) ^ (0 if good else 0x5555)
    return struct.pack(">I", len(content)) + label + content + struct.pack(">I", checksum)


def png(
    samples: NDArray[np.uint16],
    bits: int,
    colour: int,
    before: bytes = b"",
    after: bytes = b"",
    *,
    interlaced: bool = False,
    lacking: int = 0,
) -> bytes:
    """Return a PNG with chunks before and after its pixels, without the last ``lacking`` of its rows."""
    steps = _PASSES if interlaced else ((0, 0, 1, 1),)
    parts = [samples[top::down, left::right] for left, top, right, down in steps]
    rows = [b"\0" + row for part in parts if part.size for row in packed(part, bits)]
    raw = b"".join(rows[: len(rows) - lacking])
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, interlaced)
    return (
        PNG_SIGNATURE
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(raw))
        + after
        + chunk(b"IEND", b"")
    )


def tiff(samples: NDArray[np.uint16], bits: int, photometric: int, order: str, rows: int, **tags: object) -> bytes:
    """Return an uncompressed TIFF; ``tags``: planar, extra (ExtraSamples), palette."""
    height, width, channels = samples.shape
    planes = [samples[..., i : i + 1] for i in range(channels)] if tags.get("planar") else [samples]
    strips = [b"".join(packed(p, bits, order)[top : top + rows]) for p in planes for top in range(0, height, rows)]
    entries: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * channels),
        259: ("H", [1]),
        262: ("H", [photometric]),
        273: ("I", [0] * len(strips)),
        277: ("H", [channels]),
        278: ("I", [rows]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if tags.get("planar") else 1]),
    }
    if "palette" in tags:
        entries[320] = ("H", list(tags["palette"]))  # type: ignore[call-overload]
    if "extra" in tags:
        entries[338] = ("H", [int(tags["extra"])])  # type: ignore[call-overload]
    if photometric == 6:
        entries[530] = ("H", [1, 1])
    start = 8 + 2 + 12 * len(entries) + 4
    room = sum(n for form, values in entries.values() if (n := struct.calcsize(f"={len(values)}{form}")) > 4)
    place = start + room
    entries[273] = ("I", [place + sum(map(len, strips[:i])) for i in range(len(strips))])
    outside, directory = b"", b""
    for tag, (form, values) in sorted(entries.items()):
        raw = struct.pack(f"{order}{len(values)}{form}", *values)
        value = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(f"{order}I", start + len(outside))
        outside += raw if len(raw) > 4 else b""
        directory += struct.pack(f"{order}HHI", tag, 3 if form == "H" else 4, len(values)) + value
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + directory + bytes(4) + outside + b"".join(strips)
