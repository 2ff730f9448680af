# %% [markdown]
# # 1. Where does geometry degrade?
#
# A cloud enters the language model as 32 point tokens. After every block we ask of these tokens
#
# * whether like objects are still neighbours (accuracy of K nearest neighbours);
# * whether the objects are still arranged as in the frozen Q-Former's output, the **target** (CKA);
# * how far the tokens have moved from it (drift, through a map fitted on other objects);
# * which measures of the shape can be read from them (R² of a ridge regression).
#
# `baseline` was trained on the next word alone, `aligned` also to stay near the target.

# %%
import shutil
from pathlib import Path

import pandas as pd
from IPython.display import Image

import store
from probe.figures import curves, curves_png, verdict_png
from probe.findings import findings
from probe.geometry import geometry_by_layer
from probe.plots import save_depth_png

RUN = Path("../runs/demo-shapes")  # the run that ships; or the folder of any run of yours
if not RUN.exists():
    shutil.unpack_archive("../dashboards/demo/shapes.zip", RUN.parent)
pd.options.display.float_format = "{:.3g}".format
run = store.open_run(RUN)
print(run.name, run.layers, run.variants)

# %% [markdown]
# `sweep` was computed by `python -m probe RUN` over all objects of the run; the numbers below the
# figure say how many. Bars are 95 % intervals over query objects. In the lower row a filled mark is
# a difference with p < 0.05 over all layers at once.

# %%
sweep = run.probes("sweep")
{name: sweep.attrs[name] for name in ("query_objects", "gallery_objects", "classes")}

# %%
Image(save_depth_png(sweep, RUN / "depth.png"))

# %% [markdown]
# ## At which layer?
#
# A measure has fallen where it lies below its reference by a margin: 5 % of the way from the
# reference to chance. The depth of that crossing has an interval of its own; a hollow mark says
# that no fall is shown.

# %%
Image(verdict_png(sweep))

# %%
print(*findings(sweep), sep="\n\n")

# %% [markdown]
# ## What can be read from the tokens
#
# Measures of each cloud (`probe.geometry.descriptors`), read from the mean token by a ridge
# regression that is fitted on gallery objects and scored on query objects. Computed here, on the
# objects whose states the run holds, which in the shipped run are few: the intervals are wide.

# %%
geometry = geometry_by_layer(run)
shown = [
    "extent_z",
    "height_to_width",
    "linearity",
    "hull_volume",
    "curvature",
    "mirror_left_right",
]
axis = "R²   (higher is better)"
panels = [
    panel
    for name in shown
    for panel in curves(geometry.sel(property=name), {"geometry": (name, axis)})
]
Image(curves_png(panels))

# %%
print(*findings(geometry), sep="\n\n")
