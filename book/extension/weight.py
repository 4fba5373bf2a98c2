"""Keeps pages light, and has each page say what it weighs.

The theme ships every icon of Font Awesome in one script of 1.5 MB, of which a site shows about a dozen: the others
are taken out once all pages are written. So are the scripts of search, with the words of the whole site, from every
page but that of search: the theme loads them for a search as one types, which is off here. A page's weight is that of
its file and of what it loads.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx

ICONS = "_static/scripts/fontawesome.js"
# one icon of the script: name:[width,height,[other names],"code","path"],
ICON = re.compile(r'("[^"]+"|[\w$]+):\[\d+,\d+,\[([^\]]*)\],"[^"]*",(?:"[^"]*"|\[[^\]]*\])\],?')
SEARCH = re.compile(r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js"></script>')
USED = re.compile(r"\bfa-([a-z0-9-]+)")
PLACE = '<span class="page-weight"></span>'
APART = "plotly.min.js"  # stored once, for all pages with a figure


def finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    pages = [path for path in site.rglob("*.html") if "_static" not in path.relative_to(site).parts]
    scripts = [path for path in (site / "_static").rglob("*.js") if path != site / ICONS]
    used = {name for path in [*pages, *scripts] for name in USED.findall(path.read_text(encoding="utf-8"))}
    if (site / ICONS).exists():
        (site / ICONS).write_text(without_icons((site / ICONS).read_text(encoding="utf-8"), used), encoding="utf-8")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        if PLACE in text:
            if page != site / "search.html":
                text = SEARCH.sub("", text)
                page.write_text(text, encoding="utf-8")
            page.write_text(text.replace(PLACE, PLACE.replace("><", f">{stated(page)}<")), encoding="utf-8")


def without_icons(script: str, used: set[str]) -> str:
    """Font Awesome's script with no icons but those of these names."""

    def keep(found: re.Match) -> str:
        names = {found[1].strip('"'), *re.findall(r'"([^"]+)"', found[2])}
        return found[0] if names & used else ""

    return ICON.sub(keep, script)


def stated(page: Path) -> str:
    """What a page weighs, in words."""
    loaded = loaded_by(page)
    weight = sum(path.stat().st_size for path in [page, *loaded] if path.name != APART)
    apart = sum(path.stat().st_size for path in loaded if path.name == APART)
    more = f", and {apart / 1e6:.1f} MB for the plots, loaded once" if apart else ""
    return f"This page weighs {weight / 1e6:.2f} MB{more}."


def loaded_by(page: Path) -> list[Path]:
    """The scripts, style sheets and pictures beside a page that it loads, and what its style sheets import."""
    reader = Loaded()
    reader.feed(page.read_text(encoding="utf-8"))
    found = []
    for address in reader.addresses:
        parts = urlsplit(address)
        path = (page.parent / unquote(parts.path)).resolve()
        if not parts.scheme and path.is_file() and path not in found:
            found.append(path)
            if path.suffix == ".css":
                imports = re.findall(r'@import "([^"]+)"', path.read_text(encoding="utf-8"))
                found += [(path.parent / name).resolve() for name in imports]
    return found


class Loaded(HTMLParser):
    """The addresses that a page loads by itself."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in ("script", "img"):
            self.addresses += [attributes.get("src") or ""]
        elif tag == "link" and (attributes.get("rel") or "") in ("stylesheet", "preload", "icon"):
            self.addresses += [attributes.get("href") or ""]


def setup(app: Sphinx) -> dict:
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
