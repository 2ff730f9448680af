# %% [markdown]
# # 2. Is the difference real?
#
# Two models differ in a figure. Is that the models, or the objects that happened to be asked about,
# or the seed? And how many objects would it take to tell?

# %%
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Image

import store
from probe.figures import curves, curves_png
from probe.intervals import mcnemar, wilson
from probe.objects import objects
from probe.splits import duplicate_groups
from probe.variants import knn_protocols
from probe.verdict import detectable

RUN = Path("../runs/demo-shapes")  # the run that ships; or the folder of any run of yours
if not RUN.exists():
    shutil.unpack_archive("../dashboards/demo/shapes.zip", RUN.parent)
pd.options.display.float_format = "{:.3g}".format
run = store.open_run(RUN)
sweep = run.probes("sweep")

# %% [markdown]
# ## Paired by object
#
# Both models are asked about the same objects, so the difference is taken object by object. `p` is
# of random sign flips at one layer, `p_adjusted` of the largest over all layers: the one to quote
# when a layer was picked after looking.

# %%
parts = ["", "_low", "_high", "_p", "_p_adjusted"]
pair = sweep.sel(comparison="aligned - baseline", k=sweep.k.values[-1])
pair[[f"knn_difference{part}" for part in parts]].to_dataframe().drop(columns=["comparison", "k"])

# %%
pair[[f"drift_centred_difference{part}" for part in parts]].to_dataframe().drop(
    columns=["comparison", "k"]
)

# %% [markdown]
# Accuracy is right or wrong, object by object, so McNemar's test applies too: only objects
# that one model gets right and the other wrong bear on it. Here on the objects whose states the run
# holds, at its deepest layer.

# %%
deepest = run.layers[-1]
votes = objects(run, [deepest], ["baseline", "aligned"], k=4, factors=False).named
asked = (run.samples().split == "query").values
hits = (votes == run.samples().label).sel(layer=deepest)[:, asked]
baseline, aligned = hits.sel(model="baseline"), hits.sel(model="aligned")
{
    "objects": int(asked.sum()),
    "only baseline right": int((baseline & ~aligned).sum()),
    "only aligned right": int((aligned & ~baseline).sum()),
    "McNemar p": mcnemar(baseline, aligned),
}

# %% [markdown]
# ## The protocol behind a published figure
#
# 85.43 % is 211 of 247, and 247 is a tenth of ModelNet40's 2,468 test objects, rounded up: one
# random tenth of the test objects, looked up among the other nine tenths. Its 95 % interval
# (Wilson) is wider than most differences that are read from it:

# %%
pd.DataFrame({n: 100 * np.array(wilson(round(0.8543 * n), n)) for n in (247, 600, 2468)},
             ["accuracy, %", "low", "high"]).T.rename_axis("objects")  # fmt: skip

# %% [markdown]
# The same protocol on this run, 200 times with another tenth each, against every query object
# looked up among all others (`loo`). The spread over tenths is what one tenth alone does not show;
# in the shipped run a tenth is only a few objects.

# %%
labels, groups = run.samples().label.values, duplicate_groups(run.points())
found = {
    name: knn_protocols(
        run.final(name).sel(layer=deepest).mean("token").values[asked].astype(float),
        labels[asked],
        groups[asked],
        k=(1,),
        splits=200,
    )
    for name in ("baseline", "aligned")
}
tenths = pd.DataFrame({name: 100 * one.test90_10[0] for name, one in found.items()})
tenths.assign(difference=tenths.aligned - tenths.baseline).describe().loc[
    ["mean", "std", "min", "max"]
].assign(objects_in_a_tenth=int(np.ceil(0.1 * asked.sum())))

# %%
pd.Series({f"{name}, all query objects": 100 * one.loo.mean() for name, one in found.items()})

# %% [markdown]
# ## How many objects are needed to see 2 points?
#
# It depends on how often the two models disagree: objects that both get right, or both wrong, say
# nothing. `detectable` is the smallest difference that the paired test finds 4 times in 5. In
# points, for one layer, objects down and the share on which the models disagree across:

# %%
sizes = (247, 600, 1200, 2468, 5000, 10000)
ways = {d: [d / 2, 1 - d, d / 2] for d in (0.02, 0.05, 0.1, 0.2)}  # of objects: -1, 0, +1
pd.DataFrame(
    {
        f"{d:.0%} disagree": [
            100
            * detectable(
                np.repeat([[-1, 0, 1]], np.rint(n * np.array(shares)).astype(int), axis=1),
                hits=True,
            )[0]
            for n in sizes
        ]
        for d, shares in ways.items()
    },
    pd.Index(sizes, name="objects"),
).round(1)

# %% [markdown]
# And what this run's own test over all layers could have found (in points):

# %%
(100 * pair[["knn_difference", "knn_detectable"]]).to_dataframe().drop(columns=["comparison", "k"])

# %% [markdown]
# ## Seeds
#
# An interval over objects is for these two trained models. Other seeds draw other objects and
# another order of training. `which_alignment.csv` holds whole trainings of the same recipe with
# several seeds (notebook 5 has the commands): here the default, a line a seed.

# %%
table = pd.read_csv("which_alignment.csv")
table["variant"] = "seed " + table.seed.astype(str)
whole = table[(table.setting == "default") & (table.steps == table.steps.max())]
by_seed = whole.set_index(["variant", "layer"]).to_xarray()
about = {
    "drift": ("Drift", "aligned − baseline   (lower is closer)"),
    "cka": ("CKA to the target", "aligned − baseline   (higher is closer)"),
    "knn": ("Accuracy, K = 10", "aligned − baseline, points   (higher is better)"),
}
Image(curves_png(curves(by_seed, about)))
