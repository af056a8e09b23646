"""The model of the commit protocol: nothing is wrong in any of its states, and each planted bug shows itself."""

from __future__ import annotations

from dataclasses import fields

import pytest
from protocol_model import QUICK, SOUND, Protocol, Scope, explore, initial_states, successors

STATES = {Scope(builders=1): 37_311, Scope(gc=False): 17_074}
"""As docs/explanation/protocol.md says."""


@pytest.mark.parametrize("scope", QUICK)
def test_in_every_state_all_holds_and_the_builders_can_still_finish(scope: Scope) -> None:
    result = explore(SOUND, scope)
    assert (result.fault, result.stuck) == (None, 0)
    assert result.states == STATES[scope]


@pytest.mark.parametrize("bug", [field.name for field in fields(Protocol)])
def test_a_planted_bug_is_found_and_the_way_to_it_can_be_walked(bug: str) -> None:
    protocol = Protocol(**{bug: True})
    scope, result = next((scope, result) for scope in QUICK if (result := explore(protocol, scope)).fault)
    states = set(initial_states(scope))
    for step in result.trace:
        states = {after for state in states for name, after in successors(state, protocol, scope) if name == step}
    assert states
