"""Figures as bytes of a PNG, drawn by matplotlib: that needs no browser."""

import io
from typing import Any


def canvas(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(max(width * columns, 5), height * rows + 0.7),
        dpi=130,
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def legend(figure: Any, handles: dict[str, Any], **more: Any) -> None:
    rows = -(-len(handles) // 7)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=-(-len(handles) // rows),
        frameon=False,
        fontsize=10.5,
        **more,
    )


def png(figure: Any) -> bytes:
    file = io.BytesIO()
    lay_out(figure)
    figure.savefig(file, format="png")
    return file.getvalue()


def lay_out(figure: Any) -> None:
    """Places the panels once: saving would do so twice, at a third of a report's time."""
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
