"""Names from outside stay names: in a terminal, a page, a table, a path."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest
import yaml

SCRIPT = "<script>alert(1)</script>"
FORMULA = "=cmd|' /C calc'!A0"
CLIMBS = "../../../escaped"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202edoog\r\nerror: forged"
MARKUP = "[link=http://evil.example]click[/link] [bold]x"
LINK = "![x](http://evil.example/x.png) [y](javascript:alert(1)) `z` | a | # h"
ARMS = (SCRIPT, FORMULA, CLIMBS, ESCAPES, MARKUP, LINK)
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Page(HTMLParser):
    """Collects what a page would open or run."""

    def __init__(self):
        super().__init__()
        self.links = []

    def handle_starttag(self, _, attrs):
        acts = {"href", "xlink:href", "src", "srcset", "action", "style", "srcdoc"}
        self.links += [v for k, v in attrs if v and (k in acts or k.startswith("on"))]


def links_in(text):
    page = Page()
    page.feed(text)
    assert page.links
    return page.links


@pytest.fixture
def done(cli, home, tiny, tmp_path):
    """Run a study of hostile names, and return what it showed and the folder of its report."""
    study = {
        "study": {
            "name": f"{CLIMBS} {SCRIPT}",
            "arms": {name: [f"optimizer.lr={i + 1}e-3"] for i, name in enumerate(ARMS)},
            "seeds": [0],
        }
    }
    folder = tmp_path / "own"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "evil.yaml").write_text(
        "# @package _global_\n# Mine.\n" + yaml.safe_dump(study)
    )
    (folder / "loss").mkdir()
    (folder / "loss" / "evil.yaml").write_text(f"# {ESCAPES} {MARKUP}\n")
    small = (*tiny, "trainer.max_epochs=1", "trainer.max_steps=1", "hydra/sweeper=study")
    result = cli("train", "-m", "--config-dir", folder, "experiment=evil", *small)
    assert result.code == 0, result
    listed = cli("list", "loss", "--config-dir", folder)
    assert listed.code == 0
    (report,) = (home / "reports").iterdir()
    return result.out + result.err + listed.out, report


def test_a_study_of_hostile_names_is_told_and_written_as_text(done, home, tmp_path):
    text, report = done
    assert not CONTROLS.search(text)
    assert "\nerror: forged" not in text
    assert "[bold]x" in text

    page = (report / "report.html").read_text()
    assert SCRIPT not in page
    assert not [place for place in links_in(page) if re.search("javascript|evil|^=", place)]

    plain = (report / "report.md").read_text()
    assert SCRIPT not in plain
    assert "](http" not in plain
    assert not CONTROLS.search(plain)

    for name in ("results.csv", "contrasts.csv"):
        with (report / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell[:1] in {*"=+@\t\r"}]
    told = json.loads((report / "results.json").read_text())
    assert FORMULA in {row["arm"] for row in told["arms"]}

    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert written == {"home", "own"}
    assert not list(tmp_path.parent.glob("*escaped*"))
    assert not [path for path in home.rglob("*") if CONTROLS.search(path.name)]
