"""An anchor for each rule of the contract, and a link to it wherever a page or a docstring names the rule."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

log = logging.getLogger(__name__)

RULE = re.compile(r"\b[A-Z][0-9]{1,2}\b")
"""What the name of a rule looks like."""

NOT_LINKED = (nodes.literal, nodes.literal_block, nodes.reference, nodes.title, nodes.raw, addnodes.pending_xref)
"""Text in these nodes is code, a link already, or a heading."""


class RuleAnchors(SphinxTransform):
    """Give each rule of ``contract.rst`` the label ``rule-<name>``: ``:ref:`R7 <rule-r7>```."""

    default_priority = 200

    def apply(self, **kwargs: object) -> None:
        if self.env.docname != "contract":
            return
        for strong in list(self.document.findall(nodes.strong)):
            item = strong.parent.parent
            if isinstance(item, nodes.list_item) and RULE.fullmatch(strong.astext()):
                item["names"].append(f"rule-{strong.astext().lower()}")
                self.document.note_explicit_target(item)


class RuleLinks(SphinxTransform):
    """Link each name of a rule that stands in running text."""

    default_priority = 700

    def apply(self, **kwargs: object) -> None:
        rules: frozenset[str] = self.config.contract_rules
        for text in list(self.document.findall(nodes.Text)):
            if RULE.search(text) and not any(isinstance(parent, NOT_LINKED) for parent in _parents(text)):
                text.parent.replace(text, list(self._linked(str(text), rules)))

    def _linked(self, text: str, rules: frozenset[str]) -> Iterator[nodes.Node]:
        end = 0
        for match in RULE.finditer(text):
            if match[0] not in rules and match[0][0] in {rule[0] for rule in rules}:
                log.warning("the contract has no rule %s", match[0], location=self.env.docname)
            if match[0] in rules:
                yield nodes.Text(text[end : match.start()])
                yield self._link(match[0])
                end = match.end()
        yield nodes.Text(text[end:])

    def _link(self, rule: str) -> nodes.Node:
        target = f"rule-{rule.lower()}"
        where = {"refdoc": self.env.docname, "refdomain": "std", "reftype": "ref", "reftarget": target}
        return addnodes.pending_xref("", nodes.inline(rule, rule), refexplicit=True, refwarn=True, **where)


def _parents(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both transforms; Sphinx calls this."""
    contract = Path(app.srcdir, "contract.rst").read_text()
    rules = frozenset(re.findall(r"^- \*\*([A-Z][0-9]+)\*\*", contract, re.MULTILINE))
    app.add_config_value("contract_rules", rules, "env", frozenset)
    app.add_transform(RuleAnchors)
    app.add_transform(RuleLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
