"""The last touch on a page's HTML: contents, captions with links to the data, tables that sort and scroll."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bs4 import BeautifulSoup, Tag

from fcs_utils.study.records import Store

NUMBER = re.compile(r"^[+\-\N{MINUS SIGN}]?\d[\d,]*\.?\d*")


def polish(body: str, store: Store, up: str, figures: Mapping[str, str]) -> tuple[str, list[tuple[str, str]]]:
    """A page's body made whole, and its contents as (anchor, heading).

    up: the way from the page to the results folder. figures: names of kept figures by their alternative text.
    """
    soup = BeautifulSoup(body, "html.parser")
    for anchor in soup.select("a.anchor-link"):
        anchor.decompose()
    for table in soup.find_all("table"):
        _sortable(soup, table)
    for equation in soup.select('math[display="block"]'):
        _scrolling(soup, equation, "equation")
    for image in soup.find_all("img"):
        name = figures.get(str(image.get("alt", "")))
        if name and image.find_parent("figure") is None:
            _caption(soup, image, store, up, name)
    listed = contents(soup)  # gives headings their anchors
    return str(soup), listed


def contents(soup: BeautifulSoup) -> list[tuple[str, str]]:
    """The second-level headings, each with an anchor; those without get one."""
    found = []
    for heading in soup.find_all("h2"):
        text = heading.get_text(" ", strip=True)
        heading["id"] = heading.get("id") or re.sub(r"\W+", "-", text).strip("-")
        found.append((str(heading["id"]), text))
    return found


def _sortable(soup: BeautifulSoup, table: Tag) -> None:
    if table.thead is not None and table.thead.find("th") is not None:
        table["class"] = "sortable"
        for cell in table.select("tbody td"):
            # '98.65 +- 0.40' and '+1.2 points' sort by their number.
            if " ± " in cell.get_text():
                cell["class"] = "whole"
            if (number := NUMBER.match(cell.get_text(strip=True))) and number[0] != cell.get_text(strip=True):
                cell["data-sort"] = number[0].replace(",", "").replace("\N{MINUS SIGN}", "-")
    _scrolling(soup, table, "table")


def _scrolling(soup: BeautifulSoup, wide: Tag, what: str) -> None:
    """Lets what is wider than a phone scroll by itself, with a finger or the keyboard."""
    wide.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "region", "aria-label": what}))


def _caption(soup: BeautifulSoup, image: Tag, store: Store, up: str, name: str) -> None:
    figure = image.wrap(soup.new_tag("figure"))
    caption = soup.new_tag("figcaption")
    caption.append(f"{image['alt']} ")
    for place, title in figure_links(store, name):
        link = soup.new_tag("a", href=up + place)
        link.string = title
        caption.append(link)
        caption.append(" ")
    figure.append(caption)


def figure_links(store: Store, name: str) -> list[tuple[str, str]]:
    """What there is of a figure, from the results folder: the picture to scale, and the numbers behind it."""
    places = [(store.figure(name, "svg"), "SVG"), (store.figure(name, "png"), "PNG"), (store.figure(name, "csv"), "data")]
    return [(path.relative_to(store.root).as_posix(), title) for path, title in places if path.exists()]
