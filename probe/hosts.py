"""Systems of different build side by side: python -m probe.hosts RUN RUN --out FOLDER.

Reads what `python -m probe RUN` found in each run and lays the curves over one another, from what
enters the first block (0) to the last block (1). Each system is read against its own target, so
compare shapes, not heights: MiniGPT-3D's point tokens against its Q-Former's output, Point-LLM's
prompt positions, or what enters there, against its joint embedding.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
import xarray as xr
from tyro.conf import Positional

from probe.cli import exit_code

SCORES = {
    "knn": "accuracy of {k} neighbours in %   (higher is better)",
    "cka": "debiased CKA to its own target   (higher is closer)",
    "drift_centred": "drift from its own target   (lower is closer)",
}
"""Score of a sweep -> axis of its panel."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito
NAMES = ("depth.png", "depth.md", "depth.csv")


@dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """Depth curves of several runs in one figure and one table."""

    runs: Positional[tuple[str, ...]]
    """Run folders or URLs, each with a sweep in it: python -m probe RUN."""
    names: tuple[str, ...] = ()
    """What to call them, one each (default: folder and model)."""
    variants: str = "all"
    """Models to show: all, or a list such as stage1,pointllm."""
    k: int = 10
    """Neighbours that vote."""
    out: Path = Path("runs/hosts")
    """Folder for the figure (PNG) and the table (Markdown and CSV)."""


def main(config: HostsConfig) -> None:
    """Write figure and table, print the table."""
    from store import open_run

    if config.names and len(config.names) != len(config.runs):
        raise ValueError(f"--names: {len(config.names)} names for {len(config.runs)} runs")
    sweeps = {}
    for at, path in enumerate(config.runs):
        name = config.names[at] if config.names else Path(path).name
        if name in sweeps:
            raise ValueError(f"two runs are called {name}: give each a name of its own by --names")
        sweeps[name] = _chosen(open_run(path).probes("sweep"), config.variants, name)
    values = depth_curves(sweeps, config.k)
    config.out.mkdir(parents=True, exist_ok=True)
    picture, text, numbers = (config.out / name for name in NAMES)
    save_picture(values, picture, config.k)
    text.write_text(table(values) + "\n")
    values.to_csv(numbers, index=False)
    print(table(values))
    print(*(picture, text, numbers), sep="\n")


def _chosen(results: xr.Dataset, variants: str, name: str) -> xr.Dataset:
    if variants == "all":
        return results
    wanted = [each.strip() for each in variants.split(",")]
    own = [each for each in results.variant.values.astype(str) if each in wanted]
    if not own:
        there = ", ".join(results.variant.values.astype(str))
        raise ValueError(f"--variants {variants!r}: {name} has none of them, it has {there}")
    return results.sel(variant=own)


def depth_curves(sweeps: dict[str, xr.Dataset], k: int) -> pd.DataFrame:
    """One row a system, score and layer: depth (0 to 1), mean, low, high and target.

    sweeps : of `probe.sweep`, by the name of the system; one of several models gives several
    k      : neighbours that vote; ValueError where a sweep has another, or no score to draw

    The deepest captured layer of a system is its depth 1: capture all layers. `target` is the score
    of the target itself, for neighbours alone.
    """
    rows = []
    for name, results in sweeps.items():
        if not any(f"{score}_mean" in results for score in SCORES):
            raise ValueError(f"{name} was swept without knn and drift, of which the curves are")
        if "knn_mean" in results and k not in results.k.values:
            raise ValueError(f"{name} was asked for K = {results.k.values.tolist()}, not {k}")
        variants = results.variant.values.astype(str)
        for variant in variants:
            system = name if len(variants) == 1 else f"{name}: {variant}"
            for score in SCORES:
                rows += _curve(results.sel(variant=variant), system, score, k)
    return pd.DataFrame(rows)


def _curve(results: xr.Dataset, system: str, score: str, k: int) -> list[dict[str, Any]]:
    if f"{score}_mean" not in results:
        return []
    scale = 100 if score == "knn" else 1
    parts = {part: scale * results[f"{score}_{part}"] for part in ("mean", "low", "high")}
    target = float("nan")
    if score == "knn":
        parts = {part: values.sel(k=k) for part, values in parts.items()}
        target = 100 * float(results.knn_target_mean.sel(k=k))
    layers = results.layer.values
    return [
        {
            "system": system,
            "score": score,
            "layer": int(layer),
            "depth": float(layer / max(1, layers.max())),
            **{part: float(values.sel(layer=layer)) for part, values in parts.items()},
            "target": target,
        }
        for layer in layers
    ]


def table(values: pd.DataFrame) -> str:
    """First and last layer and the three quarters between, of each system, as Markdown."""
    lines = ["| system | layer | depth | accuracy, % | CKA | drift |", "|---|--:|--:|--:|--:|--:|"]
    for system, own in values.groupby("system", sort=False):
        layers = own.drop_duplicates("layer").reset_index()
        nearest = [np.abs(layers.depth - part).argmin() for part in (0, 0.25, 0.5, 0.75, 1)]
        for _, row in layers.iloc[np.unique(nearest)].iterrows():
            cells = [_cell(own, score, int(row.layer)) for score in SCORES]
            lines.append(f"| {system} | {row.layer} | {row.depth:.2f} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "In brackets 95 % intervals over the query objects."])


def _cell(own: pd.DataFrame, score: str, layer: int) -> str:
    found = own[(own.score == score) & (own.layer == layer)]
    if found.empty:
        return ""
    row, digits = found.iloc[0], 1 if score == "knn" else 3
    mean, low, high = (f"{row[part]:.{digits}f}" for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def save_picture(values: pd.DataFrame, path: Path, k: int) -> None:
    """A panel a score, a curve a system with its 95 % intervals."""
    from matplotlib.figure import Figure

    scores = [score for score in SCORES if (values.score == score).any()]
    figure = Figure(figsize=(5 * len(scores), 5), dpi=160, layout="constrained")
    panels = figure.subplots(1, len(scores), squeeze=False)[0]
    systems = list(dict.fromkeys(values.system))
    for axis, score in zip(panels, scores, strict=True):
        for at, system in enumerate(systems):
            own = values[(values.score == score) & (values.system == system)]
            ink = COLOURS[at % len(COLOURS)]
            bars = [own["mean"] - own.low, own.high - own["mean"]]
            axis.errorbar(
                own.depth, own["mean"], bars, color=ink, marker="o", ms=4, capsize=2, label=system
            )
            if score == "knn":
                axis.axhline(own.target.iloc[0], color=ink, ls="--", lw=1)
        axis.set_xlabel("depth: layer / last layer")
        axis.set_ylabel(SCORES[score].format(k=k))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if scores[0] == "knn":
        panels[0].set_title("dashed: each system's own target", fontsize=9)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)


def cli(arguments: Sequence[str] | None = None) -> int:
    return exit_code(
        lambda: main(tyro.cli(HostsConfig, prog="python -m probe.hosts", args=arguments))
    )


if __name__ == "__main__":
    sys.exit(cli())
