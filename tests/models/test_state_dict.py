"""Weights found within what training frameworks put around them, and the choice between several sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.models.state_dict import choose_set, describe_choice, find_sets
from distil_cache.models.weights import file_weights_digest, read_weights, split_choice, weights_digest
from torch import Tensor

ANCHOR = "stem.weight"


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def plain(value: float = 1.0) -> dict[str, Tensor]:
    return {ANCHOR: torch.full((2, 3), value), "block.0.bias": torch.full((4,), value)}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


WRAPPED: dict[str, tuple[Any, str]] = {
    "DataParallel": (under("module.", plain()), "module"),
    "torch.compile": (under("_orig_mod.", plain()), "_orig_mod"),
    "compiled in DDP": (under("module._orig_mod.", plain()), "module._orig_mod"),
    "DDP compiled": (under("_orig_mod.module.", plain()), "_orig_mod.module"),
    "Lightning": ({"state_dict": under("model.", plain()), "epoch": 3}, "state_dict.model"),
    "EMA": ({"ema": plain(), "step": 3}, "ema"),
    "EMA of DDP": ({"model_ema": under("module.", plain()), "optimizer": {"state": {0: {}}}}, "model_ema.module"),
    "twice": ({"checkpoint": {"model": under("module.", plain())}}, "checkpoint.model.module"),
    "AveragedModel": ({**under("module.", plain()), "n_averaged": torch.tensor(5)}, "module"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_weights_are_found_named_and_have_the_digest_of_the_plain_ones(name: str, tmp_path: Path) -> None:
    content, wrapper = WRAPPED[name]
    torch.save(content, tmp_path / "w.pt")
    stored = read_weights(tmp_path / "w.pt", ANCHOR)
    assert weights_digest(stored.tensors) == weights_digest(plain())
    assert file_weights_digest(tmp_path / "w.pt", ANCHOR) == weights_digest(plain())
    assert stored.note.startswith(f"weights read from {wrapper}")


def test_a_plain_state_dict_needs_no_note(tmp_path: Path) -> None:
    torch.save(plain(), tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt", ANCHOR).note == ""


def test_entries_that_are_passed_over_are_named(tmp_path: Path) -> None:
    torch.save({"model": plain(), "optimizer": {}, "epoch": 2}, tmp_path / "w.pt")
    note = "weights read from model; passed over: optimizer, epoch"
    assert read_weights(tmp_path / "w.pt", ANCHOR).note == note
    many = {"model": plain(), **{f"extra{number}": number for number in range(7)}}
    sets = find_sets(many, ANCHOR)
    assert describe_choice(many, sets, sets[0]).endswith("extra3, extra4 and 2 more")


TWO: dict[str, Any] = {
    "dicts": {"model": plain(2), "model_ema": plain(3)},
    "prefixes": {**under("model.", plain(2)), **under("model_ema.", plain(3))},
    "prefixes in a dict": {"state_dict": {**under("model.", plain(2)), **under("ema_model.", plain(3))}},
    "plain beside a prefix": {**plain(2), **under("ema.", plain(3))},
    "average without dots": {"state_dict": {**under("model.", plain(2)), "model_ema.stemweight": plain(3)[ANCHOR],
                                            "model_ema.block0bias": plain(3)["block.0.bias"], "model_ema.decay": torch.ones(1)}},
    "average of a wrapped network without dots": {
        **under("model.net.", plain(2)), "model_ema.netstemweight": plain(3)[ANCHOR],
        "model_ema.netblock0bias": plain(3)["block.0.bias"],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TWO)
def test_of_two_sets_the_user_chooses(name: str) -> None:
    sets = find_sets(TWO[name], ANCHOR)
    assert len(sets) == 2
    with pytest.raises(UserError, match=r"w\.pt: holds 2 sets of weights: .*ema.*Choose: w\.pt#.* or w\.pt#"):
        choose_set(sets, None, "w.pt")
    for choice, value in (("model", 2), ("ema", 3)):
        assert weights_digest(choose_set(sets, choice, "w.pt").tensors) == weights_digest(plain(value))
    for one in sets:
        assert choose_set(sets, one.wrapper or "model", "w.pt") is one


def test_a_choice_that_the_file_does_not_hold_names_those_that_it_holds() -> None:
    sets = find_sets(TWO["dicts"], ANCHOR)
    with pytest.raises(UserError, match=r"w\.pt#swa: the file holds no such weights, only model and model_ema"):
        choose_set(sets, "swa", "w.pt")


def test_the_digest_follows_the_choice_and_is_not_mixed_up(tmp_path: Path) -> None:
    torch.save(TWO["dicts"], tmp_path / "w.pt")
    for choice, value in (("model", 2), ("model_ema", 3)):
        assert file_weights_digest(tmp_path / "w.pt", ANCHOR, choice) == weights_digest(plain(value))
    with pytest.raises(UserError, match="holds 2 sets"):
        file_weights_digest(tmp_path / "w.pt", ANCHOR)


def test_a_file_that_contains_itself_ends() -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["itself"] = content
    assert find_sets(content, ANCHOR) == []


def test_the_choice_follows_a_hash_unless_the_file_has_one_in_its_name(tmp_path: Path) -> None:
    assert split_choice("w.pt") == ("w.pt", None)
    assert split_choice("folder#1/w.pt#ema") == ("folder#1/w.pt", "ema")
    odd = tmp_path / "w#2.pt"
    odd.touch()
    assert split_choice(str(odd)) == (str(odd), None)
