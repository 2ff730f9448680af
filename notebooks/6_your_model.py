# %% [markdown]
# # 6. Bring your own model
#
# Any causal language model of transformers can be captured and probed: what it needs is a batch of
# input embeddings in which you know where the point tokens are. Here an untrained Llama of 6 blocks
# takes the place of yours, and a random linear map that of its projector; with weights on disk it
# is `AutoModelForCausalLM.from_pretrained(FOLDER)` and your projector.

# %%
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from IPython.display import Image
from transformers import LlamaConfig, LlamaForCausalLM

import store
from probe.findings import findings
from probe.plots import save_depth_png
from probe.sweep import sweep
from train.capture import short_forward
from train.verify import verify_capture

RUN = Path("../runs/demo-shapes")  # the run that ships; or the folder of any run of yours
if not RUN.exists():
    shutil.unpack_archive("../dashboards/demo/shapes.zip", RUN.parent)
run = store.open_run(RUN)
table, target = run.samples(), torch.from_numpy(run.target().values.astype(np.float32))
samples, tokens, target_dim = target.shape

# %% [markdown]
# ## Twenty lines
#
# Embed, prove the capture on a few samples, store, probe.

# %%
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=6, **sizes)).eval()
project = torch.nn.Linear(target_dim, 64).requires_grad_(False)
prefix = model.get_input_embeddings()(torch.tensor([1, 2, 3])).detach().expand(samples, 3, 64)
embeds = torch.cat([prefix, project(target)], dim=1)
points, layers = slice(3, 3 + tokens), [0, 2, 4, 6]
proofs = verify_capture(model, embeds[:3], points, layers, entering=project(target[:3]))
states = short_forward(model, embeds, layers, points)  # {layer: (samples, tokens, dim)}

folder = Path(tempfile.mkdtemp()) / "mine"
writer = store.create_run(
    folder,
    samples={"id": table["sample"].values, **{n: table[n].values for n in table.data_vars}},
    layers=layers,
    variants=["untrained"],
    tokens=tokens,
    dim=64,
    target_dim=target_dim,
)
for rows in writer.pending("target"):
    writer.append_target(rows, target[rows].numpy())
for rows in writer.pending("untrained"):
    writer.append("untrained", rows, np.stack([states[layer][rows] for layer in layers]))
writer.finish()

# %% [markdown]
# The proofs say, among others, that the short forward equals the full one and that what was
# captured is what entered, layer by layer:

# %%
print(*(f"{name}: {seen}" for name, seen in proofs.items()), sep="\n")

# %% [markdown]
# ## And the same questions
#
# As an untrained model, it shows what depth alone does to tokens that nobody has taught it to keep.

# %%
results = sweep(store.open_run(folder), ["knn", "drift"], k=[1, 4])
Image(save_depth_png(results, folder / "depth.png"))

# %%
print(*findings(results), sep="\n\n")

# %% [markdown]
# ## A published host
#
# The published MiniGPT-3D and PointAlign are captured by one command, from the files that their
# authors gave out (README, "The published models"), and probed by the next:
#
# ```bash
# python -m train.capture --weights WEIGHTS --data modelnet --data-root DATA --out runs/published
# python -m probe runs/published --probes knn,drift,dimension,geometry
# python -m probe report runs/published
# ```
#
# A system of another build gets a file in `train/hosts/`; CONTRIBUTING.md shows one.
