# %% [markdown]
# # 3. What is lost first?
#
# The drift of a token says that something moved, not what was lost. Here each property of the shape
# is read at each layer, classes are told apart one by one, and clouds are rebuilt from the tokens.

# %%
import shutil
from pathlib import Path

import pandas as pd
from IPython.display import Image

import store
from probe.figures import DIMENSION, REBUILT, clouds_png, curves, curves_png
from probe.findings import findings
from probe.geometry import geometry_by_layer

RUN = Path("../runs/demo-shapes")  # the run that ships; or the folder of any run of yours
if not RUN.exists():
    shutil.unpack_archive("../dashboards/demo/shapes.zip", RUN.parent)
pd.options.display.float_format = "{:.3g}".format
run = store.open_run(RUN)

# %% [markdown]
# ## Property by property
#
# R² of each descriptor in the baseline, beside that of the target. What the target does not hold
# can't be lost on the way: look at its column first. Computed here, on the objects whose states the
# run holds; with the folder of a whole run the intervals are narrower.

# %%
geometry = geometry_by_layer(run)
baseline = geometry.sel(variant="baseline")
table = baseline.geometry_mean.to_pandas().T
table.columns = [f"layer {layer}" for layer in table.columns]
table.insert(0, "target", geometry.geometry_target_mean.to_pandas())
table.sort_values("target", ascending=False)

# %% [markdown]
# The deepest layer less the target, paired by object, worst first. `p_adjusted` is over all layers
# and properties at once.

# %%
parts = ["", "_low", "_high", "_p_adjusted"]
baseline.isel(layer=-1)[[f"geometry_from_target{part}" for part in parts]].to_dataframe().drop(
    columns=["variant", "layer"]
).sort_values("geometry_from_target").head(8)

# %%
print(*findings(geometry), sep="\n\n")

# %% [markdown]
# ## Class by class
#
# Accuracy by class (K the largest) at the first captured layer and the deepest, of the whole run's
# query objects: the classes whose neighbours are lost most, and how that compares with those that
# gain.

# %%
sweep = run.probes("sweep")
classes = sweep.knn_class_mean.sel(variant="baseline").isel(layer=[0, -1]).to_pandas().T
classes["change"] = classes.iloc[:, 1] - classes.iloc[:, 0]
by_change = classes.sort_values("change")
pd.concat([by_change.head(6), by_change.tail(3)])

# %% [markdown]
# ## The shape of the space
#
# If the tokens of all objects grew alike, the space would lose dimensions before it lost classes.

# %%
Image(curves_png(curves(sweep, DIMENSION)))

# %% [markdown]
# ## Clouds rebuilt from the tokens
#
# One small decoder a layer, fitted on gallery objects, rebuilds query objects: of the whole run,
# kept by `python -m probe RUN --probes reconstruction`. Dotted: decoders fitted with the clouds
# dealt out among the objects, which know the set but not the object.

# %%
rebuilt = run.probes("reconstruction")
Image(curves_png(curves(rebuilt, REBUILT)))

# %%
Image(clouds_png(rebuilt, "baseline"))

# %%
print(*findings(rebuilt), sep="\n\n")
