"""The pages of the documentation: each is in the site's navigation, and each link leads somewhere, on GitHub and on the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OTHERS = [*sorted(ROOT.glob("*.md")), ROOT / "tests" / "reference" / "README.md"]


class _Plain(yaml.SafeLoader):
    """Reads mkdocs.yml without calling the functions that it names."""


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def links(page: Path) -> Iterator[str]:
    """Yield the targets of links and images, those in HTML included."""
    for token in tokens(page):
        for inline in token.children or [token]:
            target = inline.attrs.get("href") or inline.attrs.get("src")
            if target:
                yield str(target)
            if inline.type in ("html_inline", "html_block"):
                yield from re.findall(r'\b(?:href|src)="([^"]*)"', inline.content)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, cut as GitHub and the site's slugify cut them."""
    found = set()
    parsed = tokens(page)
    for heading, inline in pairwise(parsed):
        if heading.type == "heading_open":
            text = "".join(child.content for child in inline.children or [])
            found.add(re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-"))
    return found


def named_by(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for one in nav if isinstance(nav, list) else nav.values():
            yield from named_by(one)


def test_the_navigation_names_every_page_once_and_no_other() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Plain)
    assert sorted(named_by(settings["nav"])) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in links(page):
        target = urlsplit(link)
        if target.scheme:
            assert target.scheme in ("https", "http", "mailto"), link
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", target.netloc), link
            continue
        file = (page.parent / target.path).resolve() if target.path else page
        assert file.exists(), f"{link}: no such file"
        assert file.is_relative_to(ROOT)
        if target.fragment:
            assert target.fragment in anchors(file), f"{link}: no such heading"
        if DOCS in page.parents:
            assert DOCS in file.parents, f"{link}: not a part of the site"
