r"""The report's tables as LaTeX to paste into a draft.

``\shortstack``, which needs no package, stacks the further lines of a cell (intervals, the paper's figures) below its
first. A draft needs only ``\usepackage{booktabs}``, in pdfLaTeX, XeLaTeX and LuaLaTeX.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ..inputs.provenance import summary_lines
from ..inputs.runs import Run
from ..layout.page import Addition
from ..layout.tables import Table
from .comparison import Comparison

_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "#": r"\#",
    "$": r"\$",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "\N{MINUS SIGN}": "$-$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}


def latex_text(
    comparisons: Sequence[Comparison],
    matrices: Sequence[Table],
    added: Sequence[Addition],
    created: str,
    runs: Sequence[Run],
) -> str:
    """Return all tables of the page as LaTeX."""
    tables = [*matrices, *(table for comparison in comparisons for table in comparison.tables)]
    tables += [section.table for addition in added for section in addition.sections if section.table]
    return latex_document(tables, [f"report of {created} by distil-cache", *summary_lines(runs)])


def latex_document(tables: Sequence[Table], head: Sequence[str]) -> str:
    """Return the tables one after the other, below the lines of ``head`` as comments."""
    comments = [f"% {_line(line)}" for line in [*head, r"needs \usepackage{booktabs}"]]
    return "\n".join([*comments, "", *(latex_table(table, number) for number, table in enumerate(tables, 1))])


def latex_table(table: Table, number: int) -> str:
    """Return a ``table`` environment with caption, label ``tab:distil-cache-NUMBER``, rows and note."""
    columns = "".join("r" if index >= table.numeric_from else "l" for index in range(len(table.columns)))
    heads = [_cell(text, index >= table.numeric_from) for index, text in enumerate(table.columns)]
    lines = [
        r"\begin{table}[htbp]",
        r"\centering",
        r"\small",
        rf"\caption{{{escaped(table.caption)}}}",
        rf"\label{{tab:distil-cache-{number}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
    ]
    for index, row in enumerate(table.rows):
        if table.sums and index == len(table.rows) - table.sums and index:
            lines.append(r"\midrule")
        lines.append(" & ".join(_cell(text, column >= table.numeric_from) for column, text in enumerate(row)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.note:
        lines += ["", r"\smallskip", rf"\parbox{{\linewidth}}{{\footnotesize {escaped(table.note)}}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def escaped(text: str) -> str:
    """Escape text for LaTeX, on one line and without control characters."""
    return "".join(_SIGNS.get(sign, sign) for sign in _line(text))


def _cell(text: str, numeric: bool) -> str:
    r"""Set a cell, its lines stacked. Braces keep a leading ``[`` from being read as an option of ``\\``."""
    first, *others = text.split("\n")
    if not others:
        return f"{{{escaped(first)}}}"
    stack = [escaped(first), *(rf"{{\scriptsize {escaped(line)}}}" for line in others)]
    side, stacked = "r" if numeric else "l", r"\\ ".join(stack)
    return rf"\shortstack[{side}]{{{stacked}}}"


def _line(text: str) -> str:
    kept = "".join(" " if sign in "\n\r\t" else sign for sign in text)
    kept = "".join(sign for sign in kept if unicodedata.category(sign) not in ("Cc", "Cf", "Zl", "Zp"))
    return re.sub(" +", " ", kept)
