"""Tables of words and numbers: as text, and as HTML where notebooks show it."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence

Row = Sequence[str]


def text(rows: Sequence[Row], *, words: Collection[int] = (0,)) -> str:
    """Rows as lines, columns aligned.

    Args:
        rows: All of one length, the heads of the columns first.
        words: The columns that hold words, which stand to the left; numbers
            stand to the right.

    Example:

    >>> print(text([("weight", "kept"), ("head", "7"), ("body/kernel", "12")]))
    weight       kept
    head            7
    body/kernel    12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in words else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def as_html(
    rows: Sequence[Row],
    *,
    caption: str = "",
    notes: Sequence[str] = (),
    words: Collection[int] = (0,),
    shares: Sequence[float] = (),
) -> str:
    """Rows as an HTML table, which notebooks show in place of a text.

    Args:
        rows: As for `text`.
        caption: Over the table.
        notes: Lines under it.
        words: As for `text`.
        shares: For each row behind the heads, in [0, 1]: how long a bar is
            that stands at its end; none at all if empty.

    Returns:
        A fragment that needs no style sheet, readable on light and dark.

    Example:

    >>> as_html([("weight",), ("a<b",)]).count("a&lt;b")
    1
    """
    lines = ["<table>"]
    if caption:
        lines.append(
            f'<caption style="text-align:left">{html.escape(caption)}</caption>'
        )
    for number, row in enumerate(rows):
        kind = "td" if number else "th"
        cells = [
            f'<{kind} style="text-align:{"left" if i in words else "right"}">'
            f"{html.escape(cell)}</{kind}>"
            for i, cell in enumerate(row)
        ]
        if shares:
            bar = (
                '<div style="background:#4c78a8;height:.7em;'
                f'width:{100 * shares[number - 1]:.2f}%"></div>'
                if number
                else ""
            )
            cells.append(f'<{kind} style="min-width:8em">{bar}</{kind}>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append("</table>")
    lines += [f"<div>{html.escape(note)}</div>" for note in notes if note]
    return "\n".join(lines)
