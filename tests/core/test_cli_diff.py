"""``events diff``: what a program loses or gains with another backend."""

from __future__ import annotations

import json

import pytest

from .shell import Shell

SQLITE = "sqlite:events.db/orders"
MEMORY = "memory:///orders"


def changes(shell: Shell, before: str, after: str) -> dict[str, tuple[str, object, object]]:
    """Return the differences that the command tells: capability to kind, value before and value after."""
    lines = shell.run("diff", before, after, "--json").stdout.splitlines()
    return {each["capability"]: (each["change"], each["before"], each["after"]) for each in map(json.loads, lines)}


def test_a_weaker_promise_is_a_loss_and_a_stronger_one_a_gain(shell: Shell) -> None:
    """The same difference is a loss in one direction and a gain in the other."""
    assert changes(shell, SQLITE, MEMORY) == {"durable": ("loses", "power_loss", "none")}
    assert changes(shell, MEMORY, SQLITE) == {"durable": ("gains", "none", "power_loss")}


def test_the_options_of_a_target_count(shell: Shell) -> None:
    """Two configurations of one backend may differ."""
    assert changes(shell, SQLITE, f"{SQLITE}?durability=normal&ordering=false") == {
        "durable": ("loses", "power_loss", "process_crash"),
        "ordering": ("loses", "subscription", "none"),
        "exactly_once": ("loses", True, False),
    }


def test_the_table_names_the_rule(shell: Shell) -> None:
    """A line for each difference has the kind, the capability, both values and the rule."""
    head, line = shell.run("diff", SQLITE, MEMORY).stdout.decode().splitlines()
    assert head.split() == ["capability", "before", "after", "rule"]
    assert line.split(maxsplit=4) == ["loses", "durable", "power_loss", "none", "F3: what a confirmed message survives"]


def test_without_a_difference_it_says_so(shell: Shell) -> None:
    """The text is one line, and with --json there is none."""
    assert shell.run("diff", MEMORY, MEMORY).stdout == b"no difference: both promise the same\n"
    assert changes(shell, MEMORY, MEMORY) == {}


def test_nothing_is_opened_or_created(shell: Shell) -> None:
    """The database file is not made."""
    shell.run("diff", SQLITE, MEMORY)
    assert not (shell.folder / "events.db").exists()


@pytest.mark.parametrize("wrong", ["memroy:///orders", "memory:///orders?create=some", "orders"])
def test_a_wrong_target_is_named(shell: Shell, wrong: str) -> None:
    """Either of the two is explained in one line."""
    assert shell.fail("diff", MEMORY, wrong, code=2) == shell.fail("diff", wrong, MEMORY, code=2)
