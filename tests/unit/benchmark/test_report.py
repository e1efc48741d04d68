"""What a run leaves behind: tables, pictures, samples, and the pages that show them."""

from __future__ import annotations

from xml.etree import ElementTree

import orjson
import pytest

from benchmark.goals import Verdict
from benchmark.pictures import PICTURES, draw
from benchmark.report import fill, markdown, publish, write
from benchmark.results import Metric, Results, figure
from benchmark.ways import Way
from tests.support.service import ROOT

MACHINE = {
    "when": "2026-01-01 00:00 UTC",
    "commit": "abc",
    "processor": "some",
    "cores": 2,
    "memory_gb": 4,
    "kernel": "6",
    "python": "3.11",
    "congestion": "cubic",
    "load_before": 0.1,
    "tools": ["wrk 4"],
}
WAYS = [Way("ours", "tunneltcp", "defaults"), Way("frp", "frp <&>", "defaults")]
VERDICTS = [
    Verdict(text="one", figure="2 times", is_met=True),
    Verdict(text="two", figure="1 times", is_met=False),
    Verdict(text="three", figure="not measured", is_met=None),
]


@pytest.fixture
def results():
    found = Results()
    rate = Metric(row=1, key="1.c32.rate", title="requests/s", unit="1/s")
    for value in (10_000.0, 12_000.0, 11_000.0):
        found.add(rate, "ours", value)
    found.add(rate, "frp", 22_000.0)
    alone = Metric(row=9, key="9.start1", title="start", unit="s", is_lower_better=True)
    found.add(alone, "ours", 0.5)
    found.note("chisel is left out: it is not installed.")
    return found


def test_the_tables_say_medians_spreads_and_what_is_missing(results):
    text = markdown(results, WAYS, VERDICTS, MACHINE)
    assert "| requests/s (1/s) | **11,000 <sub>10,000 to 12,000</sub>** | 22,000 |" in text
    assert "### 9. Start-up\n\n| | tunneltcp |" in text, "a way without figures has no column"
    assert "| two | 1 times | **no** |" in text
    assert "- row 1, requests/s: frp 22,000 1/s, ours 11,000" in text
    assert "- chisel is left out" in text


def test_everything_is_written(results, tmp_path):
    (tmp_path / "old.svg").write_text("of an earlier run")
    text = write(tmp_path, results, WAYS, VERDICTS, MACHINE)
    assert (tmp_path / "table.md").read_text() == text
    answer = orjson.loads((tmp_path / "results.json").read_bytes())
    assert answer["metrics"][0]["samples"]["ours"] == [10_000.0, 12_000.0, 11_000.0]
    assert [one["met"] for one in answer["verdicts"]] == [True, False, None]
    assert answer["ways"]["frp"]["settings"] == "defaults"
    assert [path.name for path in tmp_path.glob("*.svg")] == ["requests.svg"]


def test_a_picture_is_an_svg_whose_longest_bar_is_the_largest_figure(results):
    drawn = draw(PICTURES[0], results, {way.key: way.name for way in WAYS})
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    bars = [float(one.get("width", "0")) for one in root.iter(f"{space}rect")][1:]
    assert len(bars) == 2
    assert bars[1] == pytest.approx(2 * bars[0], rel=0.01)
    assert "frp <&>" in {one.text for one in root.iter(f"{space}text")}


def test_a_picture_of_nothing_is_none():
    assert draw(PICTURES[0], Results(), {"ours": "tunneltcp"}) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.0123"), (1.234, "1.23"), (99.94, "99.9"), (12_345.6, "12,346")],
)
def test_a_figure_has_three_digits_that_mean_something(value, text):
    assert figure(value) == text


def test_only_what_is_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nb\n")
    for _ in range(2):
        fill(page, "new")
        assert page.read_text() == "a\n<!-- bench: begin -->\nnew\n<!-- bench: end -->\nb\n"


def test_the_real_pages_can_be_published(results, tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("docs/BENCHMARKS.md", "README.md"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    out = tmp_path / "out"
    publish_text = write(out, results, WAYS, VERDICTS, MACHINE)
    publish(out, publish_text, tmp_path)
    shown = "![Requests per second through a tunnel]"
    assert f"{shown}(docs/benchmarks/requests.svg)" in (tmp_path / "README.md").read_text()
    page = (tmp_path / "docs/BENCHMARKS.md").read_text()
    assert f"{shown}(benchmarks/requests.svg)" in page
    assert "| requests/s (1/s) |" in page
    assert (tmp_path / "docs/benchmarks/requests.svg").exists()
    assert (tmp_path / "docs/benchmarks/results.json").exists()
