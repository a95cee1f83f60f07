"""The conformance kit can fail: it finds each broken backend, on the rule that the backend breaks."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from events_core import Capabilities
from events_core.testing import CLAIMS, RULES, ConformanceSuite

BROKEN = ["broken_backends.py", "broken_brokers.py"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return pytest's report of the broken backends.  One process runs it, and the others wait for the file."""
    folder = tmp_path_factory.getbasetemp()
    file = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "broken-backends"
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            file.write_text(_run(tmp_path_factory.mktemp("kit")))
    return file.read_text()


def _run(folder: Path) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *map(str, map(Path(__file__).with_name, BROKEN))),
            # All tests of a suite in one process, because a suite that gives up does so in the process that has failed.
            *("-c", os.devnull, "--rootdir", str(folder), "-n", "2", "--dist", "loadscope"),
            *("--noconftest", "-p", "no:cacheprovider", "-p", "events_core.testing.plugin", "--tb=short"),
        ],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            # Python 3.11 parses source to underline it in tracebacks, and cannot while it parses already, as pytest
            # does when a task that nobody awaited is collected and reported (pytest-dev/pytest#10763).
            "PYTHONNODEBUGRANGES": "1",
            "COLUMNS": "200",
        },
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    return done.stdout


def states(output: str, suite: str) -> dict[str, str]:
    """Return the column of *suite* in the table of rules, without its empty cells."""
    table = output.partition(" rules of the contract ")[2].partition("\n\n")[0]
    _, head, *rows = table.splitlines()
    names = head.split()
    begins = head.index(f" {suite} ") + 1 if suite != names[-1] else head.index(suite)
    ends = begins + max(len(suite), len("not declared"))
    cells = {row.split()[0]: row[begins:ends].strip() for row in rows}
    return {rule: cell for rule, cell in cells.items() if cell}


FOUND_OUT = [
    ("TestLosesAttributes", "§1", "test_a_message_arrives_as_it_was_sent[attributes]"),
    ("TestSaysItIsConnected", "§3", "test_a_client_tells_its_topic_and_state"),
    ("TestMiscountsWhatItHolds", "§4", "test_stats_count_what_is_held"),
    ("TestPromisesMoreThanItCan", "§6", "test_capabilities_are_within_what_the_class_can_do"),
    ("TestIgnoresUnknownOptions", "O1", "test_wrong_options_are_reported_all_at_once"),
    ("TestShowsItsOptions", "O2", "test_option_values_are_not_shown"),
    ("TestKeepsLessThanItDeclares", "O4", "test_what_is_declared_may_be_required"),
    ("TestImportsItsSdk", "B1", "test_importing_the_backend_does_not_import_its_sdk"),
    ("TestIsOfAnotherVersion", "B3", "test_the_class_states_its_interface_version"),
    ("TestRepeatsIds", "P1", "test_ids_are_unique_and_those_that_receivers_see"),
    ("TestDeclaresSmallerLimits", "P2", "test_a_message_at_the_limit_is_sent_and_beyond_it_none_is[max_attributes]"),
    ("TestSendsTooMuchAtOnce", "P2", "test_a_large_send_is_split[many messages]"),
    ("TestPausesKeys", "P3", "test_a_failure_pauses_no_key"),
    ("TestTellsNoResults", "P3", "test_results_tell_the_outcome_of_each_message"),
    ("TestTellsTheDriversResults", "P3", "test_each_message_of_a_failed_send_has_a_result"),
    ("TestGoesOnAfterAFailure", "P3", "test_results_tell_the_outcome_of_each_message"),
    ("TestSharesRefusals", "P3", "test_a_message_that_the_broker_refuses_fails_nobody_elses"),
    ("TestReversesBatches", "P4", "test_a_batch_keeps_order_per_key"),
    ("TestReversesRetries", "P4", "test_sends_of_a_key_keep_their_order_in_an_outage"),
    ("TestStoresTheFirstOfABatch", "P5", "test_concurrent_sends_lose_nothing"),
    ("TestSendsWithoutBounds", "P6", "test_past_the_bound_a_send_fails_by_option[publish_max_messages]"),
    ("TestCountsNoBytes", "P6", "test_past_the_bound_a_send_fails_by_option[publish_max_bytes]"),
    ("TestLeaksRoom", "P6", "test_a_send_that_waits_for_room_may_be_cancelled"),
    ("TestNeverGivesUp", "P7", "test_a_permanent_error_surfaces_at_once"),
    ("TestCancelsItsBatch", "P8", "test_cancelled_sends_harm_nobody"),
    ("TestStaysInterrupted", "P8", "test_cancelled_sends_harm_nobody"),
    ("TestEndsItsSubscriptions", "Q1", "test_a_named_subscription_outlives_its_receivers"),
    ("TestSettlesForEverybody", "Q1", "test_what_one_subscription_settles_another_keeps"),
    ("TestLosesWhatFollowsAnOutage", "Q1", "test_an_ephemeral_subscription_outlives_an_outage"),
    ("TestCreatesRegardless", "Q2", "test_a_missing_subscription_is_named"),
    ("TestDeniesReplay", "Q3", "test_start_earliest_begins_with_the_oldest_message"),
    ("TestRewindsOnJoining", "Q3", "test_start_earliest_leaves_an_existing_subscription_as_it_is"),
    ("TestJoinsAsAMereCoroutine", "Q4", "test_a_subscription_can_be_entered"),
    ("TestComesBackEarly", "R1", "test_a_timeout_gives_none"),
    ("TestComesBackLate", "R1", "test_timeouts_are_kept"),
    ("TestAlwaysWaits", "R1", "test_timeouts_are_kept"),
    ("TestMakesTimeoutsErrors", "R1", "test_a_timeout_in_an_outage_gives_none"),
    ("TestIgnoresLimits", "R2", "test_a_batch_is_at_most_its_limit"),
    ("TestLosesCancelledReceives", "R3", "test_a_receive_is_cancelled_anywhere[_receive_message]"),
    ("TestLosesCancelledIterations", "R3", "test_a_receive_is_cancelled_anywhere[_iterate]"),
    ("TestHandsOutTwice", "R4", "test_no_delivery_goes_to_two_tasks"),
    ("TestHoldsWithoutBounds", "R5", "test_messages_held_are_bounded"),
    ("TestBuffersWithoutBounds", "R5", "test_what_is_buffered_counts_as_held"),
    ("TestBoundsTheLargest", "R5", "test_bytes_held_are_bounded_together"),
    ("TestLetsLeasesLapse", "R6", "test_a_held_message_is_kept_beyond_the_lease"),
    ("TestHoldsForEver", "R6", "test_a_message_held_too_long_expires"),
    ("TestKeptByTheApplication", "R6", "test_a_blocked_loop_loses_nothing_to_another_client"),
    ("TestHandsOutAgain", "R7", "test_a_held_message_is_kept_beyond_the_lease"),
    ("TestFreesKeysAtOnce", "R8", "test_a_key_is_with_one_caller_at_a_time"),
    ("TestLosesNacks", "R9", "test_a_nacked_message_comes_again_the_same"),
    ("TestNacksPiecemeal", "R10", "test_a_nack_goes_on_with_that_message"),
    ("TestForgetsAttributes", "R10", "test_a_keyed_message_comes_again_the_same"),
    ("TestIgnoresDelays", "R11", "test_a_delay_is_kept"),
    ("TestDelaysOneByOne", "R11", "test_a_delay_of_several_is_kept"),
    ("TestTakesZeroForNone", "R11", "test_a_delay_of_zero_is_no_backoff"),
    ("TestBuriesNothing", "R12", "test_a_message_that_failed_too_often_is_dead_lettered"),
    ("TestBuriesWithoutAKey", "R12", "test_a_dead_letter_frees_its_key"),
    ("TestForgivesExpiries", "R12", "test_a_message_that_expired_too_often_is_dead_lettered"),
    ("TestForgetsAcknowledgements", "S1", "test_an_acknowledged_message_does_not_come_again"),
    ("TestConfirmsTheSecondTime", "S1", "test_acknowledging_twice_waits_for_the_confirmation"),
    ("TestSettlesAnything", "S2", "test_the_first_outcome_stands"),
    ("TestTakesBothOutcomes", "S2", "test_of_outcomes_at_once_one_stands"),
    ("TestAcknowledgesAnyId", "S2", "test_the_first_outcome_stands"),
    ("TestSettlesAnything", "S3", "test_an_unknown_id_is_not_found"),
    ("TestObjectsToNacks", "S3", "test_nacking_what_is_gone_with_its_subscription_is_a_no_op"),
    ("TestRemembersTen", "S3", "test_the_last_ten_thousand_are_remembered"),
    ("TestSettlesUpToTheFirstError", "S4", "test_a_batch_settles_all_it_can"),
    ("TestTellsTheDriversFailures", "S4", "test_each_failure_of_a_batch_is_an_error_of_settling"),
    ("TestEndsWithAFailedSettlement", "S5", "test_a_failed_settlement_does_not_end_the_receiver"),
    ("TestDropsWhatTimedOut", "S5", "test_a_settlement_without_an_answer_times_out"),
    ("TestRefusesToRepeat", "S5", "test_a_cancelled_settlement_can_be_repeated"),
    ("TestWrapsForeignFailures", "N1", "test_a_failure_of_native_work_comes_back_unchanged"),
    ("TestNacksWhatIsRejected", "S6", "test_a_rejected_message_is_dead_lettered_at_once"),
    ("TestTakesEveryReason", "S6", "test_a_reason_that_is_no_text_is_refused"),
    ("TestHidesThatItCannotReject", "S6", "test_rejecting_without_a_dead_letter_topic_is_refused"),
    ("TestHidesThatItCannotReject", "H3", "test_a_message_that_cannot_be_rejected_is_nacked"),
    ("TestNacksWhateverIsRaised", "H3", "test_a_handler_rejects_its_message"),
    ("TestNacksWhateverIsRaised", "H3", "test_a_handler_asks_for_its_message_later"),
    ("TestKeepsWhatItHeld", "C1", "test_what_is_held_at_the_end_goes_back"),
    ("TestStaysOnLeaving", "C1", "test_what_is_held_at_the_end_goes_back"),
    ("TestCutsItsClosingShort", "C2", "test_closing_a_client_closes_its_receivers"),
    ("TestBlamesItself", "C2", "test_closing_in_an_outage_ends_what_waits"),
    ("TestLeaksFiles", "C3", "test_nothing_is_left"),
    ("TestEndsInAnOutage", "F1", "test_a_receiver_outlives_an_outage"),
    ("TestWaitsForTheDeleted", "F1", "test_a_deleted_subscription_is_made_again"),
    ("TestWaitsForTheDeleted", "F1", "test_a_deleted_subscription_that_may_not_be_made_is_named"),
    ("TestDeniesItsSessions", "F2", "test_what_is_held_outlives_its_session_or_expires"),
    ("TestConfirmsWhatItLost", "F2", "test_what_is_held_outlives_its_session_or_expires"),
    ("TestClaimsDurability", "F3", "test_a_confirmed_message_survives_its_sender"),
    ("TestBelongsToOneLoop", "T1", "test_one_client_serves_loops_one_after_the_other"),
    ("TestWorksAfterAFork", "T2", "test_a_connected_client_refuses_to_work_in_a_forked_child"),
    ("TestClosesAfterAFork", "T2", "test_a_connected_client_refuses_to_work_in_a_forked_child"),
    ("TestLosesWhatAChildSends", "T2", "test_a_new_client_in_a_forked_child_stores_what_it_confirms_or_refuses"),
    ("TestLosesItsMemory", "F3", "test_a_confirmed_message_survives_the_broker"),
    ("TestForgetsWhatItConfirmed", "S1", "test_a_confirmed_acknowledgement_survives_the_broker"),
    ("TestStoresAgain", "P7", "test_a_retried_send_is_stored_once"),
    ("TestSettlesForOthers", "S3", "test_settling_after_the_lease_changes_nothing[acknowledge]"),
    ("TestSettlesForOthers", "R9", "test_settling_after_the_lease_changes_nothing[nack]"),
    ("TestConfirmsTooLate", "S1", "test_settling_after_the_lease_changes_nothing[acknowledge]"),
    ("TestStealsByExtending", "R6", "test_extending_after_the_lease_takes_nothing_from_others"),
    ("TestHidesByExtending", "R6", "test_extending_after_the_lease_takes_nothing_from_others"),
    ("TestPutsLapsedRunsBehind", "R10", "test_a_run_of_a_dead_process_comes_again_in_order"),
    ("TestForgetsKeysOfTheDead", "R10", "test_a_run_of_a_dead_process_comes_again_in_order"),
    ("TestKeepsEverything", "Q3", "test_what_is_older_than_its_retention_is_gone"),
    ("TestGivesNothingBack", "C1", "test_what_was_never_handed_out_goes_back_at_once"),
    ("TestTrimsWhatNobodyHas", "P5", "test_concurrent_sends_lose_nothing"),
    ("TestClosesBeforeItSettles", "C2", "test_closing_a_client_closes_its_receivers"),
    ("TestNamesNoPlace", "§5", "test_the_class_says_which_operation_failed"),
    ("TestSwallowsFailures", "H1", "test_what_failed_is_nacked"),
    ("TestLeavesFailuresHeld", "H1", "test_what_failed_is_nacked"),
    ("TestRaisesExpiries", "H1", "test_what_expired_meanwhile_is_logged"),
    ("TestCountsWhatIsHandedBack", "H1", "test_what_was_cancelled_is_handed_back"),
    ("TestCountsWhatIsHandedBack", "H2", "test_consuming_is_cancelled"),
    ("TestTellsNobody", "V1", "test_an_observer_is_told_of_each_operation"),
    ("TestTellsTooLittle", "V1", "test_an_observer_sees_the_messages"),
    ("TestTellsTooLittle", "V1", "test_an_observer_is_told_of_processing"),
    ("TestTellsTooLittle", "V1", "test_an_observer_adds_attributes"),
    ("TestTellsTooLittle", "V1", "test_attributes_of_an_observer_never_fail_a_send"),
    ("TestPrints", "V1", "test_nothing_is_printed"),
]
"""Suites of the broken backends, the rules that the backends break, and the tests that find it out."""


@pytest.mark.parametrize(("suite", "rule", "test"), FOUND_OUT)
def test_a_broken_backend_fails_on_its_rule(output: str, suite: str, rule: str, test: str) -> None:
    """The table names suite, rule and test, and the failure itself names the broken rule."""
    assert re.search(rf"^{suite} (.+, )?{rule}(, .+)? BROKEN: {re.escape(test)}$", output, re.MULTILINE)
    assert states(output, suite)[rule] == "BROKEN"
    assert f"breaks {rule}: " in output


NOT_OF_A_BACKEND = {
    "O3": "where a configuration comes from is the core's alone: test_config",
    "B2": "how the registry loads is the core's alone: test_registry",
    "B4": "that embedded backends have no door of their own is seen in their imports, which lint-imports reads",
}
"""Rules of the contract that the kit does not try, with the reasons."""


def test_every_rule_of_the_contract_is_tried() -> None:
    """The kit tries every rule of the published contract that a backend can break."""
    contract = Path(__file__).parents[2] / "docs" / "contract.rst"
    names = set(re.findall(r"^- \*\*([A-Z][0-9]+)\*\*", contract.read_text(), re.MULTILINE))
    assert len(names) > len(NOT_OF_A_BACKEND)
    assert {rule for rule in RULES if not rule.startswith("§")} == names - set(NOT_OF_A_BACKEND)


def test_every_rule_is_broken_by_a_backend() -> None:
    """For each rule, some broken backend shows that its tests can fail."""
    assert {rule for _, rule, _ in FOUND_OUT} == set(RULES)


def test_every_rule_that_a_test_is_about_is_in_the_table() -> None:
    """Each test is about rules of the table, and each rule of the table has a test."""
    tests = [getattr(ConformanceSuite, name) for name in dir(ConformanceSuite) if name.startswith("test_")]
    assert {rule for test in tests for rule in test.rules} == set(RULES)


def test_only_what_was_shown_is_called_kept(output: str) -> None:
    """A sound backend with a minimal harness keeps some rules, and others partly or not visibly."""
    found = states(output, "TestUnbroken")
    assert set(found) == set(RULES)
    assert {rule: state for rule, state in found.items() if state != "kept"} == {
        **dict.fromkeys(["B1", "R7", "F2"], "not shown"),
        **dict.fromkeys(["§3", "P3", "P4", "P6", "P7", "P8", "Q1", "Q2", "R1", "R6", "S1", "S2", "S5", "S6"], "partly"),
        **dict.fromkeys(["C2", "F1", "V1"], "partly"),
        "F3": "not declared",
    }


def test_a_backend_of_the_first_version_passes(output: str) -> None:
    """What the contract has gained since is not shown for it, and nothing is broken."""
    assert states(output, "TestTellsAsBefore") == {"F1": "not shown", "V1": "partly"}


def test_an_exception_is_reported_with_its_reason(output: str) -> None:
    """A fault of the environment is reported with its reason, and not as broken."""
    assert "TestExcepted R9 excepted: the emulator loses nacks" in output


def test_an_exception_must_name_a_rule_or_test(output: str) -> None:
    """An exception that names neither a rule nor a test fails the suite."""
    assert "MistakenHarness.exceptions names 'R99', which is neither a rule nor a test" in output


def test_a_test_is_bounded(output: str) -> None:
    """A test that waits endlessly fails."""
    assert "TestUnending R1 BROKEN: test_that_waits_for_ever" in output


def test_a_test_that_runs_loops_of_its_own_is_bounded(output: str) -> None:
    """A test that waits endlessly in one of its own loops fails."""
    assert "TestUnending T1 BROKEN: test_in_many_loops" in output


def test_closing_what_a_test_opened_is_bounded(output: str) -> None:
    """A client that does not close fails its test."""
    assert "TestNeverCloses §3 BROKEN: test_that_is_over" in output
    assert "1 of 1 clients did not close within 0.1 s (C2)" in output


def test_an_error_on_closing_keeps_no_other_client_open(output: str) -> None:
    """An error on closing fails the test after every client has been closed."""
    assert states(output, "TestClosesWithAnError") == {"§3": "BROKEN", "C2": "kept"}


def test_a_test_must_leave_no_task(output: str) -> None:
    """A task that outlives its clients fails the test."""
    assert "TestUnending C3 BROKEN: test_that_leaves_a_task" in output


def unproven(output: str, suite: str) -> dict[str, str]:
    """Return the capabilities that *suite* declares and that were not proven, with the reasons."""
    return dict(re.findall(rf"^{suite} (\S+) declared, not proven: (.+)$", output, re.MULTILINE))


def test_what_was_proven_is_not_said_to_be_unproven(output: str) -> None:
    """A harness that can do everything leaves no provable capability unproven."""
    found = states(output, "TestProvable")
    assert found.keys() >= {"F3", "R10"}
    assert "BROKEN" not in found.values()
    assert unproven(output, "TestProvable") == {}


def test_what_nothing_could_prove_is_said_to_be_unproven(output: str) -> None:
    """Without a restart, an outage or a known lease, the table names each unproven capability and the reason."""
    found = unproven(output, "TestUnprovable")
    assert set(found) == {"durable=process_crash", "ordering=subscription", "exactly_once", "idempotent_publish"}
    assert "a restart of the broker" in found["durable=process_crash"]
    assert "the end of a lease" in found["ordering=subscription"]


def test_every_capability_has_a_test_that_proves_it() -> None:
    """Each claim has a test that proves it; otherwise it would be called neither proven nor unproven."""
    tests = [getattr(ConformanceSuite, name) for name in dir(ConformanceSuite) if name.startswith("test_")]
    proven = {claim for test in tests for claim in test.proves}
    assert proven == set(CLAIMS)
    told = {"handback_counts", "redelivery", "limits"}  # what a backend does, or cannot do, and no promise
    fields = {field.name for field in attrs.fields(Capabilities)}
    assert {claim.partition("=")[0] for claim in proven} == fields - told


def test_the_kit_gives_up(output: str) -> None:
    """After failing tests have taken long enough, the kit leaves out the rest and names what failed."""
    assert "TestGivesUp R9 BROKEN: test_first" in output
    assert re.search(
        r"^TestGivesUp R1 not shown: the kit gave up after .* fix the first failures first: test_first$", output, re.M
    )


def test_a_failure_begins_with_what_it_is_about(output: str) -> None:
    """After its first line, a failure names topic, receiver and the newest records of the backend's log."""
    assert re.search(
        r"^E   AssertionError: no message within 0.5 s\n"
        r"E   topic: 'kit-.+'\n"
        r"E   receiver: of subscription '.+-shared', 0 held, .*\n"
        r"E   log: \S+ s WARNING broken_backends.driver: a settlement of two lines\n",
        output,
        re.MULTILINE,
    )


def test_a_failure_names_the_point_of_cancellation(output: str) -> None:
    """A failure of the sweep names the line at which the call waited, the topic of that run, and its receiver."""
    assert re.search(
        r"^E   AssertionError: no message within 0.5 s\n"
        r"E   point: cancelled at suspension 2, as it began to wait, in broken_backends.py:\d+ \(.+receive_messages\)\n"
        r"E   topic: 'kit-.+-run-1'\n"
        r"E   receiver: of subscription '.+-shared-1', ",
        output,
        re.MULTILINE,
    )


def test_a_test_that_takes_too_long_says_where_it_waits(output: str) -> None:
    """The error of a test that takes too long names the line of the test at which it waits."""
    assert re.search(
        r"^E   TimeoutError: the test was not over within its \S+ s, waiting in broken_backends.py:\d+, ", output, re.M
    )
