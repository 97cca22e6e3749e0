import pytest

from stagebeam.evaluation.tables import Table, escape, fenced, markdown

HOSTILE = "a | b\n# c <script> `d` [e](f) *g*"


def test_a_table_is_one_line_a_row_with_its_note():
    table = Table("Title", ("A", "B"), (("1", "2"), ("3", "4")), "How to read it.")
    assert markdown(table) == (
        "## Title\n\n| A | B |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\nHow to read it.\n"
    )


def test_what_a_cell_says_is_never_markup():
    (line,) = markdown(Table("T", ("A",), ((HOSTILE,),))).splitlines()[4:]
    assert line == "| a \\| b \\# c \\<script\\> \\`d\\` \\[e\\](f) \\*g\\* |"
    assert escape("1.5 to 2") == "1.5 to 2"


def test_a_row_must_fit_its_columns():
    with pytest.raises(AssertionError, match="Title"):
        Table("Title", ("A", "B"), (("1",),))


def test_no_text_can_close_its_block():
    block = fenced("x\n````\ny\n", "yaml")
    assert block == "`````yaml\nx\n````\ny\n`````\n"
    assert fenced("plain") == "```\nplain\n```\n"
