"""The documentation builds without a warning, hangs together, and loads nothing from elsewhere."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONF = ROOT / "conf"


class Page(HTMLParser):
    """What a page refers to.

    Attributes:
        ids: What can be linked to.
        links: What it links to.
        loads: What a browser fetches to show it.
        headings: The text of each heading.
    """

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.headings = set(), [], [], []
        self.open = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        self.loads += [found[key] for key in ("src", "srcset", "data", "poster") if found.get(key)]
        if tag == "link" and found.get("href"):
            self.loads.append(found["href"])
        if re.fullmatch("h[1-6]", tag):
            self.open = True
            self.headings.append("")

    def handle_endtag(self, tag):
        self.open = self.open and not re.fullmatch("h[1-6]", tag)

    def handle_data(self, data):
        if self.open:
            self.headings[-1] += data


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Build the site once, whichever process comes first, and return its folder."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    source, out = shared / "site" / "docs", shared / "site" / "html"
    with FileLock(shared / "site.lock"):
        if not source.exists():
            # a copy, since pages are made beside those that are written
            kept = shutil.ignore_patterns("_build", "config", "jupyter_execute", "__pycache__")
            shutil.copytree(DOCS, source, ignore=kept)
            command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
            done = subprocess.run(
                [*command, "-d", out.parent / "doctrees", source, out],
                env={**os.environ, "http_proxy": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            (shared / "site" / "log").write_text(done.stdout + done.stderr)
            (shared / "site" / "code").write_text(str(done.returncode))
    return shared / "site"


@pytest.fixture(scope="session")
def html(site):
    """Return the pages by their path from the root of the site."""
    folder = site / "html"
    return {path.relative_to(folder): Page(path) for path in folder.rglob("*.html")}


def test_it_builds_without_a_warning(site):
    assert (site / "code").read_text() == "0", (site / "log").read_text()[-4000:]


def test_every_page_is_reached_from_the_first(site):
    environment = pickle.loads((site / "doctrees" / "environment.pickle").read_bytes())
    reached, ahead = set(), ["index"]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += environment.toctree_includes.get(name, [])
    kept = (DOCS / "_build", DOCS / "reference" / "config", DOCS / "jupyter_execute")
    written = {
        path.relative_to(DOCS).with_suffix("").as_posix()
        for path in [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
        if not any(path.is_relative_to(folder) for folder in kept)
        and ".ipynb_checkpoints" not in path.parts
    }
    assert reached == set(environment.found_docs)
    assert written <= reached


def test_every_link_inside_leads_somewhere(site, html):
    dead = []
    for path, page in html.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path
            if parts.path:
                full = os.path.normpath(path.parent / unquote(parts.path))
                target = Path(full)
            if target not in html:
                if not (site / "html" / target).is_file():
                    dead.append(f"{path}: {link}")
            elif parts.fragment and unquote(parts.fragment) not in html[target].ids:
                dead.append(f"{path}: {link}")
    assert not dead, "\n".join(dead)


def test_nothing_is_loaded_from_elsewhere(site, html):
    for path, page in html.items():
        strange = [each for each in page.loads if urlsplit(each).netloc]
        assert not strange, f"{path}: {strange}"
        for each in page.loads:
            if not each.startswith(("data:", "#")) and not each.endswith(".html"):
                file = site / "html" / path.parent / unquote(urlsplit(each).path)
                assert file.is_file(), f"{path}: {each}"
    for style in (site / "html").rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", text), style


def test_every_choice_is_in_the_reference(html):
    groups = {}
    for path in CONF.rglob("*.yaml"):
        group = path.parent.relative_to(CONF).as_posix()
        if group not in {".", "common"}:
            groups.setdefault(group, set()).add(f"{group}={path.stem}")
    index = html[Path("reference/config/index.html")]
    for group, choices in groups.items():
        name = f"{group.replace('/', '-')}.html"
        assert name in index.links
        page = html[Path("reference/config", name)]
        assert choices <= {heading.rstrip("¶#") for heading in page.headings}


def test_every_key_of_a_choice_is_in_the_reference(site):
    import yaml

    text = (site / "html/reference/config/strategy.html").read_text(encoding="utf-8")
    for path in (CONF / "strategy").glob("*.yaml"):
        for key in yaml.safe_load(path.read_text()):
            assert key == "_target_" or f"strategy.{key}" in text


def test_every_command_has_a_section_with_what_help_prints(html, site):
    from medtransfer.cli import _parser

    (commands,) = [a.choices for a in _parser()._actions if isinstance(a.choices, dict)]
    page = html[Path("reference/commands.html")]
    headings = {heading.rstrip("¶#") for heading in page.headings}
    assert {f"medtransfer {name}" for name in commands} <= headings
    text = (site / "html" / "reference" / "commands.html").read_text(encoding="utf-8")
    for name in commands:
        assert f"usage: medtransfer {name}" in text
