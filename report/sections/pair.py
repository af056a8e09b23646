"""The table of ``report --compare A B``: every measure of both sides and their difference."""

from __future__ import annotations

from ..inputs.runs import SETTING
from ..layout.page import Addition, Section
from ..layout.tables import Table, pair_table
from ..output.report_json import methods_content
from ..verdict import Pair
from ..wording import protocol_title


def pair_addition(pair: Pair) -> Addition:
    """Show two sides and their difference, on each generator and in the mean."""
    dataset, _, *protocol = pair.setting
    title = f"{pair.first} against {pair.second}: {dataset}, {protocol_title(*protocol)}"
    table: Table = pair_table(title, pair.first, pair.second, pair.contrast)
    content = {"setting": dict(zip(SETTING, pair.setting, strict=True)), **methods_content(pair.contrast)}
    return Addition("compared", [Section(f"{pair.first} against {pair.second}", "", table)], content)
