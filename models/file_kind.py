"""Say what a file is that was given as weights, from its first bytes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

_HEAD = 512
_OTHER = (
    (b"\x89HDF", "an HDF5 file (Keras)"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"(\xb5/\xfd", "a zstd archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"ustar", "a tar archive"),
)
_TAR_MAGIC = slice(257, 262)
_MAX_HEADER = 100_000_000
"""Bytes of a safetensors header, at most, as the library has it."""
_LONG_HEADER = 2**24
"""More than that of any network: of some 100,000 tensors."""
DIFFUSERS = ("model_index.json", "unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""What a folder of the library diffusers holds."""


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins like one of safetensors: the length of a JSON object, and the object."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and 1 < int.from_bytes(head[:8], "little") <= _MAX_HEADER


def why_folder(path: Path) -> str:
    """Return the sentence for a folder that was given as weights."""
    if any((path / name).exists() for name in DIFFUSERS):
        return (
            f"{path}: is a folder of the library diffusers, whose networks have other layers and keys. "
            "Use a checkpoint of guided-diffusion: one .pt or .safetensors file."
        )
    return f"{path}: is a folder. Name the weights file in it."


def why_unreadable(path: Path) -> str | None:
    """Return the sentence for a file that is certainly neither PyTorch's nor safetensors'; None if it may be.

    Parameters
    ----------
    path
        An existing file.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return f"{path}: is empty. Download it again."
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return (
            f"{path}: is an HTML page, not weights: a web page was saved in place of the file, such as one that asks to "
            "log in or to confirm a download. Download the file itself."
        )
    if text.startswith(b"<") and _is_text(head):
        return f"{path}: is an XML or HTML document, perhaps a server's error message, not weights. Download it again."
    if head.startswith(b"version https://git-lfs.github.com/spec"):
        return f"{path}: is a Git LFS pointer, not the weights themselves. Run 'git lfs pull' in its repository."
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return f"{path}: is cut off: the end of its zip archive is missing. Download it again."
    for magic, kind in _OTHER:
        if head.startswith(magic) or head[_TAR_MAGIC] == magic:
            advice = "Unpack it" if kind.endswith("archive") else "Give a .pt or .safetensors file"
            return f"{path}: is {kind}, not a weights file. {advice}."
    if is_safetensors(path):
        return _why_cut_off(path)
    if _is_text(head):
        return f"{path}: is a text file, not weights. Give a .pt or .safetensors file."
    return None


def why_zip(path: Path) -> str | None:
    """Return the sentence for a zip archive that is not a checkpoint; None if it is one."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    if any(name.endswith("constants.pkl") for name in names):
        return f"{path}: is a TorchScript program, not a state dict. Save the model's state dict alone."
    if not any(name.endswith("data.pkl") for name in names):
        return f"{path}: is a zip archive without PyTorch's weights (first entry: {names[0] if names else 'none'})."
    if compressed:  # PyTorch stores; a small file could inflate to any size
        return f"{path}: its entries are compressed, which torch.save never does. Save the state dict with torch.save."
    return None


def _why_cut_off(path: Path) -> str | None:
    """Return the sentence for a safetensors file with an absurd header, or shorter than that says; None if it is whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONG_HEADER:
            return (
                f"{path}: has a header of {length:,} bytes, more than that of any network. Check where it comes from."
            )
        try:
            header = json.loads(file.read(length)) if 8 + length <= size else None
        except (ValueError, RecursionError):
            return None  # the library says what is wrong
    if header is None:
        return f"{path}: is cut off within its header. Download it again."
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__" and _has_end(entry)]
    wanted = 8 + length + max(ends, default=0)
    if size < wanted:
        return f"{path}: is cut off: it has {size:,} of {wanted:,} bytes. Download it again."
    return None


def _has_end(entry: object) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int)


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n" for byte in head) and b"\x7f" not in head and _decodes(head)


def _decodes(head: bytes) -> bool:
    try:
        head[:-4].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
