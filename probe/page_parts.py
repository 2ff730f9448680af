"""Tables and pictures of a report, from Datasets of probes."""

import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from probe import figures
from probe.findings import MAIN, findings, judged, verdict_cell, verdict_name
from probe.judged import decimals, own, tells, two_digits
from probe.page_text import Part, Picture, Section, Table
from probe.plots import STEPS, depth_figure, save_depth_png, steps_figure
from probe.plots_causal import TITLES, causal_figure
from probe.plots_learning import learning_png
from probe.plots_properties import properties_figure, properties_png
from probe.plots_style import REFERENCES
from probe.plots_training import steps_gaps, steps_gaps_figure

PARTS = ("mean", "low", "high")
SCORES = {  # key, title with its direction, scale, decimals
    "knn": ("Accuracy of {k} neighbours, in %, higher is better", 100, 1),
    "cka": ("Debiased CKA with the target, higher is closer", 1, 4),
    "encoder_cka": ("Debiased CKA with the encoder's output, higher is closer", 1, 4),
    "drift_centred": ("Drift from the target (common part off), lower is closer", 1, 4),
    "linear": ("Accuracy of a linear read-out, in %, higher is better", 100, 1),
    "knn_without_massive": ("Accuracy of neighbours, in %, massive tokens left out", 100, 1),
    "cka_without_massive": ("Debiased CKA with the target, massive tokens left out", 1, 4),
    "drift_without_massive": ("Drift from the target, massive tokens left out", 1, 4),
    "linear_without_massive": ("Accuracy of a linear read-out, massive tokens left out", 100, 1),
    "hubness": ("Hubness of {k} neighbours: skewness of how often each is one", 1, 2),
    "chamfer": ("Chamfer distance of the rebuilt cloud, in mean radii, lower is closer", 1, 4),
    "f_score": ("F-score of the rebuilt cloud, higher is better", 1, 3),
}
SPACE = {
    "two_nn": ("Intrinsic dimension (TwoNN)", 1, 2),
    "effective_rank": ("Effective rank, higher fills more directions", 1, 2),
    "anisotropy": ("Anisotropy, lower spreads the directions", 1, 3),
    "token_diversity": ("Diversity of an object's tokens, 0 is oversmoothed", 1, 3),
}
LIKE = {
    "cka_rbf": ("Debiased CKA with the target, RBF kernel, higher is closer", 1, 3),
    "procrustes": ("Procrustes distance to the target, lower is closer", 1, 3),
    "rsa": ("RSA with the target, higher is closer", 1, 3),
    "mutual_knn": ("Neighbours in common with the target, share, higher is closer", 1, 3),
    "svcca": ("SVCCA with the target, higher is closer", 1, 3),
    "pwcca": ("PWCCA with the target, higher is closer", 1, 3),
}
CONTROLS = {"shuffled": "shuffled", "random": "unrelated"}
LAID_OUT = {"umap": " UMAP lays out each model anew: compare layers of a model, not models."}
NATS = "change in nats   (below 0: less likely)"
KNOCKOUT = {"knockout": ("Points hidden from the text in some blocks", NATS)}
TRANSPLANT = {
    "transplant_share": (
        "Receives the other model's points",
        "share of the gap to it   (1: answers as it does)",
    )
}
WORDS = {
    "advantage": ("Word of its own class", "nats above the others' words   (higher is better)"),
    "rank": ("Rank of the class word", "rank   (1 is best)"),
    "caption_match": ("Nearest caption is of its class", "share of tokens   (dotted: shuffled)"),
}


def verdicts(results: xr.Dataset) -> list[Part]:
    """Where each measure falls, as a figure and as a table."""
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
                *(verdict_cell(own(results, score).sel(where), score, name) for name in names),
            ]
            for score, where in rows
        ],
    )
    caption = (
        "Depth at which each measure falls below its reference by its margin, with 95 % intervals "
        "from resampled objects. Where no fall is shown the table says whether it surely holds."
    )
    return [Picture("verdict", caption, figures.verdict_png(results)), table]


def depth(results: xr.Dataset) -> list[Part]:
    """The depth figure and its numbers."""
    pictures: list[Part] = []
    if {"knn_mean", "cka_mean"} & set(results):
        with tempfile.TemporaryDirectory() as folder:
            png = save_depth_png(results, Path(folder) / "depth.png").read_bytes()
        caption = (
            "Neighbours, similarity and drift by depth, and below what alignment changes; a "
            "filled mark is a difference beyond noise."
        )
        pictures.append(Picture("depth", caption, png, depth_figure(results)))
    return pictures + tables(results, SCORES)


def tables(results: xr.Dataset, scores: dict[str, tuple[str, int, int]]) -> list[Part]:
    """A table for each score that is there."""
    return [
        score_table(results, key, *about)
        for key, about in scores.items()
        if f"{key}_mean" in results
        and not _shown(results, key).isnull().all()
        and tells(results, key)
    ]


def _shown(results: xr.Dataset, key: str) -> xr.DataArray:
    """The means that a table shows: of the largest k."""
    mean = results[f"{key}_mean"]
    return mean.isel(k=-1) if "k" in mean.dims else mean


def score_table(results: xr.Dataset, key: str, title: str, scale: int, digits: int) -> Table:
    """A row a layer: each model with its interval, its control, and aligned less baseline."""
    if "k" in results[f"{key}_mean"].dims:
        k = int(results.k.values[-1])
        results, title = results.sel(k=k), title.format(k=k)
    results = own(results, key)
    names = results.variant.values.astype(str)
    head, control = ["layer", *names], None
    for ending, words in CONTROLS.items():
        if f"{key}_{ending}" in results and "layer" in results[f"{key}_{ending}"].dims:
            control = f"{key}_{ending}"
            head.append(f"control: {words}")
    for ending, (name, _) in (REFERENCES | {"shuffled": ("tokens of other objects", "")}).items():
        if f"{key}_{ending}_mean" in results:
            three = [scale * float(results[f"{key}_{ending}_{p}"]) for p in PARTS]
            title += "; {}: {:.{d}f} [{:.{d}f}, {:.{d}f}]".format(name, *three, d=digits)
    if key in ("cka", "encoder_cka"):
        title += "; unrelated objects: 0"
    if "hubness_random" in results and key == "hubness":
        title += f"; neighbours at random: {float(results.hubness_random):.2f}"
    compared = f"{key}_difference" in results and MAIN in results.comparison.values
    if compared:
        head += ["aligned − baseline", "p, all layers"]
    band = compared and f"{key}_difference_wide_low" in results
    if band:
        head += ["band over all layers"]
    rows = []
    for layer in results.layer.values:
        at = results.sel(layer=layer)
        cells = [str(layer)]
        for name in names:
            three = [scale * float(at[f"{key}_{p}"].sel(variant=name)) for p in PARTS]
            cells.append("{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*three, d=digits))
        if control:
            value = round(scale * float(at[control].mean()), digits) + 0.0  # never -0
            cells.append(f"{value:.{digits}f}")
        if compared:
            pair = at.sel(comparison=MAIN)
            three = [scale * float(pair[f"{key}_difference{p}"]) for p in ("", "_low", "_high")]
            fine = decimals(three, digits) if scale == 1 else digits
            cells.append("{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*three, d=fine))
            cells.append(f"{float(pair[f'{key}_difference_p_adjusted']):.2g}")
            if band:
                ends = [scale * float(pair[f"{key}_difference_wide_{end}"]) for end in PARTS[1:]]
                cells.append("[{:+.{d}f}, {:+.{d}f}]".format(*ends, d=fine))
        rows.append(cells)
    return Table(title, head, rows)


def more(results: xr.Dataset) -> list[Section]:
    """Sections of what was asked for beside neighbours, CKA and drift."""
    found = []
    if panels := figures.curves(results, figures.DIMENSION):
        picture = Picture(
            "dimension",
            "Shape of the space of the query objects' mean tokens. Bars: 95 % intervals over "
            "objects; dotted: each dimension dealt out on its own.",
            figures.curves_png(panels),
            figures.curves_figure(panels, results),
        )
        found.append(Section("Shape of the space", [], [picture, *tables(results, SPACE)]))
    if "cka_layers_mean" in results:
        caption = "CKA of every captured layer with every other of the same model."
        found.append(
            Section("Layer against layer", [], [Picture("cka", caption, figures.cka_png(results))])
        )
    if panels := figures.curves(results, figures.ALIKE):
        caption = (
            "Other likenesses to the target, each blind to something else; shuffled: with the "
            "target's objects in random order. SVCCA jumps where one direction more or less "
            "holds 99 % of the variance: its interval is wide there."
        )
        live = figures.curves_figure(panels, results)
        picture = Picture("likeness", caption, figures.curves_png(panels), live)
        found.append(Section("Other likenesses", [], [picture, *tables(results, LIKE)]))
    if "knn_ways_mean" in results:
        rank = results.whitened_rank.sel(pooling="mean")
        ranks = dict.fromkeys((int(rank.min()), int(rank.max())))
        caption = (
            "Neighbours by cosine, asked for in twelve ways: panels are ways to make one vector of "
            "an object's tokens, lines are the states as they stand (raw), less the gallery's mean "
            "(centred), or scaled to equal variance in the directions that hold 99 % of it in the "
            f"gallery (whitened), of the mean of the tokens {' to '.join(map(str, ranks))}: more "
            "would weigh small ones higher. The grey band is of one curve; whether two models "
            "differ is tested in pairs of objects, which the first section tells."
        )
        picture = Picture("ways", caption, figures.ways_png(results))
        found.append(Section("Asked in other ways", [], [picture]))
    if panels := figures.curves(results, figures.LINEAR):
        caption = (
            "Class read out linearly; the same less what shuffled labels give (selectivity: 0 is "
            "learnt by heart); and how many times shorter the states make an online code of the "
            "labels, which pays for the probe, too."
        )
        below = figures.gaps(results, figures.LINEAR)
        live = figures.curves_figure(panels, results, below)
        picture = Picture("linear", caption, figures.curves_png(panels, below), live)
        parts: list[Part] = [picture]
        if results.sizes.get("fitted", 0) > 1:
            parts.append(_learning(results))
        found.append(Section("Class that can be read out", [], parts))
    if "geometry_mean" in results:
        caption = (
            "Which property is left in which layer: R² of each in a ridge regression on the mean "
            "token, the one that the target tells best on top."
        )
        picture = Picture("geometry", caption, properties_png(results), properties_figure(results))
        table = _properties(results)
        found.append(Section("Geometry that can be read out", [], [picture, table]))
    if "knn_confusion" in results:
        found.append(_classes(results))
    return found


def _learning(results: xr.Dataset) -> Picture:
    caption = (
        "Learning curves of the linear read-out: fitted on disjoint parts of the gallery and on "
        "all of it, asked about all query objects. Where a curve rises at its right end beyond "
        "noise, which the first section tells, a larger gallery would read more. Models compare at "
        "any size. Bars: 95 % over query objects."
    )
    return Picture("learning", caption, learning_png(results))


def _properties(results: xr.Dataset) -> Table:
    names = results.variant.values.astype(str).tolist()
    ends = results.layer.values[[0, -1]]
    known = {e: name for e, (name, _) in REFERENCES.items() if f"geometry_{e}_mean" in results}
    rows = []
    for key in results.property.values.astype(str):
        one = results.sel(property=key)
        cells = [key, *(two_digits(float(one[f"geometry_{e}_mean"])) for e in known)]
        for name in names:
            four = (
                two_digits(float(one[f"geometry_{part}"].sel(variant=name, layer=at)))
                for part, at in (("mean", ends[0]), *((p, ends[1]) for p in PARTS))
            )
            fall = verdict_cell(one, "geometry", name)
            word = "falls at " if fall[0].isdigit() else ""
            cells.append("{} → {} [{}, {}];\n".format(*four) + word + fall)
        rows.append(cells)
    title = (
        f"R² of properties, layer {ends[0]} → {ends[1]}, higher is better, and where it falls "
        "below the target's"
    )
    return Table(title, ["property", *known.values(), *names], rows)


def _classes(results: xr.Dataset) -> Section:
    name = "baseline" if "baseline" in results.variant.values else str(results.variant.values[0])
    one = results.knn_class_mean.sel(variant=name)
    lost = (one.isel(layer=0) - one.isel(layer=-1)).fillna(-1.0)
    said = [
        f"{results['class'].values[at]} ({100 * float(one.isel(layer=0)[at]):.0f} to "
        f"{100 * float(one.isel(layer=-1)[at]):.0f} %)"
        for at in np.argsort(-lost.values)[:3]
    ]
    worst = f"Classes that {name} loses most from the first to the deepest layer: "
    few = "; these are the extremes of many small samples." if one.sizes["class"] > 10 else "."
    caption = (
        "Which class is taken for which, first and deepest layer, at the largest K; classes in "
        "the order of the data set."
    )
    png, live = (draw(results, name) for draw in (figures.confusion_png, figures.confusion_figure))
    sentence = worst + ", ".join(said) + few
    return Section("Classes", [sentence], [Picture("confusion", caption, png, live)])


def over_seeds(results: xr.Dataset | None, beside: dict[str, xr.Dataset]) -> Section:
    """What holds over several trainings of the same recipe, with intervals over seeds."""
    from probe.seeds_words import findings as over
    from probe.seeds_words import findings_beside

    said, shown = list[str](), list[Part]()
    if results is not None:
        said += over(results)
        shown += [*_curves_over_seeds(results), *tables(results, SCORES | SPACE | LIKE)]
    for name, found in beside.items():
        said += findings_beside(name, found)
        shown += tables(found, SCORES) if name == "reconstruction" else []
    return Section("Over seeds", said, shown)


def _curves_over_seeds(results: xr.Dataset) -> list[Part]:
    one = results.isel(k=-1) if "k" in results.dims else results
    k = int(one.k) if "k" in one.coords else 0
    about = {key: (title.format(k=k), axis) for key, (title, axis) in figures.SEEDS.items()}
    panels, below = figures.curves(one, about), figures.gaps(one, about)
    caption = (
        f"Means over {results.attrs['seeds']} runs under other seeds; bars are 95 % intervals over "
        "seeds and objects."
    )
    if not panels:  # of properties alone
        return []
    live = figures.curves_figure(panels, results, below)
    return [Picture("seeds", caption, figures.curves_png(panels, below), live)]


def rebuilt(results: xr.Dataset) -> Section:
    """Clouds that a small decoder rebuilds from the tokens of a layer."""
    panels = figures.curves(results, figures.REBUILT)
    caption = "The same small decoder for every layer. Dotted: fitted on tokens of other objects."
    live = figures.curves_figure(panels, results)
    parts: list[Part] = [Picture("reconstruction", caption, figures.curves_png(panels), live)]
    for name in [n for n in ("baseline", "aligned") if n in results.variant.values]:
        caption = f"Query objects as rebuilt from the point tokens of {name}."
        parts.append(Picture(f"clouds_{name}", caption, figures.clouds_png(results, name)))
    return Section("The cloud rebuilt", findings(results), [*parts, *tables(results, SCORES)])


def training(results: xr.Dataset) -> Section:
    """CKA and drift of the models captured while they trained."""
    parts: list[Part] = [
        Picture(
            f"steps_{score}",
            f"{STEPS[score][0]}: captured layers across, steps upwards.",
            figures.steps_png(results, score),
            steps_figure(results, score),
        )
        for score in ("cka", "drift_centred")
    ]
    if gaps := steps_gaps(results, "cka"):
        caption = "Aligned less the baseline in CKA with the target, a panel a training step."
        live = steps_gaps_figure(gaps, results)
        parts.append(Picture("steps_difference", caption, figures.curves_png(gaps), live))
    return Section("During training", findings(results), parts)


def through_alignment(results: xr.Dataset) -> Section:
    """The trained projector's own number, told to be circular."""
    from probe import alignment

    shown = [
        score_table(
            results.sel(trained=trained),
            "through_alignment",
            f"1 − cosine to the target through the projector trained behind layer {trained}",
            1,
            4,
        )
        for trained in results.trained.values.tolist()
    ]
    return Section("Through the alignment projector", alignment.findings(results), shown)


def maps(results: xr.Dataset) -> Section:
    """Objects on a plane, a map a method."""
    parts: list[Part] = [
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
    if "umap" in results.method.values and results.sizes["draw"] > 1:
        parts.append(
            Picture(
                "maps_umap_again",
                "UMAP drawn anew with another seed: what is in one of the two alone is of the "
                "drawing, not of the states.",
                figures.maps_png(results, "umap", 1),
                figures.maps_figure(results, "umap", 1),
            )
        )
    return Section("Maps", [], parts)


def _transplants(causes: xr.Dataset) -> Picture:
    """Blocks that text can't read, and the share of the gap that the other's points close."""
    blind = causes.assign_coords(layer=("window", causes.window_last.values))
    names = [f"knockout_{part}" for part in (*PARTS, "wide_low", "wide_high")]
    blind = blind[[name for name in names if name in blind]].swap_dims(window="layer")
    names = [f"transplant_share_{part}" for part in (*PARTS, "wide_low", "wide_high")]
    moved = causes[[name for name in names if name in causes]].rename(into="variant")
    panels = figures.curves(blind, KNOCKOUT) + figures.curves(moved, TRANSPLANT)
    caption = (
        "Left: text can't read the points in the blocks up to this layer from the last one drawn. "
        "Right: each model with the other's point tokens at layer L alone; nothing is drawn where "
        "the gap between the two may be 0."
    )
    return Picture("transplant", caption, figures.curves_png(panels))


def looking(causes: xr.Dataset | None, lens: xr.Dataset | None) -> Section:
    """Whether the model still reads its point tokens, and what they say in words."""
    from probe import causal as of_causes
    from probe import lens as of_lens

    said, parts = [], []
    if causes is not None:
        said += of_causes.findings(causes)
        panels = [
            panel
            for name, title in TITLES.items()
            for panel in figures.curves(causes.sel(intervention=name), {"change": (title, NATS)})
        ]
        caption = (
            "Point tokens changed at layer L and all behind it. At 0 all of the effect is seen; "
            "where a curve is back at 0 the answer is settled and the tokens are no longer read."
        )
        live = causal_figure(causes).update_layout(title=None)
        parts.append(Picture("causal", caption, figures.curves_png(panels), live))
        if "transplant_share_mean" in causes:
            parts.append(_transplants(causes))
    if lens is not None:
        said += of_lens.findings(lens)
        panels = figures.curves(lens.sel(lens="tuned"), WORDS)
        caption = "What point tokens say through the tuned lens, with 95 % intervals over objects."
        live = figures.curves_figure(panels, lens)
        parts.append(Picture("lens", caption, figures.curves_png(panels), live))
    return Section("Does the model still look?", said, parts)
