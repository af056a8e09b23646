"""gc and verify --repair on a cache of which something cannot be listed or looked at, in a process of its own each time.

``tools/kill_campaign.py --errors`` does the same with every operation of every command; here it is listings and looks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_checks import folder_in_memory
from patience import PATIENCE

SUPPORT = Path(__file__).parents[1] / "support"
SHARES = {"gc": ("EIO", 1, 23), "repair": ("EIO", 5, 41)}
"""Command -> errors, and of how many listings and of how many looks one fails."""


def failures(folder: Path, command: str, errors: str, calls: str, every: int) -> list[dict[str, Any]]:
    """Let each of these calls of a command, or one of ``every``, fail for as long as it runs, with each of the errors."""
    folder.mkdir()
    program = [sys.executable, str(SUPPORT / "fault_errors.py"), str(folder), command, errors, "lasting", calls]
    done = subprocess.run([*program, str(every), "0"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module", params=SHARES)
def failed(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    errors, listings, looks = SHARES[request.param]
    with folder_in_memory() as folder:
        listed = failures(folder / "listed", request.param, errors, "scandir,listdir", listings)
        yield [*listed, *failures(folder / "looked-at", request.param, errors, "stat,lstat", looks)]


def shown(results: list[dict[str, Any]], *beginnings: str) -> list[str]:
    """Return what was wrong, if it begins so, with the operation that failed."""
    return [
        f"{result['error']} {result['hit']}: {what}"
        for result in results
        for what in result["wrong"]
        if what.startswith(beginnings)
    ]


def test_nothing_that_is_needed_is_lost_when_something_cannot_be_listed_or_looked_at(
    failed: list[dict[str, Any]],
) -> None:
    assert shown(failed, "lost", "something beside") == []


def test_a_command_that_could_not_list_or_look_says_so_in_a_sentence(failed: list[dict[str, Any]]) -> None:
    assert shown(failed, "traceback", "it hung", "exit code", "the answer differs", "done without a word") == []


def test_the_next_run_does_what_an_undisturbed_one_does(failed: list[dict[str, Any]]) -> None:
    assert shown(failed, "after the next run", "the next run") == []


@pytest.mark.parametrize("failed", ["gc"], indirect=True)
def test_every_folder_that_says_what_is_needed_was_made_unlistable(failed: list[dict[str, Any]]) -> None:
    hit = {result["hit"].partition(" ")[2] for result in failed if result["hit"].startswith(("scandir", "listdir"))}
    assert hit >= {"cache/datasets", "cache/datasets/d", "cache/builds", "cache/refs", "cache/features"}


OPERATIONS = """
import errno, io, json, mmap, os, shutil, sys, tempfile
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq, safetensors.torch, torch
from safetensors import safe_open
from fault_refusals import Refusal, Refused
root = Path(sys.argv[1])
(root / "file").write_bytes(bytes(64))
(root / "folder").mkdir()
pq.write_table(pa.table({"a": [1]}), root / "table")
safetensors.torch.save_file({"a": torch.zeros(1)}, root / "tensors")
watch, seen = Refused(root, Refusal(errno.EIO)), {}
def say(what, work):
    before = len(watch.seen)
    work()
    seen[what] = sorted({call for call, _ in watch.seen[before:]})
os.chdir(root)
say("open", lambda: open("file", "rb").read())
say("Path.open", lambda: (root / "file").open().read())
say("Path.write_text", lambda: (root / "new").write_text("x"))
say("os.open", lambda: os.read(os.open(root / "file", os.O_RDONLY), 1))
say("exists", lambda: (root / "file").exists())
say("glob", lambda: list(root.glob("*")))
say("iterdir", lambda: list(root.iterdir()))
say("walk", lambda: list(os.walk(root)))
say("link", lambda: os.link("file", "linked"))
say("rename", lambda: (root / "linked").rename(root / "renamed"))
say("replace", lambda: (root / "renamed").replace(root / "replaced"))
say("unlink", lambda: (root / "replaced").unlink())
say("remove", lambda: os.remove(root / "new"))
say("mkdir", lambda: (root / "a" / "b").mkdir(parents=True))
say("rmdir", lambda: (root / "a" / "b").rmdir())
say("rmtree", lambda: shutil.rmtree(root / "a"))
say("touch", lambda: (root / "touched").touch())
say("utime", lambda: os.utime("file"))
file = open("file", "r+b")
say("fsync", lambda: os.fsync(file.fileno()))
say("truncate", lambda: os.truncate(file.fileno(), 64))
say("mmap", lambda: mmap.mmap(file.fileno(), 64).close())
say("memmap", lambda: np.memmap("file", np.uint8, "r"))
say("preadv", lambda: os.preadv(file.fileno(), [bytearray(4)], 0))
say("copyfile", lambda: shutil.copyfile("file", "copied"))
say("mkstemp", lambda: tempfile.mkstemp(dir=root))
say("disk_usage", lambda: shutil.disk_usage(root))
say("parquet", lambda: pq.read_schema(root / "table"))
say("load_file", lambda: safetensors.torch.load_file(root / "tensors"))
say("safe_open", lambda: safe_open(root / "tensors", framework="pt").__enter__())
print(json.dumps(seen))
"""


def test_file_operations_are_seen_below_the_libraries_that_ask_for_them(tmp_path: Path) -> None:
    pytest.importorskip("torch")  # of safetensors' reading of tensors
    done = subprocess.run(
        [sys.executable, "-c", OPERATIONS, str(tmp_path)], capture_output=True, text=True, cwd=SUPPORT
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    expected = {
        "open": ["open", "read"], "Path.open": ["open", "read"], "Path.write_text": ["create", "half", "write"],
        "os.open": ["open", "read"], "exists": ["stat"], "glob": ["readdir", "scandir"],
        "iterdir": ["listdir" if sys.version_info < (3, 13) else "scandir"],
        "walk": ["readdir", "scandir"], "link": ["link"], "rename": ["rename"], "replace": ["replace"],
        "unlink": ["unlink"], "remove": ["remove"], "mkdir": ["mkdir"], "rmdir": ["rmdir"], "rmtree": ["rmdir", "scandir"],
        "touch": ["create"], "utime": ["utime"], "fsync": ["fsync"], "truncate": ["truncate"], "mmap": ["mmap"],
        "memmap": ["mmap", "open"], "preadv": ["preadv"], "copyfile": ["create", "open", "sendfile"],
        "mkstemp": ["create"], "disk_usage": ["statvfs"], "parquet": ["open"], "load_file": ["open"], "safe_open": ["open"],
    }  # fmt: skip
    assert seen.keys() == expected.keys()
    assert {
        what: sorted(set(calls) - set(seen[what])) for what, calls in expected.items() if set(calls) - set(seen[what])
    } == {}


def test_a_command_that_passes_over_a_listing_that_failed_is_found_out(fast_folder: Path) -> None:
    """The check itself can fail: a gc that takes no answer for no datasets removes what they need."""
    code = (
        "import errno, json, sys; from pathlib import Path; from distil_cache.storage import paths\n"
        "real = paths.list_names\n"
        "def careless(folder):\n"
        "    try: return real(folder)\n"
        "    except Exception: return []\n"
        "paths.list_names = careless\n"
        "from fault_errors import Checker, prepare, undisturbed; from fault_refusals import Refusal\n"
        "folder = Path(sys.argv[1]); scenario = undisturbed(prepare('gc', folder), folder)\n"
        "number = 1 + scenario.seen[errno.EIO].index(('listdir', 'cache/datasets'))\n"
        "wrong = [Checker(scenario, folder).fail(Refusal(errno.EIO, at, lasting=True))['wrong'] for at in (number, number + 1)]\n"
        "print(json.dumps(wrong))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(fast_folder)], capture_output=True, text=True, cwd=SUPPORT)
    assert done.returncode == 0, done.stderr
    assert any(what.startswith("lost: ") for wrong in json.loads(done.stdout) for what in wrong), done.stdout
