r"""The report's tables as LaTeX that pastes into a draft: booktabs tables, text escaped.

A cell's further lines (intervals, the paper's figures) are stacked below its first by ``\shortstack``, which needs no
package; a draft needs ``\usepackage{booktabs}`` alone, in pdfLaTeX, XeLaTeX and LuaLaTeX.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ..layout.tables import Table

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


def latex_document(tables: Sequence[Table], head: Sequence[str]) -> str:
    """All tables, one after the other; the lines of ``head`` go before them as comments."""
    comments = [f"% {_line(line)}" for line in [*head, r"needs \usepackage{booktabs}"]]
    return "\n".join([*comments, "", *(latex_table(table, number) for number, table in enumerate(tables, 1))])


def latex_table(table: Table, number: int) -> str:
    """One ``table`` environment with caption, label ``tab:distil-cache-NUMBER``, the rows, and the note below."""
    columns = "".join("r" if place >= table.numeric_from else "l" for place in range(len(table.columns)))
    heads = [_cell(text, place >= table.numeric_from) for place, text in enumerate(table.columns)]
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
    for place, row in enumerate(table.rows):
        if table.sums and place == len(table.rows) - table.sums and place:
            lines.append(r"\midrule")
        lines.append(" & ".join(_cell(text, column >= table.numeric_from) for column, text in enumerate(row)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.note:
        lines += ["", r"\smallskip", rf"\parbox{{\linewidth}}{{\footnotesize {escaped(table.note)}}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def escaped(text: str) -> str:
    """Text that LaTeX sets as it is, on one line; control characters are left out."""
    return "".join(_SIGNS.get(sign, sign) for sign in _line(text))


def _cell(text: str, numeric: bool) -> str:
    r"""A cell of one line as it is; of several as a stack. Braces keep a ``[`` at its start from being an option of ``\\``."""
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
