"""How a report is written down: sections of sentences, tables and pictures as HTML or Markdown.

Everything that comes from data is escaped here, and only here.
"""

import base64
import html
import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import plotly.graph_objects as go


class Table(NamedTuple):
    """Title, head and rows of plain text."""

    title: str
    head: list[str]
    rows: list[list[str]]


class Picture(NamedTuple):
    """Name of its file, what is to be seen, its pixels, and for the screen a live figure."""

    name: str
    caption: str
    png: bytes
    live: go.Figure | None = None


Part = Table | Picture


class Section(NamedTuple):
    """A heading, what is said under it, and what is shown."""

    title: str
    sentences: list[str]
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """Its name in a link."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd; break-after: avoid; }
nav { font-size: .9rem; line-height: 1.9; display: flex; flex-wrap: wrap; gap: 0 1rem; }
a { color: #0061a8; text-decoration: none; } a:hover { text-decoration: underline; }
p, li, figcaption { max-width: 62rem; } li { margin: .35rem 0; }
table { border-collapse: collapse; font-size: .8rem; margin: .5rem 0 1.5rem; }
th, td { border-bottom: 1px solid #e2e2e2; padding: .2rem .45rem; text-align: right; }
td { white-space: nowrap; font-variant-numeric: tabular-nums; }
th { border-bottom: 1px solid #999; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
table.words td { white-space: normal; text-align: left; overflow-wrap: anywhere; }
table.words td:first-child { overflow-wrap: normal; }
table.words th { text-align: left; }
caption { text-align: left; padding: .3rem 0; } b { font-weight: 600; }
.wide { overflow-x: auto; } figure { margin: 1rem 0 1.8rem; } img { max-width: 100%; }
figcaption { color: #444; font-size: .9rem; } .still { display: none; }
@media screen and (max-width: 56rem) {  /* figures keep their size, and are moved sideways */
  .seen { overflow-x: auto; } .seen > div > div, .seen > img { min-width: 56rem; }
}
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .85rem; }
@page { margin: 14mm; }
@media print {
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; } nav { display: none; }
  .live { display: none; } .still { display: block; } table { font-size: 6.6pt; }
  th, td { padding: .1rem .25rem; } figure, tr { break-inside: avoid; } .wide { overflow: visible; }
  pre { white-space: pre-wrap; } caption { break-after: avoid; } thead { break-after: avoid; }
}
"""


def as_html(name: str, sections: list[Section]) -> str:
    """One page with everything in it: opens without a network; figures are live, still in print."""
    from plotly.offline import get_plotlyjs

    title = html.escape(f"Geometry by depth: {name}")
    links = "".join(f'<a href="#{s.anchor}">{html.escape(s.title)}</a>' for s in sections)
    body = [f"<h1>{title}</h1>", f'<nav aria-label="Sections">{links}</nav>']
    tables, figures = count(1), count(1)
    for section in sections:
        body.append(f'<h2 id="{section.anchor}">{html.escape(section.title)}</h2>')
        if len(section.sentences) == 1:
            body.append(f"<p>{html.escape(section.sentences[0])}</p>")
        elif section.sentences:
            items = "".join(f"<li>{html.escape(one)}</li>" for one in section.sentences)
            body.append(f"<ul>{items}</ul>")
        for part in section.parts:
            if isinstance(part, Table):
                body.append(_html_table(part, tables))
            else:
                body.append(_html_picture(part, next(figures)))
    script = f"<script>{get_plotlyjs()}</script>"
    live = any(isinstance(p, Picture) and p.live is not None for s in sections for p in s.parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style>{script if live else ''}</head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _html_table(table: Table, number: Iterator[int]) -> str:
    """With its number; without a title it is no table but lines to copy."""
    if not table.title:
        lines = "\n".join(html.escape(" ".join(row)) for row in table.rows)
        return f"<pre>{lines}</pre>"
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_lines(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    title = f"<caption><b>Table {next(number)}.</b> {html.escape(table.title)}</caption>"
    kind = ' class="words"' if len(table.head) == 2 else ""
    return (
        f'<div class="wide"><table{kind}>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _lines(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def _html_picture(picture: Picture, number: int) -> str:
    caption = html.escape(picture.caption)
    data = base64.b64encode(picture.png).decode("ascii")
    shown = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    if picture.live is not None:
        figure = picture.live.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"figure-{picture.name}",
            auto_play=False,
        )
        shown = f'<div class="live">{figure}</div><div class="still">{shown}</div>'
    text = f"<figcaption><b>Figure {number}.</b> {caption}</figcaption>"
    return f'<figure><div class="seen">{shown}</div>{text}</figure>'


def as_markdown(name: str, sections: list[Section]) -> str:
    """The same, with the pictures as files in report/."""
    lines = [f"# Geometry by depth: {_plain(name)}", ""]
    tables, figures = count(1), count(1)
    for section in sections:
        lines += [f"## {section.title}", ""]
        sign = "- " if len(section.sentences) > 1 else ""
        if section.sentences:
            lines += [*(f"{sign}{_plain(one)}" for one in section.sentences), ""]
        for part in section.parts:
            if isinstance(part, Table):
                lines += _md_table(part, tables)
            else:
                lines += _md_picture(part, next(figures))
    return "\n".join(lines).rstrip() + "\n"


def _md_table(table: Table, number: Iterator[int]) -> list[str]:
    if not table.title:
        lines = (html.escape(" ".join(row), quote=False) for row in table.rows)
        return ["```bash", *(" ".join(line.replace("`", "'").split()) for line in lines), "```", ""]
    rows = [table.head, ["---"] * len(table.head), *table.rows]
    cells = [["---" if cell == "---" else _plain(cell) for cell in row] for row in rows]
    title = f"**Table {next(number)}.** {_plain(table.title)}"
    return [title, "", *("| " + " | ".join(row) + " |" for row in cells), ""]


def _md_picture(picture: Picture, number: int) -> list[str]:
    caption = _plain(picture.caption)
    image = f"![{caption}](report/{picture.name}.png)"
    return [image, "", f"**Figure {number}.** *{caption}*", ""]


def _plain(text: str) -> str:
    """Text of data that Markdown does not read as markup."""
    text = html.escape(" ".join(text.split()), quote=False)
    for sign in "\\`*_[]|":
        text = text.replace(sign, f"\\{sign}")
    return text
