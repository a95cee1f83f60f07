"""From settlements to requests, and from answers to the result of each settlement.

Settlements with the same effect share a request: one request acknowledges, one for each delay lets messages come again.
The requests are sent one after the other.  A message that the receiver makes a dead letter is acknowledged once the
letter is stored.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from events_core.engine import BrokerError, Delivery, Letters, Outcome, Settlement, redelivery_delay

if TYPE_CHECKING:
    from events_gcp.attempts import Attempts
    from events_gcp.late_acknowledgements import LateAcknowledgements
    from events_gcp.leases import Leases
    from events_gcp.subscription import JoinedSubscription

__all__ = ["Settling"]

# As globals, because reading a member from its class takes ten times as long (CPython 3.11).
ACK, _, RETURN, _ = Outcome


class Settling:
    """The settlements of one receiver.  Its calls do not overlap."""

    def __init__(
        self,
        joined: JoinedSubscription,
        leases: Leases,
        letters: Letters,
        attempts: Attempts,
        late: LateAcknowledgements,
    ) -> None:
        self._joined = joined
        self._leases = leases
        self._letters = letters
        self._attempts = attempts
        self._late = late

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        """Tell Pub/Sub the outcomes, and return the result of each settlement.

        :raises BrokerError: if every request failed as a whole.
        """
        dead = [each for each in settlements if each.outcome is not ACK and self._letters.takes(each)]
        dead.sort(key=lambda each: each.delivery.order)
        letters = {each.delivery: self._letters.move(each) for each in dead}
        results = [letters.get(each.delivery) for each in settlements]
        groups = self._grouped(settlements, letters)
        lost: list[BrokerError] = []
        for delay, indices in groups.items():
            ack_ids = [settlements[index].delivery.token for index in indices]
            try:
                if delay is None:
                    errors = await self._leases.acknowledge(ack_ids)
                else:
                    errors = await self._leases.redeliver(ack_ids, delay)
            except BrokerError as error:
                errors = [error] * len(indices)
                lost.append(error)
            for index, each in zip(indices, errors, strict=True):
                results[index] = each
        self._note(settlements, results, letters)
        if lost and len(lost) == len(groups) and None not in results:
            raise lost[0]  # so the engine treats it as an outage, and pauses before it asks again
        return results

    def _grouped(
        self, settlements: Sequence[Settlement], letters: Mapping[Delivery, BrokerError | None]
    ) -> Mapping[float | None, list[int]]:
        """Return the indices that go into one request, by its delay; those under ``None`` are acknowledged.

        A letter that is not stored yet is in no request: its message stays held.
        """
        groups: defaultdict[float | None, list[int]] = defaultdict(list)
        for index, settlement in enumerate(settlements):
            if settlement.outcome is ACK:
                groups[None].append(index)
            elif settlement.delivery not in letters:
                groups[self._delay(settlement)].append(index)
            elif letters[settlement.delivery] is None:
                groups[None].append(index)
        for indices in groups.values():
            # With order and exactly-once delivery, Pub/Sub refuses an acknowledgement that comes before the one of an
            # earlier message of the key.  The ack ids that go back come again in the order of the request.
            indices.sort(key=lambda index: settlements[index].delivery.order)
        return groups

    def _delay(self, settlement: Settlement) -> float:
        """Return the seconds until the message may come again.

        From one second on it is a whole number, because Pub/Sub counts in seconds.
        """
        delivery, delay = settlement.delivery, settlement.delay
        if settlement.outcome is RETURN:
            return 0.0
        failures = self._attempts.fail(delivery)
        if self._joined.keeps_order_of(delivery):
            # The engine keeps nacked messages of a key until the receiver closes.  Then they all go into one request,
            # because Pub/Sub delivers them in the order of that request.
            return 0.0
        if delay is None:
            delay = 0.0 if self._joined.has_backoff else redelivery_delay(failures)
        return delay if delay < 1 else float(math.ceil(delay))

    def _note(
        self,
        settlements: Sequence[Settlement],
        results: Sequence[BrokerError | None],
        letters: Mapping[Delivery, BrokerError | None],
    ) -> None:
        """Remember what later deliveries and settlements must know about these results."""
        ended = [each for each, error in zip(settlements, results, strict=True) if error is None]
        self._letters.forget(each.delivery.message_id for each in ended)
        done = [each.delivery for each in ended if each.outcome is ACK or each.delivery in letters]
        self._attempts.forget(done)
        if not self._joined.capabilities.exactly_once:
            self._late.note(done, asyncio.get_running_loop().time())
