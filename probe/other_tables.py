"""Training steps and causes in the terminal: tables, and under each what its marks mean."""

import xarray as xr
from rich.console import Console
from rich.table import Table

from probe.report import PARTS, SIGNIFICANT, _number, _show
from probe.steps import REFERENCE

INTERVENTIONS = {  # those of `probe.causal` that are tabled; its Dataset has all
    "unread": "Text can't read the points behind layer L",
    "mean": "Points are the mean object's from layer L on",
    "other_class": "Points of an object of another class from layer L on",
}


def print_steps(results: xr.Dataset, console: Console | None = None) -> None:
    """CKA with the target of each model captured during training: a row a step, a column a layer.

    results : of `probe.steps.steps`. A star is a difference to the baseline.
    """
    console = console or Console()
    for variant in results.variant.values.astype(str):
        _show(console, _steps_table(results, variant))
    about = results.attrs
    console.print(
        f"{about['query_objects']} query objects, {about['gallery_objects']} in the gallery; 0: "
        "unrelated to the target, 1: the same up to turning and scaling.\n"
        f"* differs from the {REFERENCE} at the same step, p < {SIGNIFICANT} over all layers and "
        "steps at once, paired by object. Intervals and drift are in the run's results.",
        highlight=False,
    )


def _titled(title: str, first: str) -> Table:
    """A table with its first column, as wide as its title."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        padding=(0, 1),
        min_width=len(title),
    )
    table.add_column(first, justify="right")
    return table


def _steps_table(results: xr.Dataset, variant: str) -> Table:
    one = results.sel(variant=variant).dropna("step", subset=["cka_mean"])
    title = f"{variant}: debiased CKA to the target during training, higher is closer"
    table = _titled(title, "step \\ layer")
    for layer in one.layer.values:
        table.add_column(str(layer), justify="right", no_wrap=True)
    pair = f"{variant} - {REFERENCE}"
    p = None
    if pair in results.get("comparison", xr.DataArray([])).values:
        p = results.cka_step_difference_p_adjusted.sel(comparison=pair)
    for step in one.step.values:
        sure = [False] * one.sizes["layer"] if p is None else p.sel(step=step) < SIGNIFICANT
        cells = [
            _number(float(value), 3) + (" *" if star else "  " if p is not None else "")
            for value, star in zip(one.cka_mean.sel(step=step), sure, strict=True)
        ]
        table.add_row(str(step), *cells)
    return table


def print_causes(results: xr.Dataset, console: Console | None = None) -> None:
    """What the answer loses by layer, and what the other model's points give it.

    results : of `probe.causal.causal`. A star is an effect beyond noise.
    """
    console = console or Console()
    for name, title in INTERVENTIONS.items():
        one = results.sel(intervention=name)
        _show(console, _causes_table(one, "change", f"{title}: change of the answer in nats"))
    if "transplant_share_mean" in results:
        names = [f"transplant_share_{part}" for part in ("mean", "low", "high")]
        moved = results[[*names, "transplant_p_adjusted"]].rename(
            into="variant", transplant_p_adjusted="transplant_share_p_adjusted"
        )
        title = "Receives the other model's points at layer L: share of the gap to it, 1 is all"
        _show(console, _causes_table(moved, "transplant_share", title))
    console.print(
        f"{results.sizes['object']} query objects. In brackets: {results.attrs['level']:.0%} "
        "intervals over them, layer by layer; below 0 the answer is less likely; –: the gap "
        "between the models may be 0, and no share of it is known.\n"
        f"* an effect, p < {SIGNIFICANT} over all layers at once. Bands over all layers, knock-outs"
        " by window and the other interventions are in the run's results and in its report.",
        highlight=False,
    )


def _causes_table(results: xr.Dataset, score: str, title: str) -> Table:
    """A row a layer: each model with its interval, and a star where there is an effect."""
    table = _titled(title, "layer")
    names = results.variant.values.astype(str)
    for name in names:
        table.add_column(f"into {name}" if score != "change" else name, justify="right")
    for layer in results.layer.values:
        cells = []
        for name in names:
            one = results.sel(variant=name, layer=layer)
            numbers = [round(float(one[f"{score}_{part}"]), 2) + 0.0 for part in PARTS]
            star = " *" if float(one[f"{score}_p_adjusted"]) < SIGNIFICANT else "  "
            text = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*numbers) + star
            cells.append("–  " if numbers[0] != numbers[0] else text)
        table.add_row(str(layer), *cells)
    return table
