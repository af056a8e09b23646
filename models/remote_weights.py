"""Weights at an address: ``hf:OWNER/REPO/FILE`` on the Hugging Face Hub, or an ``https://`` URL with its SHA-256."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError, UserError
from ..progress import Progress
from .addresses import check_sha256, is_address
from .download import WeightsFile, download, weights_folder
from .weights import file_sha256

HUB = "https://huggingface.co"
_HUB_NAME = re.compile(r"hf:(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+)(@(?P<revision>[\w.-]+))?/(?P<file>[^\0?#]+)")


def fetch_weights(name: str, sha256: Sequence[str] = (), progress: Progress | None = None) -> Path:
    """Download the file at an address, unless it is there already.

    A file of the Hub may come without ``sha256``: the Hub states that of a large file, which is checked. Private and
    gated files need a token in ``HF_TOKEN``; ``HF_ENDPOINT`` names another server of the same interface.

    Parameters
    ----------
    name
        ``hf:OWNER/REPO/FILE``, ``hf:OWNER/REPO@REVISION/FILE`` or a URL.
    sha256
        What the file's SHA-256 must be, one of these.
    progress
        Reports the download, and says if nothing is known to check it with.

    Raises
    ------
    UserError, UsageError
        The name is no address, its SHA-256 is missing, or the file cannot be obtained.
    """
    digests = check_sha256(sha256)
    if name.startswith("hf:"):
        file, folder = _on_the_hub(name, digests)
    else:
        file, folder = _at_url(name, digests)
    fresh = not (folder / file.name).exists()
    path = download(file, folder, progress)
    if fresh and not digests and progress is not None:
        progress.say(unchecked(name, path))
    return path


def weights_path(name: str, sha256: Sequence[str] = (), progress: Progress | None = None) -> Path:
    """Return the path of weights, which are downloaded if the name is an address; see :func:`fetch_weights`."""
    return fetch_weights(name, sha256, progress) if is_address(name) else Path(name)


def unchecked(name: str, path: Path) -> str:
    """Return what to say about a download whose SHA-256 was not given."""
    return f"{name}: no SHA-256 was given. That of the download is {file_sha256(path)}; pass it with --sha256."


def _on_the_hub(name: str, digests: tuple[str, ...]) -> tuple[WeightsFile, Path]:
    found = _HUB_NAME.fullmatch(name)
    if found is None or any(part.strip(".") == "" for part in name.removeprefix("hf:").split("/")):
        raise UsageError(f"{name}: name a file of the Hugging Face Hub as hf:OWNER/REPO/FILE.")
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    owner, repo, revision, inner = (found[part] for part in ("owner", "repo", "revision", "file"))
    url = f"{endpoint}/{owner}/{repo}/resolve/{revision or 'main'}/{urllib.parse.quote(inner)}"
    place = Path(inner)
    folder = weights_folder() / "hf" / owner / (f"{repo}@{revision}" if revision else repo) / place.parent
    return WeightsFile(place.name, url, also=digests, token=_token()), folder


def _at_url(url: str, digests: tuple[str, ...]) -> tuple[WeightsFile, Path]:
    parts = urllib.parse.urlsplit(url)
    shown = url.partition("?")[0]
    if not digests:
        raise UserError(
            f"{shown}: weights from a URL are checked by their SHA-256. Pass it with --sha256, or download the file and "
            "name it."
        )
    if not parts.hostname or parts.username or parts.password:
        raise UsageError(f"{parts.scheme}://…: give a URL with a host and without a user's name.")
    name = Path(urllib.parse.unquote(parts.path)).name or "weights.pt"
    return WeightsFile(name, url, also=digests), weights_folder() / "url" / hashlib.sha256(url.encode()).hexdigest()[
        :16
    ]


def _token() -> str | None:
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and not re.fullmatch(r"[!-~]+", token):
        raise UserError("HF_TOKEN: holds characters that a token cannot have. Set it again.")
    return token or None
