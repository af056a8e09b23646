"""Weights files: read without unpickling code, identify by content, load frozen and strictly.

The weights digest is the one that feature specs hold. It is SHA-256 over the tensors sorted by name. Each contributes
one line of JSON, ``[name, dtype, shape]``, and then its elements in C order, little endian, in their stored type. So
the digest does not depend on a file's format, name or order of keys, and any other change of a weight changes it.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..storage.regular import regular_status
from .file_kind import is_safetensors, why_folder, why_unreadable, why_zip
from .state_dict import choose_set, describe_choice, find_sets
from .user_cache import read_memory, write_memory

ModuleT = TypeVar("ModuleT", bound=nn.Module)

WRAPPERS = ("state_dict", "model")
"""Keys under which training frameworks store the state dict."""

DAMAGE = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    struct.error,
)
"""What `torch.load` raises for truncated or altered files, found by altering files at random."""


@dataclass(frozen=True)
class StoredWeights:
    """A network's weights as a file holds them.

    Attributes
    ----------
    tensors
        Named tensors, under the network's own keys.
    note
        What was looked through and passed over to find them; empty for a plain state dict.
    """

    tensors: dict[str, Tensor]
    note: str


def split_choice(name: str) -> tuple[str, str | None]:
    """Split ``FILE#SET`` into the file and the set of weights to use of it; None for the only set."""
    if "#" not in name or Path(name).exists():
        return name, None
    location, _, choice = name.rpartition("#")
    return location, choice


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a weights file, on the CPU, in their stored types.

    A state dict under ``state_dict`` (Lightning) or ``model`` is unwrapped. The tensors of a ``.pt`` file may be views
    of the memory-mapped file.

    Parameters
    ----------
    path
        A safetensors file, or a file written by ``torch.save``.

    Raises
    ------
    UserError
        The file is missing, damaged, not a state dict, or would run code when loaded.
    """
    content = read_content(path)
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        content = inner if isinstance(inner, dict) else content
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path}: entry {name!r} is a {type(value).__name__}, not a tensor. Save only the model's state dict."
            )
    _check_dense(path, content)  # type: ignore[arg-type]
    return dict(content)  # type: ignore[arg-type]


def read_weights(path: Path, anchor: str, choice: str | None = None, *, purpose: str = "") -> StoredWeights:
    """Read a network's weights from whatever a training framework put around them, see `.state_dict`.

    Parameters
    ----------
    path
        A safetensors file, or a file written by ``torch.save``.
    anchor
        A key of the network.
    choice
        Which set of weights to read, if there are several; see `.state_dict.choose_set`.
    purpose
        Follows the name of the file in a message.

    Raises
    ------
    UserError
        As `read_state_dict` and `.state_dict.choose_set`, and if the file holds another network.
    """
    content = read_content(path)
    sets = find_sets(content, anchor)
    if not sets:
        names = ", ".join(str(name) for name in list(content)[:3])
        raise UserError(f"{path}{purpose}: has no {anchor}: it holds another network's weights ({names}, …).")
    chosen = choose_set(sets, choice, str(path))
    _check_dense(path, chosen.tensors)
    return StoredWeights(chosen.tensors, describe_choice(content, sets, chosen))


def _check_dense(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError for a tensor that is sparse or quantized, has no values (``meta``), or stores fewer than it has."""
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "quantized" if value.is_quantized else "without values" if value.is_meta else "sparse"
            raise UserError(f"{path}: the tensor {name} is {kind}. Save the state dict of the model in float32.")
        stored = value.untyped_storage().nbytes() // value.element_size()
        if value.numel() > stored:  # a few bytes may stand for terabytes
            raise UserError(f"{path}: the tensor {name} has {value.numel():,} values, of which {stored:,} are stored.")


def read_content(path: Path, *, shapes_only: bool = False) -> dict[str, object]:
    """Read everything that a weights file holds, without running code.

    Parameters
    ----------
    path
        A safetensors file, or a file written by ``torch.save``; which of them, its first bytes tell.
    shapes_only
        Tensors may come without their values.

    Raises
    ------
    UserError
        The file is missing, damaged, of another kind, or would run code when loaded.
    """
    if path.is_dir():
        raise UserError(why_folder(path))
    try:
        regular_status(path)
        unreadable = why_unreadable(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: weights file not found. Check the path.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    if unreadable:
        raise UserError(unreadable)
    named = path.suffix == ".safetensors"
    if not named and not is_safetensors(path) and not _may_be_torch(path):
        raise UserError(f"{path}: is not a weights file: neither PyTorch nor safetensors. Check where it comes from.")
    if named and zipfile.is_zipfile(path):
        foreign = why_zip(path)
        if foreign:
            raise UserError(foreign)
        raise UserError(f"{path}: is a PyTorch file under the name of a safetensors file. Rename it to end with .pt.")
    content = _read_safetensors(path, shapes_only=shapes_only) if named or is_safetensors(path) else _read_torch(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: contains no named tensors. Pass a file with a model's state dict.")
    return content


def _may_be_torch(path: Path) -> bool:
    """Return whether a file begins like one of ``torch.save``: a zip archive, or a pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _read_safetensors(path: Path, *, shapes_only: bool) -> object:
    try:
        if not shapes_only:
            return load_file(path)
        with safe_open(path, framework="pt") as file:
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    except MemoryError as error:
        raise _too_large(path) from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is damaged or not a safetensors file ({error}). Download it again.") from error


def _too_large(path: Path) -> UserError:
    return UserError(
        f"{path}: asks for more memory than there is. If that is more than its size, it is damaged: download it again."
    )


def _read_torch(path: Path) -> object:
    mapped = zipfile.is_zipfile(path)  # the format before PyTorch 1.6 is not a zip file and cannot be mapped
    foreign = why_zip(path) if mapped else None
    if foreign:
        raise UserError(foreign)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        raise UserError(_why_not_unpickled(path, str(error))) from error
    except MemoryError as error:
        raise _too_large(path) from error
    except DAMAGE as error:
        raise UserError(f"{path}: is damaged or not a PyTorch file. Download it again.") from error


def _why_not_unpickled(path: Path, reason: str) -> str:
    """Return the sentence for a pickle that `torch.load` refuses, from the reason that it gives."""
    found = re.search(r"(?:GLOBAL |class |function |global )[`']?([A-Za-z_][\w.]*\.[\w.]+)", reason)
    if found is None:
        return (
            f"{path}: is damaged or contains more than tensors; it was not loaded, because loading it could run code. "
            "Download it again. Save only the model's state dict, preferably as safetensors."
        )
    return (
        f"{path}: contains more than tensors ({found[1].rstrip('.')}); it was not loaded, because loading it could run "
        "code. Save only the model's state dict, preferably as safetensors."
    )


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for other formats and for files without metadata."""
    if not is_safetensors(path):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is damaged or not a safetensors file ({error}). Download it again.") from error


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the weights digest (64 hex digits) of named tensors, as the module's docstring defines it."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(header, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_weights_digest(path: Path, anchor: str | None = None, choice: str | None = None) -> str:
    """Return the weights digest of a file, remembered for as long as its size and modification time stay the same.

    With an anchor, of the weights that `read_weights` finds: the digest of a wrapped state dict is that of the plain one.
    """
    if anchor is None:
        return _remembered("weights", path, lambda: weights_digest(read_state_dict(path)))
    kind = f"weights of {anchor}" + (f" in {choice}" if choice else "")
    return _remembered(kind, path, lambda: weights_digest(read_weights(path, anchor, choice).tensors))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of a file, remembered as in `file_weights_digest`."""
    return _remembered("sha256", path, lambda: file_digest(path))


def file_digest(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of a file, always reading it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered(kind: str, path: Path, compute: Callable[[], str]) -> str:
    """Return a digest from ``digests.json`` by path, size and modification time, or compute and store it."""
    status = path.stat()
    key = f"{kind}:{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    memory = read_memory("digests.json")
    known = {key: value for key, value in memory.items() if isinstance(value, str) and len(value) == 64}
    if key not in known:
        known[key] = compute()
        write_memory("digests.json", known)
    return known[key]


def load_frozen(build: Callable[[], ModuleT], state: Mapping[str, Tensor], source: str) -> ModuleT:
    """Build a module with exactly these weights: on the CPU, floats as float32, evaluation mode, no gradients.

    The module is built without memory for its parameters, so loading needs only one copy of the weights.

    Parameters
    ----------
    build
        Builds the module.
    state
        The weights by name.
    source
        Name of the file, for error messages.

    Raises
    ------
    UserError
        A key is missing, unknown or of another shape; the message names the first one.
    """
    with torch.device("meta"):
        module = build()
    check_state(module, state, source)
    owned = {
        name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in state.items()
    }
    if any(name not in state for name, _ in module.named_buffers()):  # computed when it is built, and in no file
        with torch.random.fork_rng(devices=[]):
            module = build()
    module.load_state_dict(owned, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def check_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError, naming the first key that differs, unless names and shapes are those of the module."""
    own = module.state_dict()
    expected = {name: tuple(value.shape) for name, value in own.items()}
    hint = "These weights belong to another configuration."
    for name, shape in expected.items():
        if name not in state:
            raise UserError(f"{source}: has no {name}, which this network needs with shape {shape}. {hint}")
        if tuple(state[name].shape) != shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(state[name].shape)}, this network needs {shape}. {hint}"
            )
        if state[name].is_floating_point() != own[name].is_floating_point():
            found = str(state[name].dtype).removeprefix("torch.")
            raise UserError(f"{source}: {name} has values of the type {found}. Save the weights in float32.")
    for name, value in state.items():
        if name not in expected:
            raise UserError(
                f"{source}: has {name} with shape {tuple(value.shape)}, which this network does not. {hint}"
            )
