"""The policy of a queue: the one that lets SNS send to it, and the answer whether another one does.

Only SQS can tell for sure what a policy means, and there is no request for that.  So a policy that uses more than the
usual is neither accepted nor refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["lets_send", "policy", "statement"]

_EQUALS = {"arnequals", "arnlike", "stringequals", "stringlike", "stringequalsignorecase"}


def statement(queue: str, topic: str) -> dict[str, Any]:
    """Return what lets SNS send to *queue* what is published to *topic*; both are ARNs."""
    return {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue,
        "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
    }


def policy(queue: str, topic: str) -> str:
    """Return the policy of a new queue."""
    return json.dumps({"Version": "2012-10-17", "Statement": [statement(queue, topic)]})


def lets_send(found: str | None, queue: str, topic: str) -> bool | None:
    """Return whether the policy *found* lets SNS send to *queue*; ``None`` if that cannot be told.

    :param found: JSON; ``None`` if the queue has no policy.
    """
    if found is None:
        return False
    try:
        statements = json.loads(found)["Statement"]
        each = [statements] if isinstance(statements, dict) else statements
        answers = [(one["Effect"], _applies(one, queue, topic)) for one in each]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if ("Deny", True) in answers:
        return False
    if ("Allow", True) in answers:
        return True
    return None if ("Allow", None) in answers else False


def _applies(one: Mapping[str, Any], queue: str, topic: str) -> bool | None:
    """Return whether a statement is about SNS sending to *queue*; ``None`` if that cannot be told."""
    answers = [
        _is_sns(one["Principal"]) if "Principal" in one else None,
        _matches(one["Action"], "sqs:sendmessage") if "Action" in one else None,
        _matches(one["Resource"], queue) if "Resource" in one else None,
    ]
    for operator, wanted in one.get("Condition", {}).items():
        answers += [_holds(operator, key, value, topic) for key, value in wanted.items()]
    return False if False in answers else None if None in answers else True


def _is_sns(principal: str | Mapping[str, Any]) -> bool:
    # SNS acts as a service, so the number of an account does not name it.
    if isinstance(principal, str):
        return principal == "*"
    return _matches(principal.get("Service", []), "sns.amazonaws.com") or "*" in _listed(principal.get("AWS", []))


def _holds(operator: str, key: str, value: Any, topic: str) -> bool | None:
    known = {"aws:sourcearn": topic, "aws:sourceaccount": topic.split(":")[4]}.get(key.lower())
    if known is None or operator.lower() not in _EQUALS:
        return None
    return _matches(value, known)


def _matches(patterns: Any, text: str) -> bool:
    return any(fnmatchcase(text.lower(), pattern.lower()) for pattern in _listed(patterns))


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value
