"""Foreign text as a page shows it."""

import pytest
from markupsafe import Markup

from gym_bridge.viewer.shown import MAX_CHARACTERS, cut, one_line, plain, shown
from gym_bridge.viewer.templating import seconds, token


def mark(name: str) -> str:
    return f'<i class="mark">{name}</i>'


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a\n\tb", "a\n\tb"),
        ("\x1b[31mred", f"{mark('ESC')}[31mred"),
        ("a\u202eb\u2066c", f"a{mark('U+202E')}b{mark('U+2066')}c"),
        ("\u200b\ufeff\U000e0041", mark("U+200B") + mark("U+FEFF") + mark("U+E0041")),
        ("\ud83d", mark("U+D83D")),
        ("\x00\r", mark("NUL") + mark("CR")),
        ("👩\u200d👩 עברית ﷽", "👩\u200d👩 עברית ﷽"),
        ("\"'&", "&#34;&#39;&amp;"),
    ],
)
def test_nothing_of_a_text_is_markup_and_what_cannot_be_seen_has_a_mark(text: str, html: str):
    assert shown(text) == Markup(html)


def test_attributes_have_marks_without_markup():
    assert plain("a\u202eb\x1b") == "a[U+202E]b[ESC]"


def test_one_line_is_short_and_has_no_line_ends():
    assert one_line("a\n\n  b\tc") == "a b c"
    assert one_line("x" * 1000, 10) == "x" * 10 + "…"


def test_a_long_text_is_cut_and_says_by_how_much():
    assert cut("x" * (MAX_CHARACTERS + 7)).num_left_out == 7
    assert cut("x" * (MAX_CHARACTERS + 7), whole=True).num_left_out == 0
    assert cut("short").pieces == ["short"]


@pytest.mark.parametrize("text", ["x" * 70_001, "word " * 20_000, ("y" * 900 + "\n") * 99])
def test_a_whole_text_is_its_pieces(text: str):
    pieces = cut(text, whole=True).pieces
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= MAX_CHARACTERS
    assert len(pieces) <= 2 + len(text) * 2 // MAX_CHARACTERS
    assert {piece[-1] for piece in pieces[:-1]} == {text[-1]}


def test_tokens_show_their_line_ends_and_end_the_line():
    assert token("a\nb") == Markup(f"a{mark('↵')}\nb")
    assert token("\n\n") == Markup(f"{mark('↵')}\n{mark('↵')}\n")
    assert token("") == Markup(mark("·"))
    assert token("<b>") == Markup("&lt;b&gt;")


def test_seconds_read_as_people_say_them():
    assert [seconds(value) for value in (0.421, 12.3, 185, 7440)] == ["0.42 s", "12.3 s", "3 min 5 s", "2 h 4 min"]
