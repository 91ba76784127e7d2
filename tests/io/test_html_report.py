import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.io.charts import Bars
from gym_bridge.io.html_report import Charts, Curve, Notes, Share, Table, Tiles, render_page, render_sections

HOSTILE = """</title></svg><script>alert("1")</script><img src=x onerror='steal()'> & \x00\x1b\ud800"""


def page_of(curve):
    return ET.fromstring(render_page("title", "subtitle", [], [curve], []))


def drawing_of(points, **labels):
    return page_of(Curve("Reward", "reward", points, **labels)).find(".//svg")


def line_of(drawing):
    """The runs of the line, each a list of the places it joins."""
    runs = drawing.find("path[@class='line']").get("d").split("M")[1:]
    return [[tuple(map(float, place.split(","))) for place in run.replace("L", "").split()] for run in runs]


def tick_labels(drawing, anchor):
    return [one.text for one in drawing.iter("text") if one.get("text-anchor") == anchor and one.get("class") != "axis"]


def test_the_page_is_well_formed_and_asks_for_nothing_outside():
    page = render_page("Quickstart", "one run", [Table("T", ["a"], [[1]])], [Curve("C", "y", [(0, 1.0), (1, 2.0)])], ["a note"])
    assert page.startswith("<!DOCTYPE html>\n")
    root = ET.fromstring(page)
    assert {"script", "link", "img", "iframe"}.isdisjoint(one.tag for one in root.iter())
    assert not re.search(r"https?:|url\(|@import|src=|href=", page)
    assert root.find(".//h1").text == root.find("head/title").text == "Quickstart"
    assert [one.text for one in root.iter("li")] == ["a note"]
    assert "prefers-color-scheme: dark" in page


def test_a_page_of_nothing_is_its_title():
    body = ET.fromstring(render_page("Empty", "", [], [], [])).find("body/main")
    assert [one.tag for one in body] == ["header"]


def test_hostile_text_stays_text_everywhere():
    table, curve = Table(HOSTILE, [HOSTILE], [[HOSTILE]]), Curve(HOSTILE, HOSTILE, [(0, 1.0)], HOSTILE)
    page = render_page(HOSTILE, HOSTILE, [table], [curve], [HOSTILE])
    page.encode("utf-8")
    root = ET.fromstring(page)
    assert {"script", "img"}.isdisjoint(one.tag for one in root.iter())
    shown = HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
    for path in (
        "head/title",
        ".//h1",
        ".//header/p",
        ".//caption",
        ".//th",
        ".//td",
        ".//h2",
        ".//li",
        ".//svg/text[@class='axis']",
    ):
        assert root.find(path).text == shown
    assert root.find(".//svg").get("aria-label") == f"{shown}: {shown} against {shown}"


@given(st.text())
def test_any_text_makes_a_page_that_parses(text):
    ET.fromstring(render_page(text, text, [Table(text, [text], [[text]])], [Curve(text, text, [(1, 1)], text)], [text]))


def test_a_line_runs_from_edge_to_edge_with_larger_values_higher():
    [line] = line_of(drawing_of([(0, 0.0), (10, 0.5), (20, 1.0)]))
    # Twice the first place, for the round cap; the plotting area is 70 to 548 across and 212 to 12 upwards.
    assert [x for x, _ in line] == [70, 70, 309, 548]
    # The values 0 to 1 fill 1 / 1.12 of the 200 pixels of height.
    assert [y for _, y in line] == pytest.approx([112 + 100 / 1.12, 112 + 100 / 1.12, 112, 112 - 100 / 1.12], abs=0.006)


@pytest.mark.parametrize(
    ("points", "x_labels", "y_labels"),
    [
        ([(0, 0.1), (3, 0.9)], ["0", "1", "2", "3"], ["0.2", "0.4", "0.6", "0.8"]),
        ([(0, 0.0), (50, 1.0)], ["0", "10", "20", "30", "40", "50"], ["0", "1"]),
        ([(0, -0.02), (5000, 0.031)], ["0", "1,000", "2,000", "3,000", "4,000", "5,000"], ["-0.02", "0.00", "0.02"]),
        ([(1, 5.0)], ["1"], ["4", "6"]),
        ([(0, 8.1e9), (1, 8.12e9)], ["0", "1"], ["8.100e9", "8.105e9", "8.110e9", "8.115e9", "8.120e9"]),
        ([(0, 0.0), (1, 1e-6)], ["0", "1"], ["0", "5.0e-7", "1.0e-6"]),
    ],
)
def test_ticks_are_round_and_told_apart(points, x_labels, y_labels):
    drawing = drawing_of(points)
    assert tick_labels(drawing, "middle") == x_labels
    assert tick_labels(drawing, "end") == y_labels


def test_long_tick_labels_are_narrowed_to_their_place():
    drawing = drawing_of([(0, 8.1e9), (1, 8.10001e9)])
    widths = {one.text: one.get("textLength") for one in drawing.iter("text")}
    assert widths["8.100005e9"] == "48"
    assert widths["1"] is None


def test_points_that_are_not_finite_break_the_line_and_are_counted():
    page = page_of(Curve("Loss", "loss", [(0, 1.0), (1, math.nan), (2, 3.0), (3, 2.0), (math.inf, 1.0), (5, -math.inf)]))
    assert [len(run) for run in line_of(page.find(".//svg"))] == [2, 3]
    assert page.find(".//figcaption").text == (
        "3 points; lowest 1, highest 3, last 2; 3 not drawn: not a finite number, or beyond 1e+100."
    )


def test_a_curve_without_a_finite_point_says_so():
    page = page_of(Curve("Loss", "loss", [(0, math.nan)]))
    assert page.find(".//svg") is None
    assert page.find(".//figure/p").text == "Nothing to draw"
    assert page.find(".//figcaption").text.startswith("0 points; 1 not drawn")


def test_every_point_of_a_short_curve_tells_its_numbers():
    drawing = drawing_of([(1, 0.25), (2000, 0.123456)], x_label="rollout")
    assert [one.text for one in drawing.iter("title")] == ["rollout 1: reward 0.25", "rollout 2,000: reward 0.1235"]
    assert drawing.get("role") == "img"


def test_a_long_curve_is_drawn_whole_with_a_bounded_number_of_tooltips():
    drawing = drawing_of([(step, step % 7) for step in range(10_000)])
    [line] = line_of(drawing)
    dots = list(drawing.iter("circle"))
    assert len(line) == 10_001
    assert len(dots) <= 241
    assert dots[-1].find("title").text == "step 9,999: reward 3"
    assert [one.get("class") for one in dots[-2:]] == ["dot faint", "dot"]


@given(st.lists(st.tuples(st.floats(), st.floats()), min_size=1, max_size=20))
def test_whatever_the_numbers_the_drawing_stays_within_its_area(points):
    drawing = drawing_of(points)
    if drawing is None:
        assert not any(abs(x) <= 1e100 and abs(y) <= 1e100 for x, y in points)
        return
    for x, y in (place for run in line_of(drawing) for place in run):
        assert 70 <= x <= 548
        assert 12 <= y <= 212
    for labels in (tick_labels(drawing, "middle"), tick_labels(drawing, "end")):
        assert 1 <= len(labels) <= 8
        assert len(set(labels)) == len(labels)


def test_tables_align_numbers_and_keep_text():
    root = ET.fromstring(
        render_page("t", "s", [Table("Runs", ["run", "tasks", "reward"], [["a", 12345, 0.123456], ["b", None, 1.0]])], [], [])
    )
    assert [one.get("class") for one in root.iter("th")] == [None, "number", "number"]
    assert [one.text for one in root.iter("td")] == ["a", "12,345", "0.1235", "b", "–", "1"]
    assert [one.get("class") for one in root.iter("td")] == [None, "number", "number", None, "number", "number"]


def test_a_row_that_does_not_fit_its_header_is_refused():
    with pytest.raises(ValueError, match="zip"):
        render_page("t", "s", [Table("Runs", ["run", "tasks"], [["a"]])], [], [])


def sections_page(*sections):
    return ET.fromstring(render_sections("title", "subtitle", sections))


def bars_of(counts, *, edges=(0.0, 0.5, 1.0), **more):
    bars = Bars(title="Rewards", x_label="reward", y_label="rollouts", edges=edges, counts=counts, **more)
    return sections_page(Charts([bars])).find(".//figure")


def rectangles(figure):
    return [(one.get("class"), *(float(one.get(name)) for name in ("x", "y", "width", "height"))) for one in figure.iter("rect")]


def test_the_bars_of_a_histogram_stand_on_the_axis_side_by_side():
    drawn = rectangles(bars_of([2, 4]))
    # The plotting area is 70 to 548 across; 4 of 4.2 fill 1 / 1.05 of its 200 pixels of height; a pixel is left at either side.
    assert [place[:2] + place[3:4] for place in drawn] == [("bar", 71, 237), ("bar", 310, 237)]
    assert [place[4] for place in drawn] == pytest.approx([100 / 1.05, 200 / 1.05], abs=0.006)
    assert [place[2] + place[4] for place in drawn] == pytest.approx([212, 212], abs=0.011)


def test_a_part_stands_before_its_whole_and_both_are_told():
    figure = bars_of([4, 2], part=[1, 2], legend=("read", "used"), headline="median 1", caption="All of them.")
    assert [place[0] for place in rectangles(figure)] == ["bar soft", "bar", "bar"]
    assert [one.text for one in figure.iter("title")] == ["reward 0 to 0.5: 4, used 1", "reward 0.5 to 1: 2, used 2"]
    assert [one.tail for one in figure.iter("span") if one.get("class") != "last"] == ["read", "used"]
    assert (figure.find(".//span[@class='last']").text, figure.find("figcaption").text) == ("median 1", "All of them.")


def test_whole_numbers_are_marked_and_told_as_such_and_what_lies_beyond_has_a_bar_of_its_own():
    figure = bars_of([1, 2, 3, 7], edges=(0.5, 1.5, 2.5, 3.5), whole=True)
    assert [one.text for one in figure.iter("title")] == ["reward 1: 1", "reward 2: 2", "reward 3: 3", "reward 4 and more: 7"]
    assert tick_labels(figure.find("svg"), "middle") == ["1", "2", "3", "more"]
    assert [one.text for one in bars_of([1, 1], edges=(0, 100, 200), whole=True).iter("title")] == [
        "reward 0 to 99: 1",
        "reward 100 to 199: 1",
    ]
    right_ends = [x + width for _, x, _, width, _ in rectangles(figure)]
    # Without the 52 pixels for what lies beyond, 142 are left for each of the three; a pixel is left free.
    assert right_ends == [211, 353, 495, 547]


def test_a_histogram_of_nothing_says_so():
    figure = bars_of([0, 0])
    assert (figure.find("svg"), figure.find("p").text) == (None, "Nothing to draw")


def test_sections_stand_in_their_order_and_empty_ones_are_left_out():
    page = sections_page(
        Tiles([("rows", "1,234")]), Notes("Why", ["because"]), Charts([]), Notes("Nothing", []), Table("T", ["a"], [])
    )
    assert [one.get("class") for one in page.findall("body/main/section")] == ["tiles", None, "card scroll"]
    assert (page.find(".//b").text, page.find(".//div/span").text, page.find(".//li").text) == ("1,234", "rows", "because")


def test_a_share_is_a_bar_and_a_number():
    page = sections_page(Table("T", ["share"], [[Share(0.25)]]))
    assert [float(one.get("width")) for one in page.iter("rect")] == [60, 15]
    assert "".join(page.find(".//td").itertext()) == "25.0 %"


@given(st.text())
def test_any_text_in_any_section_makes_a_page_that_parses(text):
    bars = Bars(
        title=text, x_label=text, y_label=text, edges=[0, 1], counts=[1], part=[1], legend=(text, text), headline=text, caption=text
    )
    sections_page(Tiles([(text, text)]), Notes(text, [text]), Charts([bars]), Table(text, [text], [[Share(0.5)]]))
