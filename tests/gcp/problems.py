"""Problems that people reported for other clients of Pub/Sub, and the test that would find each of them here."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PROBLEMS", "Problem"]


class Problem(NamedTuple):
    """A reported problem, and the answer here: the names of tests, or why it cannot occur."""

    text: str
    reported: str
    here: str
    tests: tuple[str, ...] = ()


PROBLEMS = (
    Problem(
        "The memory grows until the process is started again.",
        "python-pubsub#273, google-cloud-python#5001",
        "The buffer is bounded in messages and bytes, and a settled message leaves nothing in memory.",
        ("test_a_settled_message_leaves_nothing_behind", "test_a_server_that_ignores_the_bound_fills_no_memory"),
    ),
    Problem(
        "Each batch that is published starts a thread.",
        "python-pubsub#395, #406",
        "One thread serves all clients of a process.",
        ("test_no_batch_starts_a_thread", "test_clients_share_thread_and_channel"),
    ),
    Problem(
        "A client for each call leaks channels and descriptors.",
        "python-pubsub#4, google-cloud-python#5523",
        "The last client of an endpoint closes its channel.",
        ("test_clients_that_were_closed_leave_no_descriptor_and_no_thread",),
    ),
    Problem(
        "A stream stops without an error, and only a restart helps.",
        "google-cloud-python#7001, python-pubsub#74, #1414, dotnet#11793",
        "A stream that hears nothing after a ping is opened again.",
        ("test_a_server_that_falls_silent_is_left", "test_a_stream_that_ends_is_opened_again"),
    ),
    Problem(
        "A failed acknowledgement ends the stream.",
        "google-cloud-python#7709, #7863",
        "The acknowledgement raises; the stream goes on.",
        ("test_a_failed_acknowledgement_does_not_end_the_stream",),
    ),
    Problem(
        "Streams that end in good order fill the log with warnings.",
        "python-pubsub#504, #1432",
        "Routine is logged at DEBUG, and an outage once.",
        ("test_a_routine_end_of_a_stream_is_no_news",),
    ),
    Problem(
        "Long handlers get duplicates, and so do messages that wait behind them.",
        "python-pubsub#593, google-cloud-python#9252",
        "The receiver renews the leases of all messages that it holds or buffers.",
        ("test_what_waits_behind_a_long_handler_keeps_its_lease",),
    ),
    Problem(
        "Messages that are held too long are dropped without a sign.",
        "turbinia#833, google-cloud-python#5792",
        "Settling such a message raises ``EXPIRED``; ``max_lease_duration`` sets the time.",
        ("test_a_message_held_too_long_expires",),
    ),
    Problem(
        "The emulator delivers acknowledged messages again and again.",
        "python-pubsub#30",
        "It does not: each message comes once.",
        ("test_every_way_of_receiving_brings_everything_once",),
    ),
    Problem(
        "Each reconnection leaks a thread, which takes CPU.",
        "google-cloud-python#3965, #4563, python-pubsub#728",
        "Reconnecting starts no thread.",
        ("test_no_reconnection_starts_a_thread",),
    ),
    Problem(
        "Closing hangs, or closes the channel while it is in use.",
        "python-pubsub#242, #394, #419, #423, #747",
        "Every step of closing has a bound.",
        ("test_closing_ends_although_nobody_answers",),
    ),
    Problem(
        "Closing keeps the undelivered messages of a key until their leases run out.",
        "google-cloud-pubsub 2.44.0, ``MessagesOnHold``",
        "All of a key goes back at once, in order.",
        ("test_a_closing_receiver_gives_back_a_whole_key",),
    ),
    Problem(
        "After a failure a key stays paused until the program calls ``resume_publish``.",
        "python-pubsub#1084, nodejs-pubsub#1524, watermill-googlecloud#22",
        "The next send of the key is sent.",
        ("test_a_key_goes_on_after_a_failed_send",),
    ),
    Problem(
        "Of each key one message is delivered; the next comes when it is acknowledged.",
        "python-pubsub#1181",
        "One receive may return several messages of a key.",
        ("test_a_key_needs_no_acknowledgement_to_go_on",),
    ),
    Problem(
        "Without valid credentials, publishing never ends.",
        "python-pubsub#19, #1173, #1318",
        "The send raises ``UNAUTHENTICATED`` or, when its time is up, ``TIMEOUT``.",
        ("test_faults_of_connections_and_credentials_have_these_outcomes",),
    ),
    Problem(
        "Requests take minutes to fail.",
        "python-pubsub#126, #303, #977, #994",
        "A send ends after ``send_timeout``, and its error says so.",
        ("test_a_send_ends_although_nobody_answers",),
    ),
    Problem(
        "A forked child hangs.",
        "google-cloud-python#3925, python-pubsub#112, celery#10339",
        "The child gets ``WRONG_PROCESS``.  gevent, which replaces threads, is not supported.",
        ("test_a_new_client_in_the_child_of_a_process_that_connected_is_refused",),
    ),
    Problem(
        "The first message takes long.",
        "python-pubsub#724",
        "``await client.ping()`` connects before it.",
        ("test_the_first_send_after_a_ping_connects_no_more",),
    ),
    Problem(
        "A nacked message comes again at once, in a hot loop.",
        "python-pubsub#169, nodejs-pubsub#1482, google-cloud-go#5480, dotnet#4881",
        "Each nack delays it longer, unless a retry policy of the subscription does.",
        ("test_nacks_without_a_policy_come_later_each_time",),
    ),
    Problem(
        "With exactly-once delivery, acknowledgements fail if the receipt of the message was not confirmed.",
        "google-cloud-go#8398, nodejs-pubsub#1951, java-pubsub#2555",
        "A message is handed out only when its receipt is confirmed, and each acknowledgement has its own answer.",
        ("test_what_is_not_ours_any_more_is_not_handed_out", "test_exactly_once_tells_what_became_of_each_message"),
    ),
    Problem(
        "A request of more than 512 KiB is refused, and leases are lost.",
        "nodejs-pubsub#1366, google-cloud-cpp#10032, kombu#2487",
        "A request has 1,000 ids at most.",
        ("test_a_request_to_settle_stays_below_the_limit_of_the_service",),
    ),
    Problem(
        "A pull that is cancelled swallows messages for the length of a lease.",
        "emqx#17966",
        "A pull is never cancelled; messages that it brings while the receiver closes go back at once.",
        ("test_a_pull_that_is_answered_late_gives_back_what_it_brings",),
    ),
    Problem(
        "With order and dead letters, a key stops after a nack.",
        "dotnet#11793",
        "The receiver keeps the messages of the key and counts the attempts; then the key goes on.",
        ("test_dead_letters_keep_their_key_in_order",),
    ),
    Problem(
        "There is no API for asyncio.",
        "python-pubsub#218, #389",
        "Cannot occur: every call is a coroutine.",
    ),
)
