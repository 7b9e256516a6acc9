"""Tables as text and as HTML."""

import html.parser

import numpy as np

import tf_tickets as tt
from tests.gallery import mlp
from tf_tickets import tables


class Cells(html.parser.HTMLParser):
    """The cells of a table, and whether every tag is closed."""

    def __init__(self, fragment):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(fragment)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


ROWS = [("weight", "kept"), ("<b>bold</b>", "7"), ("long/kernel", "12")]


def test_text_is_aligned_words_left_and_numbers_right():
    lines = tables.text(ROWS).splitlines()
    assert [line.index(cell) for line, (_, cell) in zip(
        lines, ROWS, strict=True)] == [13, 16, 15]  # fmt: skip
    assert len({len(line) for line in lines}) == 1


def test_html_has_every_cell_as_it_is():
    found = Cells(tables.as_html(ROWS, caption="a & b", notes=["<i>"]))
    assert [tuple(row) for row in found.rows] == ROWS
    assert not found.open


def test_a_notebook_shows_tickets_and_reports(tmp_path):
    model = mlp()
    ticket = tt.prune(model, 0.75)
    ticket.apply(model)
    rows = Cells(ticket._repr_html_()).rows
    for row, (key, mask) in zip(rows[1:], ticket.masks.items(), strict=False):
        assert row[0] == key and row[2] == f"{np.count_nonzero(mask):,}"
    assert rows[-1][3] == f"{ticket.density:.4f}"
    report = tt.export.saved_model(model, tmp_path / "out", format="packed")
    told = report.table()
    for row in Cells(report._repr_html_()).rows:
        assert any(
            all(cell in line for cell in row) for line in told.splitlines()
        )
