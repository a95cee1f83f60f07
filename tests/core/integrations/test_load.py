"""Events are complete and in order for each client, or missing exactly as the outbox counts, on real servers."""

from __future__ import annotations

import pytest

from events_core.integrations.outbox import Policy

from .load import FRAMEWORKS, SCENARIOS, Framework, Trial, run


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_events_of_many_clients(framework: Framework, scenario: str) -> None:
    """A quarter of the clients is lost; the broker goes away, or the server shuts down under load."""
    stats = run(Trial(framework, connections=20, messages=400), SCENARIOS[scenario], seconds=0.3)
    assert stats.dropped == 0
    if scenario != "shutdown_without_broker":
        assert stats.sent == stats.offered


@pytest.mark.parametrize("policy", ["wait", "drop_newest", "drop_oldest"])
def test_a_full_outbox(policy: Policy) -> None:
    """While the broker is away the outbox becomes full; the policy says what is missing, and nothing else is."""
    trial = Trial("starlette", connections=20, messages=400, policy=policy, max_messages=20)
    stats = run(trial, SCENARIOS["broker_away"], seconds=0.3)
    assert stats.sent + stats.dropped == stats.offered
    assert (stats.dropped == 0) is (policy == "wait")
