"""Weights files: the digest, reading without running code, strict loading."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.models import weights
from safetensors.torch import save_file
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "distil-cache"


def a_state() -> dict[str, Tensor]:
    return {
        "b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a.steps": torch.tensor(7),
        "c.half": torch.tensor([0.5, -1.0], dtype=torch.float16),
        "d.empty": torch.zeros(0, 4),
    }


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never be printed",)


def test_digest_is_what_its_definition_says() -> None:
    content = (
        b'["a.steps","int64",[]]\n'
        + struct.pack("<q", 7)
        + b'["b.weight","float32",[2,3]]\n'
        + struct.pack("<6f", 0, 1, 2, 3, 4, 5)
        + b'["c.half","float16",[2]]\n'
        + struct.pack("<2e", 0.5, -1)
        + b'["d.empty","float32",[0,4]]\n'
    )
    assert weights.weights_digest(a_state()) == hashlib.sha256(content).hexdigest()


def test_digest_is_the_same_in_pt_and_safetensors_and_in_any_order(tmp_path: Path) -> None:
    state = a_state()
    torch.save(dict(reversed(state.items())), tmp_path / "w.pt")
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.ckpt")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    digests = {
        weights.file_weights_digest(tmp_path / name) for name in ("w.pt", "w.safetensors", "wrapped.ckpt", "old.pth")
    }
    assert digests == {weights.weights_digest(state)}


def test_digest_ignores_how_a_tensor_lies_in_memory() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert weights.weights_digest({"w": tensor.t().contiguous().t()}) == weights.weights_digest({"w": tensor})


@pytest.mark.parametrize(
    "changed",
    [
        {"w": torch.tensor([[1.0, 2.5]])},
        {"w": torch.tensor([[1.0, 2.0]], dtype=torch.float64)},
        {"w": torch.tensor([1.0, 2.0])},
        {"v": torch.tensor([[1.0, 2.0]])},
        {"w": torch.tensor([[1.0, 2.0]]), "x": torch.zeros(0)},
    ],
    ids=["value", "dtype", "shape", "name", "one more"],
)
def test_digest_changes_with(changed: dict[str, Tensor]) -> None:
    assert weights.weights_digest(changed) != weights.weights_digest({"w": torch.tensor([[1.0, 2.0]])})


def test_digest_is_remembered_until_the_file_changes(tmp_path: Path, user_cache: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    first = weights.file_weights_digest(path)
    memory = json.loads((user_cache / "digests.json").read_text())
    assert list(memory.values()) == [first]
    save_file({"w": torch.ones(3)}, path)
    assert weights.file_weights_digest(path) == weights.weights_digest({"w": torch.ones(3)})


@pytest.mark.parametrize("content", ["no json", "[]", '{"a": 1}'])
def test_a_damaged_memory_of_digests_is_ignored(tmp_path: Path, user_cache: Path, content: str) -> None:
    user_cache.mkdir(parents=True)
    (user_cache / "digests.json").write_text(content)
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert weights.file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_user_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "a file"
    blocked.write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert len(weights.file_sha256(blocked)) == 64


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for zipped in (True, False):
        path = tmp_path / f"evil{zipped}.pt"
        torch.save({"w": RunsCode()}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"evil.*could run code.*Save only the model's state dict"):
            weights.read_state_dict(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b"PK\x03\x04" + bytes(40), b"\x80\x02}q\x00.", bytes(300)]
)
def test_junk_is_refused_with_a_sentence(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="junk"):
        weights.read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_refused_with_a_sentence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"short{suffix}"
    state = {"w": torch.zeros(1000)}
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"short.*Download it again"):
        weights.read_state_dict(path)


def test_an_absent_file_and_content_without_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights file not found"):
        weights.read_state_dict(tmp_path / "absent.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(UserError, match="'epoch' is a int, not a tensor"):
        weights.read_state_dict(tmp_path / "epoch.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="contains no named tensors"):
        weights.read_state_dict(tmp_path / "list.pt")


def test_metadata_is_read_from_safetensors_only(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors", {"flags": "{}"})
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pt")
    assert weights.read_metadata(tmp_path / "w.safetensors") == {"flags": "{}"}
    assert weights.read_metadata(tmp_path / "w.pt") == {}


def test_loading_gives_frozen_float32_weights_that_do_not_depend_on_the_file(tmp_path: Path) -> None:
    state = {"weight": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16), "bias": torch.tensor([0.25])}
    torch.save(state, tmp_path / "w.pt")
    module = weights.load_frozen(lambda: nn.Linear(2, 1), weights.read_state_dict(tmp_path / "w.pt"), "w.pt")
    (tmp_path / "w.pt").write_bytes(b"")
    assert module.weight.dtype == torch.float32
    assert module(torch.tensor([[2.0, 1.0]])).item() == 1.25
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(1, 2)}, r"w\.pt: has no bias, which this network needs with shape \(1,\)"),
        (
            {"weight": torch.zeros(2, 1), "bias": torch.zeros(3)},
            r"weight has shape \(2, 1\), this network needs \(1, 2\)",
        ),
        (
            {"weight": torch.zeros(1, 2), "bias": torch.zeros(1), "fc": torch.zeros(5)},
            r"has fc with shape \(5,\), which",
        ),
    ],
    ids=["missing", "shape", "unexpected"],
)
def test_weights_of_another_network_are_refused_naming_the_first_key(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        weights.load_frozen(lambda: nn.Linear(2, 1), state, "w.pt")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2).to_sparse(), "bias is sparse"),
        (torch.empty(2, device="meta"), "bias is without values"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "bias is quantized"),
    ],
)
def test_a_tensor_that_is_not_dense_is_refused_by_name(tmp_path: Path, value: Tensor, message: str) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": {"weight": torch.ones(2, 3), "bias": value}}, path)
    with pytest.raises(UserError, match=message):
        weights.read_weights(path, "weight")


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_weights_that_are_no_floats_are_refused_by_name(dtype: torch.dtype) -> None:
    state = {"weight": torch.ones(2, 3), "bias": torch.ones(2).to(dtype)}
    with pytest.raises(UserError, match=r"w\.pt: bias has values of the type"):
        weights.load_frozen(lambda: nn.Linear(3, 2), state, "w.pt")


def test_a_file_that_stands_for_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(1).expand(2**20, 2**20)}, path)
    with pytest.raises(UserError, match=r"the tensor w has 1,099,511,627,776 values, of which 1 are stored"):
        weights.read_state_dict(path)
    torch.save({"w": torch.zeros(4)}, stored := tmp_path / "stored.pt")
    with zipfile.ZipFile(stored) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match="its entries are compressed"):
        weights.read_state_dict(path)


@pytest.mark.parametrize("length", [2**63, 2**40, 2**30 - 1, 100_000_001])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_a_header_of_absurd_length_is_not_read(name: str, length: int, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{")
        file.truncate(2**31)
    with pytest.raises(UserError, match=r"not a (weights|safetensors) file"):
        weights.read_state_dict(tmp_path / name)


def test_a_safetensors_header_that_is_nested_without_end_is_damage(tmp_path: Path) -> None:
    header = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (path := tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match="is damaged or not a safetensors file"):
        weights.read_state_dict(path)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=rf"cannot be read \(it is a (named )?{kind}, not a file\)"):
        weights.read_state_dict(path)
