"""The HTML page, its figures and its pictures, from a made-up study."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import made_up
import matplotlib as mpl
import numpy as np
import pytest
from made_up import AT, FE, FT, HOSTILE, LPFT
from PIL import Image

from medtransfer.analysis.report import sheet
from medtransfer.analysis.report.blocks import figures_of
from medtransfer.analysis.report.html import page
from medtransfer.analysis.report.pictures import BYTES, WIDTH, embedded
from medtransfer.analysis.report.sections import sections
from medtransfer.analysis.report.write import read, write

IN_ORDER = (
    *("primary", "contrasts", "arms", "curves", "spread", "price", "calibration", "diagnostics"),
    *("subgroups", "external", "across", "worst", "tuning", "budget", "gaps", "failures"),
    *("waivers", "notes", "data", "environment", "method", "checklist"),
)
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section"),
    *("footer", "p", "a", "h1", "h2", "span", "strong", "small", "div", "dl", "dt", "dd", "ul"),
    *("li", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "wbr", "img"),
    *("svg", "g", "path", "use", "defs", "clippath", "rect", "text", "line"),
}


class Reader(HTMLParser):
    """What a browser would make of a page: tags, attributes, and text by section."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.sections = [], set(), [], {}
        self.at = None
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.at = dict(attributes)["id"]
            self.sections[self.at] = ""

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.at = None

    def handle_data(self, data):
        if self.at:
            self.sections[self.at] += data

    def values(self, name):
        return [value for _, each, value in self.attributes if each == name]


@pytest.fixture(scope="module")
def full():
    results, found = made_up.drawn()
    return results, found, page(results, found)


@pytest.fixture(scope="module")
def attacked():
    results, found = made_up.attacked()
    return found, page(results, found)


def test_every_section_is_there_and_in_order(full):
    results, found, text = full
    assert tuple(each.name for each in found) == IN_ORDER
    reader = Reader(text)
    assert tuple(reader.sections) == IN_ORDER
    links = [value for value in reader.values("href") if value.startswith("#")]
    assert {f"#{name}" for name in IN_ORDER} <= {*links}
    assert text.count("<h1") == 1
    assert results.headline in re.sub("<wbr>", "", text)


def test_what_a_study_lacks_is_not_there():
    results = made_up.bare()
    found = sections(results)
    assert [each.name for each in found] == [
        *("primary", "contrasts", "arms", "curves", "price", "method", "checklist")
    ]
    assert "None" not in re.sub("<style>.*</style>", "", page(results, found), flags=re.S)
    empty = replace(results, arms=(), contrasts=())
    assert [each.name for each in sections(empty)] == ["method", "checklist"]
    assert Reader(page(empty, sections(empty))).sections


def test_the_page_needs_nothing_else(full):
    reader = Reader(full[2])
    assert "http:" not in full[2]
    assert "https:" not in full[2]
    assert reader.tags <= TAGS
    for attribute in ("src", "href", "xlink:href"):
        assert all(value.startswith(("#", "data:")) for value in reader.values(attribute))
    assert "@import" not in full[2]
    assert not re.search(r"url\((?!#)", full[2])
    (policy,) = (v for v in reader.values("content") if "default-src" in v)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_names_from_outside_cannot_act(attacked):
    _, text = attacked
    reader = Reader(text)
    assert reader.tags <= TAGS
    assert "script" not in reader.tags
    assert not [each for each in reader.attributes if each[1].startswith("on")]
    assert "{{7*7}}" in text
    assert "\x1b" not in text
    told = "".join(reader.sections.values())
    assert "<script>alert(1)</script>" in told
    assert "$x^2$&amp;|`z`" in told


def test_names_from_outside_do_not_reach_the_paths(attacked):
    assert all(re.fullmatch("[a-z0-9-]+", each.name) for each in figures_of(attacked[0]))


def test_identifiers_are_unique_and_references_have_a_goal(full):
    reader = Reader(full[2])
    ids = reader.values("id")
    assert len(ids) == len({*ids})
    goals = {value[1:] for value in (*reader.values("href"), *reader.values("xlink:href"))}
    goals |= {*re.findall(r"url\(#([^)]+)\)", full[2])}
    assert goals <= {*ids}


def test_every_image_is_told_in_words(full):
    reader = Reader(full[2])
    told = [value for tag, name, value in reader.attributes if (tag, name) == ("div", "aria-label")]
    assert len(told) >= len(list(figures_of(full[1])))
    assert all(len(value) > 10 for value in told)
    assert any(FT in value and "+0.041" in value and "0.012 to 0.070" in value for value in told)


def test_equal_results_have_equal_bytes(full):
    again = sections(made_up.results())
    assert page(full[0], again) == full[2]
    assert [each.png for each in figures_of(again)] == [each.png for each in figures_of(full[1])]
    assert [each.svg for each in figures_of(again)] == [each.svg for each in figures_of(full[1])]


def test_figures_follow_the_theme_and_files_are_for_paper(full):
    figures = list(figures_of(full[1]))
    assert len({each.name for each in figures}) == len(figures) >= 20
    for each in figures:
        root = ET.fromstring(each.svg)
        assert root.get("width") == f"{sheet.WIDTH}"
        assert "white" in each.svg
        assert sheet.INK not in each.svg + each.inline
        assert "currentColor" in each.inline
        assert "currentColor" not in each.svg
        assert "white" not in each.inline
        assert Image.open(io.BytesIO(each.png)).width == 2 * sheet.WIDTH
        # at 390 px a page shows a figure at its own size
        sizes = [float(x) for x in re.findall(r"font-size: ([\d.]+)px", each.svg)]
        assert sizes
        assert min(sizes) >= 10


def test_a_file_has_the_legend_that_the_page_has_beside_its_figures(full):
    (curve,) = (each for each in figures_of(full[1]) if each.name.startswith("learning"))
    assert [key.name for key in curve.keys] == [FE, FT, LPFT]
    assert curve.svg.count("probe_then_fine_tune") == 1
    assert "probe_then_fine_tune" not in curve.inline
    assert LPFT in re.sub("<wbr>", "", full[2])


def test_no_text_of_a_figure_is_wider_than_the_figure(full):
    for each in figures_of(full[1]):
        for text in re.findall(r"<text[^>]*>([^<]*)</text>", each.svg):
            assert sheet._length(text, sheet.SIZE) <= sheet.WIDTH, text


def test_the_legend_tells_arms_apart():
    looks = [sheet.key(i, f"{i}") for i in range(40)]
    assert len({(each.colour, each.marker) for each in looks}) == 40
    assert len({each.colour for each in looks[:7]}) == 7
    assert sheet.key(3, "a") == sheet.key(3, "a")


def test_wrapping_loses_nothing():
    text = "probe_then_fine_tune/resnet50.a1_in1k/imagenet, layer-wise"
    lines = sheet.wrapped(text, 120)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(sheet._length(line, sheet.SIZE) <= 120 for line in lines)
    assert sheet.wrapped("x" * 60, 100)[0] == "x" * len(sheet.wrapped("x" * 60, 100)[0])
    assert len(sheet.wrapped("x" * 6000, 100)) == 6


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    before = dict(mpl.rcParams)
    with pytest.raises(RuntimeError), sheet.paper():
        raise RuntimeError
    assert dict(mpl.rcParams) == before


def test_many_arms_and_settings_are_drawn_in_part(full):
    results = made_up.large(settings=9, arms=22)
    found = {each.name: each for each in sections(results)}
    figures = list(figures_of(found.values()))
    assert len([each for each in figures if each.name.startswith("contrasts")]) == 6
    table = next(block for block in found["contrasts"].blocks if block.kind == "table")
    assert len(table.rows) == 150
    assert table.note == f"150 of {len(results.contrasts)} rows; all are in contrasts.csv"
    best = {row.axes["dataset"]: row.arm for row in reversed(results.arms)}
    assert all(best[row[2].removeprefix("dataset=")] in row[:2] for row in table.rows)
    assert "8 of 22 arms and 6 of 9 settings" in found["contrasts"].blocks[0].text


def test_the_primary_contrast_is_the_first(full):
    found = {each.name: each for each in full[1]}
    table = next(block for block in found["contrasts"].blocks if block.kind == "table")
    assert table.rows[0][:5] == (FT, FE, "dataset.fraction=1.0", "better", "primary")
    assert {row[4] for row in table.rows[1:]} == {"secondary"}
    forest = next(figures_of(full[1]))
    assert forest.title == "dataset.fraction=1.0"
    assert forest.svg.index("PRIMARY") < forest.svg.index("equivalent")


def test_a_worse_primary_contrast_reads_like_its_headline():
    full = made_up.results()
    turned = replace(full.primary, a=FE, b=FT, diff=-0.041, lo=-0.07, hi=-0.012, verdict="worse")
    contrasts = tuple(turned if each.primary else each for each in full.contrasts)
    results = replace(full, primary=turned, contrasts=contrasts)
    text = re.sub("<wbr>", "", page(results, ()))
    assert f"{FT} is better</span>" in text
    assert f"</strong> {FT} against {FE}: 12 times the training time" in text


def test_pictures_are_inside_and_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (900, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(noise[:50, :80]).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    given = {"noise.png": HOSTILE, "small.png": "b", "broken.png": "c", "absent.png": "d"}
    found = embedded(tmp_path, given)
    assert [each.told for each in found] == [HOSTILE, "b", "c", "d"]
    for each in found[:2]:
        content = base64.b64decode(each.data.removeprefix("data:image/jpeg;base64,"))
        assert len(content) <= BYTES
        assert Image.open(io.BytesIO(content)).width <= WIDTH
    assert Image.open(io.BytesIO(content)).size == (80, 50)
    assert [each.data for each in found[2:]] == ["", ""]
    reader = Reader(page(made_up.bare(), sections(made_up.bare(), found)))
    assert [value.partition(",")[0] for value in reader.values("src")] == 2 * [
        "data:image/jpeg;base64"
    ]
    assert "broken.png" in reader.sections["pictures"]


def test_the_files(tmp_path):
    def pictures(folder):
        Image.new("RGB", (40, 30)).save(folder / "cases.png")
        return {"cases.png": "an arm, seed 0"}

    results = made_up.results()
    paths = write(results, tmp_path, pictures)
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    assert names[:5] == [
        *("results.json", "results.csv", "contrasts.csv", "report.md", "report.html")
    ]
    assert all(path.stat().st_size for path in paths)
    there = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {*paths, tmp_path / "cases.png"}
    assert read(tmp_path / "results.json").details.setting == AT
    assert "data:image/jpeg" in (tmp_path / "report.html").read_text()
    text = (tmp_path / "report.md").read_text()
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert "cases.png" in linked
    assert all((tmp_path / name).is_file() for name in linked)
    assert len((tmp_path / "contrasts.csv").read_text().splitlines()) == 10
