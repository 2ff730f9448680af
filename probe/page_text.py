"""How a report is written down: sections of sentences, tables and pictures as HTML or Markdown.

Everything that comes from data is escaped here, and only here.
"""

import base64
import html
from typing import NamedTuple

import plotly.graph_objects as go


class Table(NamedTuple):
    """Title, head and rows of plain text."""

    title: str
    head: list[str]
    rows: list[list[str]]


class Picture(NamedTuple):
    """Name of its file, what is to be seen, its pixels, and for the page a live figure."""

    name: str
    caption: str
    png: bytes | None
    live: go.Figure | None = None


class Section(NamedTuple):
    title: str
    sentences: list[str]
    parts: list[Table | Picture]


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0 1.5rem; }
th, td { border: 1px solid #ddd; padding: .2rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; } img { max-width: 100%; }
figcaption { color: #555; font-size: .9rem; } li { margin: .3rem 0; }
"""


def as_html(name: str, sections: list[Section]) -> str:
    """One page with everything in it: opens without a network."""
    from plotly.offline import get_plotlyjs

    title = html.escape(f"Geometry by depth: {name}")
    body = [f"<h1>{title}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.sentences:
            items = "".join(f"<li>{html.escape(one)}</li>" for one in section.sentences)
            body.append(f"<ul>{items}</ul>")
        for part in section.parts:
            body.append(_html_table(part) if isinstance(part, Table) else _html_picture(part))
    script = f"<script>{get_plotlyjs()}</script>"
    live = any(isinstance(p, Picture) and p.live is not None for s in sections for p in s.parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style>{script if live else ''}</head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    title = f"<caption>{html.escape(table.title)}</caption>" if table.title else ""
    return f'<div class="wide"><table>{title}<tr>{head}</tr>{rows}</table></div>'


def _html_picture(picture: Picture) -> str:
    caption = html.escape(picture.caption)
    if picture.live is not None:
        shown = picture.live.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"figure-{picture.name}",
            auto_play=False,
        )
    else:
        assert picture.png is not None
        data = base64.b64encode(picture.png).decode("ascii")
        shown = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def as_markdown(name: str, sections: list[Section]) -> str:
    """The same, with the pictures as files in report/."""
    lines = [f"# Geometry by depth: {_plain(name)}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        if section.sentences:
            lines += [*(f"- {_plain(one)}" for one in section.sentences), ""]
        for part in section.parts:
            lines += _md_table(part) if isinstance(part, Table) else _md_picture(part)
    return "\n".join(lines).rstrip() + "\n"


def _md_table(table: Table) -> list[str]:
    head = [f"**{_plain(table.title)}**", ""] if table.title else []
    rows = [table.head, ["---"] * len(table.head), *table.rows]
    cells = [["---" if cell == "---" else _plain(cell) for cell in row] for row in rows]
    return [*head, *("| " + " | ".join(row) + " |" for row in cells), ""]


def _md_picture(picture: Picture) -> list[str]:
    if picture.png is None:
        return []
    caption = _plain(picture.caption)
    return [f"![{caption}](report/{picture.name}.png)", "", f"*{caption}*", ""]


def _plain(text: str) -> str:
    """Text of data that Markdown does not read as markup."""
    text = html.escape(" ".join(text.split()), quote=False)
    for sign in "\\`*_[]|":
        text = text.replace(sign, f"\\{sign}")
    return text
