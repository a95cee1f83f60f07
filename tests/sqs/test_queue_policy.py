"""The policy of a queue that exists is read as SQS reads it, or left to SQS."""

from __future__ import annotations

import json
from typing import Any

import pytest

from events_sqs.policy import lets_send, policy, statement

QUEUE = "arn:aws:sqs:eu-west-1:123456789012:orders-billing"
TOPIC = "arn:aws:sns:eu-west-1:123456789012:orders"


def judged(*changes: dict[str, Any]) -> bool | None:
    """Return the answer for a policy with one statement for each of *changes*."""
    statements = [{**statement(QUEUE, TOPIC), **change} for change in changes]
    return lets_send(json.dumps({"Statement": statements}), QUEUE, TOPIC)


def condition(operator: str, key: str, *values: str) -> dict[str, Any]:
    return {"Condition": {operator: {key: list(values)}}}


def test_the_policy_of_the_library_lets_sns_send() -> None:
    assert lets_send(policy(QUEUE, TOPIC), QUEUE, TOPIC) is True


@pytest.mark.parametrize(
    "change",
    [
        {"Principal": "*"},
        {"Principal": {"AWS": "*"}},
        {"Principal": {"Service": ["events.amazonaws.com", "sns.amazonaws.com"]}},
        {"Action": "SQS:SendMessage"},
        {"Action": ["sqs:ReceiveMessage", "sqs:*"]},
        {"Resource": "arn:aws:sqs:*:123456789012:orders-*"},
        {"Condition": {}},
        condition("ArnLike", "AWS:SourceArn", "arn:aws:sns:*:*:orders*"),
        condition("StringEquals", "aws:SourceAccount", "123456789012"),
    ],
)
def test_usual_statements_let_sns_send(change: dict[str, Any]) -> None:
    """Those that other programs and AWS's own pages write."""
    assert judged(change) is True
    assert judged({"Effect": "Deny", "Principal": "*", **condition("Bool", "aws:SecureTransport", "false")}, change)


@pytest.mark.parametrize(
    "change",
    [
        {"Effect": "Deny"},
        {"Principal": {"AWS": "123456789012"}},
        {"Principal": {"Service": "events.amazonaws.com"}},
        {"Action": "sqs:ReceiveMessage"},
        {"Resource": "arn:aws:sqs:eu-west-1:123456789012:another"},
        condition("ArnEquals", "aws:SourceArn", "arn:aws:sns:eu-west-1:123456789012:another"),
        condition("StringEquals", "aws:SourceAccount", "000000000000"),
        {**condition("StringEquals", "aws:SourceOrgID", "o-1"), "Action": "sqs:ReceiveMessage"},
    ],
)
def test_other_statements_do_not(change: dict[str, Any]) -> None:
    """Such a queue gets nothing, and nothing says so."""
    assert judged(change) is False


@pytest.mark.parametrize("found", [None, '{"Statement": []}'])
def test_without_a_statement_sns_may_not_send(found: str | None) -> None:
    assert lets_send(found, QUEUE, TOPIC) is False


def test_a_plain_refusal_counts_more_than_a_permission() -> None:
    assert judged({}, {"Effect": "Deny"}) is False


@pytest.mark.parametrize(
    "change",
    [
        condition("StringEquals", "aws:SourceOrgID", "o-1"),
        condition("ArnEqualsIfExists", "aws:SourceArn", "arn:aws:sns:eu-west-1:123456789012:another"),
        {"Principal": 7},
        {"Action": [7]},
        {"Condition": ["x"]},
    ],
)
def test_anything_else_cannot_be_told(change: dict[str, Any]) -> None:
    """Only SQS knows; refusing it would stop programs that work."""
    assert judged(change) is None


@pytest.mark.parametrize("found", ["", "[]", "{}", "null", '{"Statement": [7]}', '{"Statement": 7}'])
def test_what_is_no_policy_cannot_be_told(found: str) -> None:
    assert lets_send(found, QUEUE, TOPIC) is None
