# %% [markdown]
# # 5. Which alignment?
#
# The layer that is aligned, the weight, the loss, the target, the positions. Every way below is a
# training of a nano baseline and a nano aligned model. `the main job` is the usual size:
#
# ```bash
# python -m train.stage2 --capture-layers 4,8,...,32 --out runs/main-0
# python -m train.stage2 --capture-layers 4,8,...,32 --seed 1 --out runs/main-1
# ```
#
# The others are **short**: 40 steps instead of 240, on 240 objects instead of 1,920. They show how
# to ask, not what a whole training or the published model does. One command makes them one after
# the other, and collects what aligned and baseline differ by in `which_alignment.csv`:
#
# ```bash
# python -m notebooks.which_alignment --seeds 0 1 --steps 40 --also runs/main-0 runs/main-1
# ```
#
# The first table says what has been run so far; the command goes on with the rest. Intervals are
# over objects, a line is a seed (other objects, other order of training).

# %%
import pandas as pd
from IPython.display import Image

from probe.figures import curves, curves_png

RUNS = "which_alignment.csv"  # what notebooks/which_alignment.py wrote
pd.options.display.float_format = "{:.3g}".format
table = pd.read_csv(RUNS)
table.groupby("way", sort=False).agg(
    seeds=("seed", "unique"), steps=("steps", "unique"), query_objects=("query_objects", "unique")
)

# %% [markdown]
# ## Closeness to the target at the deepest layer, aligned less baseline
#
# Below 0 the aligned model drifts less. The target is what alignment pulls toward, so this is the
# least that it should do. Where the target itself was changed, the drift is still measured from the
# Q-Former. `p_adjusted` is over all captured layers at once. What a short training shows need not
# hold at full length: before reading anything into a difference between two ways, compare the main
# job with the same recipe (layer 16, weight 0.1, cosine) after 40 steps.

# %%
deepest = table[table.layer == table.layer.max()].set_index(["way", "seed"])
deepest[["drift_mean", "drift_low", "drift_high", "drift_p_adjusted"]]

# %%
deepest[["cka_mean", "cka_low", "cka_high", "cka_p_adjusted"]]

# %% [markdown]
# And whether neighbours gain by it, which no loss asked for (accuracy at K = 10, as a share):

# %%
deepest[["knn_mean", "knn_low", "knn_high", "knn_p_adjusted"]]

# %% [markdown]
# ## Over the layers
#
# A row a way to align, a line a seed.

# %%
lines = table.assign(variant="seed " + table.seed.astype(str))
ways = {
    way: rows.set_index(["variant", "layer"]).to_xarray()
    for way, rows in lines.groupby("way", sort=False)
}
panels = [
    panel
    for way, results in ways.items()
    for panel in curves(
        results,
        {
            "drift": (way, "drift, aligned − baseline   (lower is closer)"),
            "cka": (way, "CKA, aligned − baseline   (higher is closer)"),
            "knn": (way, "accuracy, aligned − baseline   (higher is better)"),
        },
    )
]
Image(curves_png(panels))

# %% [markdown]
# ## The positions of the published code
#
# `positions of the release` aligns the last 32 positions of the longest prompt instead of the point
# tokens. The points stand before the question and the slice counts from the end, so no point token
# is pulled toward its own target. Its drift over the layers, beside that of the same short training
# at the point tokens:

# %%
pair = table[table.way.isin(["layer 16, weight 0.1, cosine", "positions of the release"])]
pair.set_index(["seed", "layer", "way"])[["drift_mean", "drift_low", "drift_high"]].unstack("way")
