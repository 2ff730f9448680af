"""What a report says of itself: its words, how each measure is taken, and what it cannot tell."""

from collections.abc import Iterable
from typing import Any

import xarray as xr

QUESTION = "Where in depth does a point-cloud language model lose geometry, and what stops it?"
MODELS = {
    "stage1": "the model before stage 2",
    "baseline": "stage 2 on next-token loss alone",
    "aligned": "stage 2 with the alignment loss added; same data, order and seed as the baseline",
    "untrained": "the same architecture with random weights, which shows what depth alone does",
}
WORDS = {
    "point tokens": "the positions of the language model's sequence that hold the encoded cloud",
    "layer L": "their states behind block L, before any final norm; 0 is what enters block 1",
    "encoder's output": "what the frozen point encoder makes of a cloud, before any other part",
    "target": "the frozen Q-Former's tokens of the same object, which alignment pulls toward",
    "gallery, query": "objects that are looked up among, and that are asked about; never the same",
    "falls, holds, unsure": "a measure is shown to be worse than its reference by a margin, and at "
    "which depth; shown not to be, down to the layer named; or neither",
    "beyond noise": "p under 0.05 over all captured layers at once, paired by object; a thin bar "
    "is the 95 % band over all layers at once, a thick one the interval of its layer alone",
}
METHODS = {  # by a variable that shows that it was measured
    "knn_mean": "Accuracy: share of query objects whose class wins the vote of the K gallery "
    "objects with the nearest mean token, by cosine; of equal votes the smaller label. Intervals: "
    "Wilson 1927. Differences: "
    "McNemar's mid-p test, adjusted over the layers by random sign flips (Westfall & Young 1993). "
    "Control: labels shuffled.",
    "cka_mean": "CKA to the target: debiased linear CKA of mean tokens (Kornblith et al. 2019; "
    "Song et al. 2012), 1 for equal arrangements, 0 for unrelated ones whatever the width. "
    "At one spread: each dimension by the gallery's mean and standard deviation. Intervals and "
    "differences: jackknife over objects.",
    "encoder_cka_mean": "CKA to the encoder's output: the same with what the point encoder makes "
    "of a cloud, class token and largest value over patches; no model was trained toward it.",
    "hubness_mean": "Hubness: skewness of how many query objects have a gallery object among their "
    "K neighbours (Radovanovic et al. 2010). Intervals: delete-a-group jackknife over queries.",
    "drift_mean": "Drift: 1 - cosine between a token, mapped to the target's space by a ridge "
    "regression that is fitted on gallery objects alike for every layer and model, and its "
    "target, less the mean token of each position; where it says so, of the mean token of an "
    "object. Intervals: percentile bootstrap over objects, as wide as Student's t; differences: "
    "sign flips. Control: targets of other objects.",
    "knn_fall_mean": "Depth of fall: where a mean, on a straight line between captured layers, "
    "falls below its reference by 5 % of the way from there to chance. Interval: bootstrap, where "
    "there is no mean over objects of what 16 groups of them add (jackknife); held: tested layer "
    "by layer (Maurer et al. 1995); alike: two one-sided tests (Schuirmann 1987).",
    "two_nn_mean": "Intrinsic dimension: TwoNN (Facco et al. 2017) and likelihood (Levina & "
    "Bickel 2004). Effective rank: Roy & Vetterli 2007. Anisotropy: Ethayarajh 2019. Intervals: "
    "delete-a-group jackknife, of intrinsic dimension with objects left out in part, as the whole "
    "of it counts neighbours twice and more (Efron & Stein 1981). Control: each dimension dealt "
    "out among the objects on its own.",
    "two_nn_decimated": "Thinned out: TwoNN of the query objects, and on average of disjoint "
    "halves and smaller parts of them. Fewer objects lie farther apart: where the dimension falls, "
    "part of it is noise that only near neighbours see (Facco et al. 2017; Ansuini et al. 2019). "
    "Parts of 25 to 40 objects have 5 to 12 % too much by themselves.",
    "linear_mean": "Linear read-out: ridge classifier of mean tokens, fitted on the gallery, its "
    "penalty chosen there by cross-validation. Control: fitted to shuffled labels (Hewitt & Liang "
    "2019).",
    "linear_gain": "Learning curve: the same read-out fitted on disjoint eighths, quarters "
    "and halves of the gallery, its penalty chosen anew in each, and on all of it; all are asked "
    "about all query objects. Intervals: over query objects, for this gallery; it still learns "
    "where all of it reads more than halves do (paired, sign flips).",
    "geometry_mean": "Geometry read-out: measures of each cloud (extents, shape of its covariance, "
    "curvature, volumes, symmetries) and, where they are known, factors of its making, read "
    "from the mean token by a ridge regression fitted on the gallery; R² on query objects. "
    "Occupancy 000 to 111: filled cells in an eighth of the cube around a cloud, 1 for the upper "
    "half along z, y and x.",
    "knn_ways_mean": "Other ways: metric (cosine, l2), states and pooling as in their figure. "
    "Whitened: in the gallery's leading directions, which hold 99 % of its variance, each scaled "
    "to 1. Protocol test90_10: a random tenth of the query objects looked up among the rest, many "
    "times.",
    "procrustes_mean": "Other likenesses: CKA with an RBF kernel as wide as the median distance "
    "(debiased, intervals as for CKA), Procrustes (Ding et al. 2021), RSA (Kriegeskorte et al. "
    "2008), common neighbours (Huh et al. 2024), SVCCA (Raghu et al. 2017), PWCCA (Morcos et al. "
    "2018). Intervals: delete-a-group jackknife, of Procrustes' logarithm and Fisher's z of RSA, "
    "SVCCA, with objects left out in part, and PWCCA; for common neighbours, and in part for SVCCA "
    "and PWCCA of many objects, halves of them (McCarthy 1969); differences: as they stand. "
    "Control: the target's objects in "
    "random order.",
}
BESIDE = {  # by the probe that was kept
    "reconstruction": "Rebuilt clouds: one small decoder a layer and model, the same start and "
    "steps for all, fitted on gallery objects and judged on query objects by Chamfer distance and "
    "F-score. Control: fitted with the clouds dealt out among the objects.",
    "alignment": "Through the alignment projector: 1 - cosine between the target and a point token "
    "that the projector trained with the aligned model has mapped. Control: targets of other "
    "objects.",
    "steps": "During training: CKA and drift as above, of models captured while they trained.",
    "causal": "Causal tests: point tokens are replaced or hidden from the text at a layer and all "
    "behind it (Vig et al. 2020; Geva et al. 2023); the change is in the log probability of the "
    "true answer. Intervals over objects.",
    "lens": "Lens: point tokens read through the model's own norm and head, after an affine map a "
    "layer that is fitted on text (Belrose et al. 2023).",
}
ONE_SEED = (
    "Intervals are over objects, for the models of this run: other seeds of training, other data "
    "and other sizes are not in them. Repeat the run with other seeds before generalising."
)
SEEDS = (
    "But for the section Over seeds, intervals are over objects, for the models of this run; other "
    "data and other sizes are in none of them."
)
LIMITS = (
    "p is over all layers of one measure, not over all measures of this page.",
    "A read-out shows that something is there to be read, not that the model reads it.",
    "A depth of fall is read on a straight line between captured layers, for the margin stated: "
    "another margin gives another depth. Where a curve stays near its margin the interval is wide.",
    "The drift of the aligned model is close to what it was trained to make small; accuracy, "
    "geometry and reconstruction are not.",
    "Simulated, 95 % intervals of intrinsic dimension hold in 94 to 96 % of runs of 600 objects, "
    "those of common neighbours in 95 to 96 %, in up to all where a class has few objects; less "
    "exact are those of SVCCA where the number of directions changes with the objects or tails are "
    "heavy (94 to 97 %), and of PWCCA of fewer than 4 objects to a dimension, which are too wide.",
)
OF_MAPS = (
    "Maps are for looking: their neighbours are those of the states only as far as "
    "trustworthiness and continuity say."
)
SMALL = (
    "The models are of preset {preset}, trained on {data}: toy sizes that show how to ask. What "
    "holds here need not hold for the published models."
)


def methods(results: xr.Dataset, others: Iterable[str]) -> list[str]:
    """How each measure of a report was taken, with its source and its control."""
    taken = [text for name, text in METHODS.items() if name in results]
    return taken + [BESIDE[name] for name in others if name in BESIDE]


def limits(config: dict[str, Any], others: Iterable[str]) -> list[str]:
    """What a report cannot tell, the size of the models first where they are small."""
    over_seeds = any(name.startswith("seeds") for name in others)
    said = [SEEDS if over_seeds else ONE_SEED, *LIMITS]
    preset = config.get("preset", "minigpt3d")
    if preset != "minigpt3d":
        said.insert(0, SMALL.format(preset=preset, data=config.get("data", "other data")))
    return [*said, OF_MAPS] if "maps" in others else said


def words(variants: Iterable[str], provenance: dict[str, Any]) -> list[list[str]]:
    """Each word that the report uses, with its meaning; the models of the run first.

    provenance : of the run. What a host says of its own `captured` positions and `target` stands in
    the place of what holds for a model with a Q-Former.
    """
    of_models = [[name, MODELS[name]] for name in variants if name in MODELS]
    own = {"point tokens": "captured", "target": "target"}
    said = {word: provenance[key] for word, key in own.items() if key in provenance}
    return of_models + [list(pair) for pair in (WORDS | said).items()]


def comparison(config: dict[str, Any], variants: Iterable[str]) -> list[str]:
    """What the aligned model was trained to do beside the next word, in a sentence."""
    wanted = ("align_weight", "align_loss", "align_layer", "align_target", "align_positions")
    if not {"baseline", "aligned"} <= set(variants) or not set(wanted) <= set(config):
        return []
    weight, loss, layer, target, positions = (config[name] for name in wanted)
    at = "the point tokens" if positions == "points" else f"the positions of '{positions}'"
    to = "the Q-Former's output" if target == "qformer" else f"'{target}'"
    said = f"Aligned adds {weight:g} times a {loss} loss that pulls {at} behind layer {layer}"
    trained = f"{config['steps']} steps on {config['data']}" if "steps" in config else "both"
    return [f"{said}, through a small projector, toward {to}; both models: {trained}."]
