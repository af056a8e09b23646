"""Files that are no weights: each kind gets a sentence of its own."""

from __future__ import annotations

import argparse
import gzip
import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.models.weights import read_content
from safetensors.torch import save, save_file

STATE = {"w": torch.zeros(1000)}


def torch_bytes(content: object, *, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def zip_bytes(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"content")
    return out.getvalue()


def tar_bytes() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pt"))
    return out.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 5\n"
KINDS = {
    "HTML": (b"\n<!DOCTYPE html><html><head><title>Sign in</title>", r"is an HTML page, not weights"),
    "HTML with a mark": (b"\xef\xbb\xbf<HTML lang='en'>", r"is an HTML page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", r"is an XML or HTML document"),
    "LFS": (LFS, r"is a Git LFS pointer.*git lfs pull"),
    "empty": (b"", r"is empty"),
    "text": (b'{"error": "not found"}', r"is a text file"),
    "gzip": (gzip.compress(b"weights"), r"is a gzip archive, not a weights file. Unpack it"),
    "tar": (tar_bytes(), r"is a tar archive, not a weights file. Unpack it"),
    "numpy": (b"\x93NUMPY\x01\x00", r"is a NumPy array"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(100), r"is an HDF5 file"),
    "GGUF": (b"GGUF\x03\x00\x00\x00", r"is a GGUF file"),
    "image": (b"\x89PNG\r\n\x1a\n", r"is a PNG image"),
    "zip": (zip_bytes("unet/config.json"), r"is a zip archive without PyTorch's weights \(first entry: unet"),
    "cut off": (torch_bytes(STATE)[:3000], r"is cut off"),
    "cut off, old": (torch_bytes(STATE, zipped=False)[:1000], r"Download it again"),
    "cut off safetensors": (save(STATE)[:2000], r"is cut off: it has 2,000 of 4,0\d\d bytes"),
    "cut off in the header": (save(STATE)[:30], r"is cut off within its header"),
    "a long header": ((2**24 + 1).to_bytes(8, "little") + b'{"a":[[],[],', r"has a header of 16,777,217 bytes"),
    "arguments": (torch_bytes({"args": argparse.Namespace(size=1)}), r"\(argparse\.Namespace\).*could run code"),
    "module": (torch_bytes(torch.nn.Linear(1, 1)), r"\(torch\.nn\.modules\.linear\.Linear\).*state dict"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ""])
def test_each_kind_has_its_sentence(name: str, suffix: str, tmp_path: Path) -> None:
    content, message = KINDS[name]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights{suffix}: .*{message}"):
        read_content(path)


def test_random_bytes_give_a_sentence(tmp_path: Path) -> None:
    for seed in range(200):
        path = tmp_path / "random.pt"
        path.write_bytes(random.Random(seed).randbytes(random.Random(seed).randrange(1, 600)))
        with pytest.raises(UserError, match=r"random\.pt: is (not a weights file|a text file|cut off|an XML)"):
            read_content(path)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.pt")
    assert read_content(tmp_path / "w.pt").keys() == STATE.keys()
    torch.save(STATE, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors: is a PyTorch file under the name of a safetensors file"):
        read_content(tmp_path / "w.safetensors")


def test_a_program_of_torchscript_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in ("w/data.pkl", "w/constants.pkl", "w/code/__torch__.py"):
            archive.writestr(name, b"")
    with pytest.raises(UserError, match=r"is a TorchScript program"):
        read_content(tmp_path / "w.pt")


@pytest.mark.parametrize(("entry", "message"), [("model_index.json", "library diffusers"), ("w.pt", "is a folder")])
def test_a_folder_is_refused(entry: str, message: str, tmp_path: Path) -> None:
    (tmp_path / entry).touch()
    with pytest.raises(UserError, match=message):
        read_content(tmp_path)
