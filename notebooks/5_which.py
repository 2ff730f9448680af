# %% [markdown]
# # 5. Which alignment?
#
# The weight, the positions; the layer, the loss, the target, the projector. Two kinds of trainings
# of a baseline and an aligned model at nano size, which begin alike and see the same objects in the
# same order:
#
# * **whole** ones, as the main job: 240 steps on 1,920 objects. They are what to read.
# * **short** ones of many more settings with three seeds: 60 steps on 1,200 objects. They are here
#   with a warning, which the last part shows.
#
# `default` is layer 16, weight 0.1, the cosine loss, a projector of 3 layers, the point tokens,
# each with its own target from the Q-Former. Three commands make what is shown:
#
# ```bash
# python -m train.sweep --over align_positions=release --over align_weight=1.0 \
#     --seeds 0,1,2 --capture-layers 4,8,...,32 --out runs/whole
# python -m train.sweep --over align_loss=l1,l2 --over align_layer=8,12,20,24,28,32,12+16+20 \
#     --over align_weight=0.3,0.5,0.7,0.9 --over align_projector_layers=1,2,4 \
#     --over align_target=projector-mid,projector --seeds 0,1,2 --steps 60 --warmup-steps 6 \
#     --save-every 60 --train-per-class 20 --gallery-per-class 2 --capture-layers 16,32 \
#     --neighbours 1 --out runs/short
# python -m notebooks.which_alignment runs/whole runs/short
# ```
#
# The third collects what aligned and baseline differ by in every finished run; settings and seeds
# can be added at any time. The first table says what has been run so far.
#
# What this can tell: drift and CKA to the target, by layer, with intervals over objects. What it
# can't: whether answers get better (the README has the accuracies of the ablations), or which
# setting is best for a published model. A setting with one seed is told from the default only where
# it differs by more than the seeds of the default do from each other.

# %%
import matplotlib.pyplot as plt
import pandas as pd

TABLE = "which_alignment.csv"  # what python -m notebooks.which_alignment wrote
pd.options.display.float_format = "{:.3g}".format
table = pd.read_csv(TABLE)
runs = ["steps", "trained_on", "query_objects", "setting"]
table.groupby(runs, sort=False).seed.unique().to_frame("seeds")

# %% [markdown]
# ## Over the layers
#
# Aligned less baseline, with 95 % intervals over query objects. Drift is what alignment is meant to
# make smaller, so this is the least that it should do; the target is the Q-Former's output.

# %%
whole = table[table.steps == table.steps.max()]
axes_of = {
    "drift": "drift, aligned − baseline   (below 0: closer)",
    "cka": "CKA, aligned − baseline   (above 0: closer)",
    "knn": "accuracy, aligned − baseline   (above 0: better)",
}
colours = dict(zip(whole.setting.unique(), ["#0072B2", "#D55E00", "#009E73"], strict=True))
strokes = {0: "-", 1: "--", 2: ":"}
figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
for axis, (score, label) in zip(axes, axes_of.items(), strict=True):
    for (setting, seed), line in whole.groupby(["setting", "seed"], sort=False):
        mean = line[f"{score}_mean"]
        axis.errorbar(
            line.layer + 0.3 * (seed - 1),  # the seeds side by side, so that no bar hides another
            mean,
            yerr=[mean - line[f"{score}_low"], line[f"{score}_high"] - mean],
            color=colours[setting],
            linestyle=strokes[seed],
            marker="o",
            markersize=3.5,
            capsize=2,
            label=f"{setting}, seed {seed}",
        )
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel="layer (0 = what enters block 1)", ylabel=label)
handles, names = axes[0].get_legend_handles_labels()
_ = figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)

# %% [markdown]
# ## At the deepest layer
#
# `p_adjusted` is over all captured layers at once.

# %%
deepest = whole[whole.layer == whole.layer.max()].set_index(["setting", "seed"])
deepest[["drift_mean", "drift_low", "drift_high", "drift_p_adjusted"]]

# %%
deepest[["cka_mean", "cka_low", "cka_high", "cka_p_adjusted"]]

# %% [markdown]
# And whether neighbours gain by it, which no loss asked for (accuracy at K = 10, as a share):

# %%
deepest[["knn_mean", "knn_low", "knn_high", "knn_p_adjusted"]]

# %% [markdown]
# ## The positions of the published code
#
# `align_positions=release` aligns the last 32 positions of the longest prompt instead of the point
# tokens. The points stand before the question and the slice counts from the end, so no point token
# is pulled toward its own target. Drift and CKA beside the default, by layer: they need not agree,
# as CKA asks how the objects are arranged and drift how far each token is from where it should be.

# %%
pair = whole[whole.setting.isin(["default", "align_positions=release"])]
pair.set_index(["layer", "setting", "seed"]).drift_mean.unstack(["setting", "seed"])

# %%
pair.set_index(["layer", "setting", "seed"]).cka_mean.unstack(["setting", "seed"])

# %% [markdown]
# ## Short trainings, and why not to rank by them
#
# First the default after 60 steps and after 240, at the two layers that both captured. Look at the
# signs: in the table that ships CKA rises with alignment in both, but the aligned model drifts
# *more* than the baseline in every short training and less in every whole one.

# %%
default = table[(table.setting == "default") & table.layer.isin([16, 32])]
default.set_index(["layer", "steps", "seed"])[
    ["drift_mean", "drift_low", "drift_high", "cka_mean", "cka_low", "cka_high"]
].sort_index()

# %% [markdown]
# So the settings below are compared with each other, equally short, and not with whole trainings:
# the deepest layer, mean over the seeds between the least and the greatest of them. Where another
# target was aligned to, drift and CKA are still measured from the Q-Former.

# %%
short = table[(table.steps == table.steps.min()) & (table.layer == table.layer.max())]
short.groupby("setting").agg(
    seeds=("seed", "count"),
    drift=("drift_mean", "mean"),
    drift_least=("drift_mean", "min"),
    drift_greatest=("drift_mean", "max"),
    cka=("cka_mean", "mean"),
    cka_least=("cka_mean", "min"),
    cka_greatest=("cka_mean", "max"),
)
