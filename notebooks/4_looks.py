# %% [markdown]
# # 4. Does the model still look?
#
# That geometry can be read from the point tokens of a layer does not mean that the model reads it.
# So the tokens are changed and the answer is watched: by how many nats does the right class become
# less likely? And what do the tokens say in words, read through the model's own unembedding?
#
# The results come from `python -m train.explain RUN`, which needs the weights; they lie in the run.

# %%
import shutil
from pathlib import Path

import pandas as pd
from IPython.display import Image

import store
from probe import causal, lens
from probe.figures import curves, curves_png
from probe.plots_causal import TITLES

RUN = Path("../runs/demo-shapes")  # the run that ships; or the folder of any run of yours
if not RUN.exists():
    shutil.unpack_archive("../dashboards/demo/shapes.zip", RUN.parent)
pd.options.display.float_format = "{:.3g}".format
run = store.open_run(RUN)
causes, words = run.probes("causal"), run.probes("lens")
{"objects": causes.sizes["object"], "question": causes.attrs["question"]}

# %% [markdown]
# ## Points changed from layer L on
#
# Each panel is one change, made at layer L and at all behind it. At 0 all of the effect is seen;
# where a curve has come back to 0 the answer is already settled and the tokens are no longer read.

# %%
axis = "change in nats   (below 0: less likely)"
panels = [
    panel
    for name, title in TITLES.items()
    for panel in curves(causes.sel(intervention=name), {"change": (title, axis)})
]
Image(curves_png(panels))

# %%
print(*causal.findings(causes), sep="\n\n")

# %% [markdown]
# The layer at which the effect falls under 5 % of that at the first, with its interval over
# objects:

# %%
causes[["stops", "stops_low", "stops_high"]].to_dataframe().unstack("variant")

# %% [markdown]
# ## Knocked out in some blocks only
#
# The text can't attend to the points in these blocks, but may in all others. A change near 0 says
# that the rest makes up for them.

# %%
knockout = ["knockout_mean", "knockout_low", "knockout_high", "knockout_p_adjusted"]
causes[knockout].to_dataframe()[knockout].unstack("variant").swaplevel(axis=1).sort_index(axis=1)

# %% [markdown]
# ## The other model's points
#
# The point tokens of one model put into the other, at one layer. 0: it answers as before; 1: as the
# model that gave them. No value where the two models' answers differ by no more than noise.

# %%
causes[["transplant_gap_mean", "transplant_gap_low", "transplant_gap_high"]].to_dataframe()

# %%
causes[["transplant_share_mean", "transplant_p_adjusted"]].to_dataframe()[
    ["transplant_share_mean", "transplant_p_adjusted"]
].unstack("into")

# %% [markdown]
# ## What the tokens say
#
# Through the tuned lens: `advantage` is the log probability of the class's first word less that of
# other classes' words (0 is chance), `rank` its place in the vocabulary.

# %%
tuned = words.sel(lens="tuned")
about = {
    "advantage": ("Word of its own class", "nats above the others' words   (higher is better)"),
    "rank": ("Rank of the class word", "rank   (1 is best)"),
    "caption_match": ("Nearest caption is of its class", "share of tokens   (dotted: shuffled)"),
}
Image(curves_png(curves(tuned, about)))

# %%
print(*lens.findings(words), sep="\n\n")

# %%
tuned.top_word.sel(variant="aligned").to_pandas()
