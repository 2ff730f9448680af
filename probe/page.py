"""The report of a run: one page that opens anywhere, and the same in Markdown with its pictures.

Every number is read from the run's results when the report is written; none is typed here. What
comes from data (names, captions, settings) is escaped.
"""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from probe import figures
from probe.findings import MAIN, findings, judged, verdict_cell, verdict_name
from probe.page_text import Picture, Section, Table, as_html, as_markdown
from probe.plots import STEPS, depth_figure, save_depth_png, steps_figure
from store import Run, StoreError

QUESTION = "Where in depth does a point-cloud language model lose geometry, and what stops it?"
SCORES = {  # key, title with its direction, scale, decimals
    "knn": ("Accuracy of {k} neighbours, in %, higher is better", 100, 1),
    "cka": ("Debiased CKA with the target, higher is closer", 1, 4),
    "drift_centred": ("Drift from the target (common part off), lower is closer", 1, 4),
    "linear": ("Accuracy of a linear read-out, in %, higher is better", 100, 1),
    "chamfer": ("Chamfer distance of the rebuilt cloud, in mean radii, lower is closer", 1, 4),
    "f_score": ("F-score of the rebuilt cloud, higher is better", 1, 3),
    "two_nn": ("Intrinsic dimension (TwoNN)", 1, 2),
    "effective_rank": ("Effective rank, higher fills more directions", 1, 2),
    "anisotropy": ("Anisotropy, lower spreads the directions", 1, 3),
    "token_diversity": ("Diversity of an object's tokens, 0 is oversmoothed", 1, 3),
}
LIMITS = (
    "Intervals are over objects, for the models of this run: other seeds of training, other data "
    "and other sizes are not in them. Repeat the run with other seeds before generalising.",
    "A read-out shows that something is there to be read, not that the model reads it.",
    "A depth of fall is read on a straight line between captured layers, for the margin stated: "
    "another margin gives another depth. Where a curve stays near its margin the interval is wide.",
    "The drift of the aligned model is close to what it was trained to make small; accuracy, "
    "geometry and reconstruction are not.",
    "Jackknife intervals of neighbour statistics (intrinsic dimension, mutual neighbours) are "
    "wider than they need be; that of the mean CKA is honest.",
    "Maps are for looking: their neighbours are those of the states only as far as "
    "trustworthiness and continuity say.",
)


def write_report(run: Run, out: Path | None = None) -> list[Path]:
    """Write report.html, report.md and report/*.png; returns the paths of the first two.

    out : the folder to write to; the run's own by default, which must be on a disk. Raises
    ValueError for a run that was not probed.
    """
    if out is None and not isinstance(run.path, Path):
        raise ValueError(f"{run.path} is no folder of this machine: name one with --out")
    folder = Path(run.path if out is None else out)
    try:
        results = run.probes("sweep")
    except StoreError:
        raise ValueError(
            f"{run.path} has no sweep to report: python -m probe {run.path} makes it"
        ) from None
    sections = _sections(run, results)
    folder.mkdir(parents=True, exist_ok=True)
    page, text = folder / "report.html", folder / "report.md"
    page.write_text(as_html(results.attrs["run"], sections), encoding="utf-8")
    for picture in (part for s in sections for part in s.parts if isinstance(part, Picture)):
        if picture.png is not None:
            (folder / "report").mkdir(exist_ok=True)
            (folder / "report" / f"{picture.name}.png").write_bytes(picture.png)
    text.write_text(as_markdown(results.attrs["run"], sections), encoding="utf-8")
    return [page, text]


def _sections(run: Run, results: xr.Dataset) -> list[Section]:
    record = _record(run)
    others = {
        name: run.probes(name) for name in ("reconstruction", "steps", "maps") if _has(run, name)
    }
    found = [
        Section("Question", [QUESTION], [_setting(run, results, record)]),
        Section("What was found", findings(results), _verdict_parts(results)),
        Section("Depth", [_how(results)], [*_depth(run, results), *_tables(results)]),
    ]
    if panels := figures.curves(results, figures.DIMENSION):
        picture = Picture(
            "dimension",
            "Shape of the space of the query objects' mean tokens. Bars: delete-a-group jackknife "
            "over objects; dotted: each dimension dealt out on its own.",
            figures.curves_png(panels),
            figures.curves_figure(panels, results),
        )
        found.append(Section("Shape of the space", [], [picture]))
    found += _more(results)
    if "reconstruction" in others:
        found.append(_rebuilt(others["reconstruction"]))
    if "steps" in others:
        found.append(_training(others["steps"]))
    if "maps" in others:
        found.append(_maps(others["maps"]))
    found.append(Section("Limits", list(LIMITS), []))
    found.append(_reproduce(run, results, record, others))
    return found


def _verdict_parts(results: xr.Dataset) -> list[Table | Picture]:
    rows = judged(results)
    if not rows:
        return []
    names = results.variant.values.astype(str).tolist()
    table = Table(
        "Layer of the fall with its 95 % interval, or up to which the measure surely holds",
        ["measure (margin, reference)", *names],
        [
            [
                verdict_name(results, score, where),
                *(verdict_cell(results.sel(where), score, name) for name in names),
            ]
            for score, where in rows
        ],
    )
    caption = (
        "Depth at which each measure falls below its reference by its margin, with 95 % intervals "
        "from resampled objects."
    )
    return [Picture("verdict", caption, figures.verdict_png(results)), table]


def _depth(run: Run, results: xr.Dataset) -> list[Table | Picture]:
    if not {"knn_mean", "cka_mean"} & set(results):
        return []
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        png = save_depth_png(results, Path(folder) / "depth.png").read_bytes()
    caption = "Neighbours, similarity and drift by depth, and below what alignment changes."
    return [Picture("depth", caption, png, depth_figure(results))]


def _tables(results: xr.Dataset) -> list[Table | Picture]:
    return [
        _score_table(results, key, title, scale, digits)
        for key, (title, scale, digits) in SCORES.items()
        if f"{key}_mean" in results
    ]


def _score_table(results: xr.Dataset, key: str, title: str, scale: int, digits: int) -> Table:
    """A row a layer: each model with its interval, controls, and aligned less baseline."""
    if f"{key}_mean" in results and "k" in results[f"{key}_mean"].dims:
        k = int(results.k.values[-1])
        results, title = results.sel(k=k), title.format(k=k)
    names = results.variant.values.astype(str)
    head, control = ["layer", *names], None
    for ending in ("shuffled", "random"):
        if f"{key}_{ending}" in results and "layer" in results[f"{key}_{ending}"].dims:
            control = f"{key}_{ending}"
            head.append(f"control: {ending}")
            break
    if f"{key}_target_mean" in results:
        three = [scale * float(results[f"{key}_target_{p}"]) for p in ("mean", "low", "high")]
        title += "; target: {:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*three, d=digits)
    compared = f"{key}_difference" in results and MAIN in results.comparison.values
    if compared:
        head += ["aligned − baseline", "p, all layers"]
    rows = []
    for layer in results.layer.values:
        at = results.sel(layer=layer)
        cells = [str(layer)]
        for name in names:
            three = [scale * float(at[f"{key}_{p}"].sel(variant=name)) for p in PARTS]
            cells.append("{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*three, d=digits))
        if control:
            cells.append(f"{scale * float(at[control].mean()):.{digits}f}")
        if compared:
            pair = at.sel(comparison=MAIN)
            three = [scale * float(pair[f"{key}_difference{p}"]) for p in ("", "_low", "_high")]
            cells.append("{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*three, d=digits))
            cells.append(f"{float(pair[f'{key}_difference_p_adjusted']):.2g}")
        rows.append(cells)
    return Table(title, head, rows)


LAID_OUT = {"umap": " UMAP lays out each model anew: compare maps along a row, not down a column."}
PARTS = ("mean", "low", "high")


def _more(results: xr.Dataset) -> list[Section]:
    """Sections of what was asked for beside the default."""
    found = []
    if "cka_layers_mean" in results:
        caption = "CKA of every captured layer with every other of the same model."
        parts: list[Table | Picture] = [Picture("cka", caption, figures.cka_png(results))]
        if panels := figures.curves(results, figures.ALIKE):
            caption = (
                "Other likenesses to the target, each blind to something else; shuffled: with the "
                "target's objects in random order. SVCCA jumps where one direction more or less "
                "holds 99 % of the variance: its interval is wide there."
            )
            live = figures.curves_figure(panels, results)
            parts.append(Picture("likeness", caption, figures.curves_png(panels), live))
        found.append(Section("Layer against layer", [], parts))
    if "knn_ways_mean" in results:
        caption = (
            "Neighbours by cosine, asked for in twelve ways: panels are ways to make one vector of "
            "an object's tokens, lines are the states as they stand (raw), less the gallery's mean "
            "(centred), or scaled to equal variance in every direction (whitened). Curves closer "
            "than the grey band is wide do not differ."
        )
        picture = Picture("ways", caption, figures.ways_png(results))
        found.append(Section("Asked in other ways", [], [picture]))
    if "geometry_mean" in results:
        found.append(Section("Geometry that can be read out", [], [_properties(results)]))
    if "knn_confusion" in results:
        name = (
            "baseline" if "baseline" in results.variant.values else str(results.variant.values[0])
        )
        caption = "Which class is taken for which, first and deepest layer, at the largest K."
        png, live = (
            draw(results, name) for draw in (figures.confusion_png, figures.confusion_figure)
        )
        picture = Picture("confusion", caption, png, live)
        found.append(Section("Classes", [_worst(results, name)], [picture]))
    return found


def _properties(results: xr.Dataset) -> Table:
    names = results.variant.values.astype(str).tolist()
    ends = results.layer.values[[0, -1]]
    rows = []
    for key in results.property.values.astype(str):
        one = results.sel(property=key)
        cells = [key, f"{float(one.geometry_target_mean):.2f}"]
        for name in names:
            two = [float(one.geometry_mean.sel(variant=name, layer=at)) for at in ends]
            fall = verdict_cell(one, "geometry", name)
            cells.append(f"{two[0]:.2f} → {two[1]:.2f}; fall: {fall}")
        rows.append(cells)
    title = f"R² of properties, layer {ends[0]} → {ends[1]}, higher is better, and where it falls"
    return Table(title, ["property", "target", *names], rows)


def _worst(results: xr.Dataset, name: str) -> str:
    one = results.knn_class_mean.sel(variant=name)
    lost = (one.isel(layer=0) - one.isel(layer=-1)).fillna(-1.0)
    order = np.argsort(-lost.values)[:3]
    said = [
        f"{results['class'].values[at]} ({100 * float(one.isel(layer=0)[at]):.0f} to "
        f"{100 * float(one.isel(layer=-1)[at]):.0f} %)"
        for at in order
    ]
    return f"Classes that {name} loses most from the first to the deepest layer: {', '.join(said)}."


def _rebuilt(results: xr.Dataset) -> Section:
    panels = figures.curves(results, figures.REBUILT)
    caption = "The same small decoder for every layer. Dotted: fitted on tokens of other objects."
    live = figures.curves_figure(panels, results)
    parts: list[Table | Picture] = [
        Picture("reconstruction", caption, figures.curves_png(panels), live)
    ]
    for name in [n for n in ("baseline", "aligned") if n in results.variant.values]:
        caption = f"Query objects as rebuilt from the point tokens of {name}."
        parts.append(Picture(f"clouds_{name}", caption, figures.clouds_png(results, name)))
    return Section("The cloud rebuilt", findings(results), [*parts, *_tables(results)])


def _training(results: xr.Dataset) -> Section:
    parts: list[Table | Picture] = [
        Picture(
            f"steps_{score}",
            f"{STEPS[score][0]}: captured layers across, steps upwards.",
            figures.steps_png(results, score),
            steps_figure(results, score),
        )
        for score in ("cka", "drift_centred")
    ]
    return Section("During training", [], parts)


def _maps(results: xr.Dataset) -> Section:
    parts: list[Table | Picture] = [
        Picture(
            f"maps_{method}",
            f"{method.upper()} of the query objects' mean tokens, a few classes in colour; under "
            "each how far its neighbours are true ones (trustworthiness) and true neighbours are "
            "near (continuity), 1 is perfect." + LAID_OUT.get(method, ""),
            figures.maps_png(results, method),
            figures.maps_figure(results, method),
        )
        for method in results.method.values.astype(str)
    ]
    return Section("Maps", [], parts)


def _how(results: xr.Dataset) -> str:
    about = results.attrs
    return (
        f"Means over {about['query_objects']} query objects with {about['level']:.0%} intervals; "
        f"{about['gallery_objects']} gallery objects, {about['classes']} classes, "
        f"{about['gallery_copies_dropped']} gallery copies of query objects left out. Differences "
        "are paired by object; p over all layers at once."
    )


def _setting(run: Run, results: xr.Dataset, record: dict[str, Any]) -> Table:
    config = record.get("config", {})
    rows = [["run", str(results.attrs["run"])]]
    rows += [[key, str(record[key])] for key in ("status", "seed", "commit") if key in record]
    wanted = ("preset", "data", "steps", "align_layer", "align_weight", "learning_rate")
    rows += [[key.replace("_", " "), str(config[key])] for key in wanted if key in config]
    rows += [
        ["models", ", ".join(run.variants)],
        ["layers probed", ", ".join(map(str, results.layer.values))],
        [
            "objects",
            f"{results.attrs['gallery_objects']} gallery, "
            f"{results.attrs['query_objects']} query, {results.attrs['classes']} classes",
        ],
        ["seed of the probes", str(results.attrs["seed"])],
    ]
    rows += [[f"{name} (version)", str(v)] for name, v in record.get("versions", {}).items()]
    rows += [[f"{name} (hash)", str(v)] for name, v in record.get("hashes", {}).items()]
    return Table("Setting and provenance", ["what", "value"], rows)


def _reproduce(
    run: Run, results: xr.Dataset, record: dict[str, Any], others: dict[str, xr.Dataset]
) -> Section:
    name = shlex.quote(str(results.attrs["run"]))
    commands = [str(record["command"])] if "command" in record else []
    k = ",".join(map(str, results.k.values))
    layers = results.layer.values.tolist()
    some = "" if layers == run.layers else f" --layers {','.join(map(str, layers))}"
    probes = ",".join(np.atleast_1d(results.attrs["probes"])) if "probes" in results.attrs else ""
    asked = f" --probes {probes}" if probes else ""
    commands.append(f"python -m probe {name}{some}{asked} --k {k} --seed {results.attrs['seed']}")
    for key, found in others.items():
        commands.append(f"python -m probe {name} --probes {key} --seed {found.attrs['seed']}")
    commands.append(f"python -m probe report {name}")
    return Section(
        "Commands",
        ["These make the run, its results and this report again."],
        [Table("", ["command"], [[command] for command in commands])],
    )


def _record(run: Run) -> dict[str, Any]:
    file = Path(run.path) / "run.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _has(run: Run, name: str) -> bool:
    try:
        run.probes(name)
    except StoreError:
        return False
    return True
