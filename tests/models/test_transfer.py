"""Copies to the host, and generators, on a device that is not the current one; streams and events are simulated."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.models.transfer import HostCopy
from distil_cache.train.data.shuffle import RankShare
from distil_cache.train.engine.distributed import ProcessGroup


class OnCard(torch.Tensor):
    """A tensor on the CPU that says it lies on a card."""

    card: int

    @staticmethod
    def of(values: torch.Tensor, card: int) -> OnCard:
        found = values.as_subclass(OnCard)
        found.card = card
        return found

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.card)


class Cards:
    """Streams of copies that are done when someone waits for them, and not before."""

    def __init__(self) -> None:
        self.queues: dict[tuple[int, int], list[Callable[[], Any]]] = {}
        self._here = threading.local()

    def choose(self, card: int) -> None:
        """Make a card the current one of this thread."""
        self._here.card = card

    def current_stream(self, device: torch.device | None = None) -> list[Callable[[], Any]]:
        card = getattr(self._here, "card", 0) if device is None else device.index
        return self.queues.setdefault((card, threading.get_ident()), [])


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    cards = Cards()

    class Pinned(torch.Tensor):
        """Pinned memory: a copy from a card is queued on the current stream of that card."""

        def copy_(self, source: OnCard, non_blocking: bool = False) -> Pinned:  # type: ignore[override]
            plain = torch.Tensor.copy_
            cards.current_stream(source.device).append(lambda: plain(self, source.as_subclass(torch.Tensor)))
            return self

    class Event:
        def record(self, stream: list[Callable[[], Any]] | None = None) -> None:
            self.stream = cards.current_stream() if stream is None else stream

        def synchronize(self) -> None:
            while self.stream:
                self.stream.pop(0)()

    def pinned(shape: torch.Size, *, dtype: torch.dtype, pin_memory: bool) -> Pinned:
        assert pin_memory
        return torch.full(tuple(shape), 77, dtype=dtype).as_subclass(Pinned)

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", cards.current_stream)
    return cards


def test_results_of_a_card_that_is_not_the_current_one_are_waited_for(cards: Cards) -> None:
    leaving = HostCopy({"eps": OnCard.of(torch.arange(6), 1)})
    assert np.array_equal(leaving.arrays()["eps"], np.arange(6))


def test_results_in_a_thread_that_has_chosen_no_card_are_waited_for(cards: Cards) -> None:
    cards.choose(1)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(HostCopy({"x": OnCard.of(torch.arange(3), 1)}).arrays()))
    thread.start()
    thread.join()
    assert np.array_equal(found[0]["x"], np.arange(3))


def test_results_of_several_cards_and_the_host_are_waited_for_together(cards: Cards) -> None:
    values = {"a": OnCard.of(torch.arange(2), 0), "b": OnCard.of(torch.arange(4), 2), "c": torch.arange(5)}
    arrays = HostCopy(values).arrays()
    assert {name: len(rows) for name, rows in arrays.items()} == {"a": 2, "b": 4, "c": 5}
    assert all(np.array_equal(rows, np.arange(len(rows))) for rows in arrays.values())


def test_copies_of_other_work_are_not_waited_for(cards: Cards) -> None:
    leaving = HostCopy({"x": OnCard.of(torch.arange(3), 1)})
    later = HostCopy({"x": OnCard.of(torch.arange(3), 0)})
    leaving.arrays()
    assert [len(queue) for (card, _), queue in sorted(cards.queues.items()) if card == 0] == [1]
    later.arrays()


def test_a_result_is_kept_on_its_card_until_it_is_copied(cards: Cards) -> None:
    value = OnCard.of(torch.arange(3), 1)
    seen = weakref.ref(value)
    leaving = HostCopy({"x": value})
    cards.queues[(1, threading.get_ident())][:] = []  # the queued copy, which is a reference of this test alone
    del value
    assert seen() is not None
    leaving.arrays()
    assert seen() is None


def test_a_training_goes_on_with_the_generator_of_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    generators = {0: torch.tensor([1]), 1: torch.tensor([2])}

    def number(device: torch.device | str = "cuda") -> int:
        return torch.device(device).index or 0

    def put(state: torch.Tensor, device: torch.device | str = "cuda") -> None:
        generators[number(device)] = state

    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": generators[number(device)])
    monkeypatch.setattr(torch.cuda, "set_rng_state", put)
    ranks = ProcessGroup(torch.device("cuda", 1), RankShare())
    saved = ranks.random_state()
    generators[1] = torch.tensor([99])
    ranks.set_random_state(saved, seed=0)
    assert {card: int(state) for card, state in generators.items()} == {0: 1, 1: 2}
