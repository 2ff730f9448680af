"""What the published files are called, hold and must hold, and which make up a model.

The folder is laid out as MiniGPT-3D's README has it; several files stack, the later wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from train.models import phi, pointbert, qformer

ENCODER = "point_encoder."


def _phi_name(name: str) -> str | None:
    if "rotary_emb." in name:  # a table that older libraries saved
        return None
    return name if name.startswith(phi.PUBLISHED_PREFIX) else phi.PUBLISHED_PREFIX + name


def _blip2_name(name: str) -> str | None:
    """Of all of BLIP-2 only the Q-Former is used, without its text branch."""
    if name.startswith("qformer."):  # as transformers converts it
        name = qformer.published_name("bert." + name.removeprefix("qformer."))
    text = re.match(
        r"Qformer\.(cls\.|bert\.embeddings\.(word|position)_|"
        r"bert\.encoder\.layer\.\d+\.(intermediate|output)\.)",
        name,
    )
    if text or name == qformer.POSITION_IDS:
        return None
    return name if name == "query_tokens" or name.startswith("Qformer.") else None


def _encoder_name(name: str) -> str | None:
    bare = name.removeprefix(next(filter(name.startswith, pointbert.ALIASES), ""))
    # PointLLM's own file holds the encoder as one of several modules.
    return None if bare.startswith("module.") else ENCODER + bare


def _stage_name(name: str) -> str | None:
    if name == qformer.POSITION_IDS or "rotary_emb." in name:
        return None
    # What TinyGPT-V looks at pictures with.
    if name.startswith(("visual_encoder.", "ln_vision.")):
        return None
    return _encoder_name(name) if name.startswith(pointbert.ALIASES) else name


def _language_trained(name: str) -> bool:
    return name.startswith("llama_model.") and (
        ".lora_" in name or phi.TRAINED_NORM.search(name) is not None
    )


def _projector(name: str) -> bool:
    return name.startswith(("llama_proj.", "llama_proj2."))


def is_mlp(name: str) -> bool:
    """Whether a published name is of the MLP between encoder and Q-Former."""
    return name.startswith("point_2_Qformer_proj.")


def _qformer_trained(name: str) -> bool:
    return name == "query_tokens" or (
        name.startswith("Qformer.")
        and (".lora_" in name or qformer.TRAINED_NORMS.search(name) is not None)
    )


def _tinygptv(name: str) -> bool:
    return _language_trained(name) or _projector(name)


def _stage3(name: str) -> bool:
    return _tinygptv(name) or is_mlp(name) or _qformer_trained(name)


def stage_of(names: Iterable[str]) -> str:
    """What wrote a stage file, by the modules it holds."""
    modules = {name.split(".")[0] for name in names}
    if "query_router" in modules:
        return "stage IV"
    if "alignment_projector" in modules:
        return "PointAlign's stage 2"
    if "llama_model" in modules:
        return "stage II or III" if "point_2_Qformer_proj" in modules else "TinyGPT-V"
    return "stage I" if "point_2_Qformer_proj" in modules else "no stage"


@dataclass(frozen=True)
class File:
    """One published file, or folder of them."""

    title: str
    paths: tuple[str, ...]
    """Where it may be in the weights folder; a .pth may also be there as .safetensors."""
    needs: Callable[[str], bool]
    """Which of the model's tensors it must hold, by their published names; it may hold more."""
    rename: Callable[[str], str | None] = _stage_name
    """Published name of a tensor in it, or None for what no part of the model reads."""
    stage: str = ""
    """What wrote it, in the words of `stage_of`; empty for what others published."""
    beside: tuple[str, ...] = ()
    """Modules beside the model that it must hold."""


PHI2 = File(
    "Phi-2",
    ("Phi_2",),
    lambda n: n.startswith("llama_model.") and not phi.ADDED.search(n),
    _phi_name,
)
BLIP2 = File(
    "BLIP-2",
    ("blip2_pretrained_flant5xxl.pth", "blip2-flan-t5-xxl"),
    lambda name: name.startswith(("query_tokens", "Qformer.")) and ".lora_" not in name,
    _blip2_name,
)
POINTS = File(
    "point encoder",
    ("pc_encoder/point_model.pth",),
    lambda name: name.startswith(ENCODER),
    _encoder_name,
)
TINYGPTV = File(
    "TinyGPT-V",
    ("TinyGPT_V_stage_3/TinyGPT-V_for_Stage3.pth",),
    _tinygptv,
    stage="TinyGPT-V",
)
STAGE3 = File(
    "MiniGPT-3D stage III",
    ("MiniGPT_3D_stage_3/MiniGPT_3D_stage_3.pth",),
    _stage3,
    stage="stage II or III",
)
STAGE4 = File(
    "MiniGPT-3D stage IV",
    ("MiniGPT_3D_stage_4/MiniGPT_3D_stage_4.pth",),
    lambda name: name == "query_tokens",
    stage="stage IV",
    beside=("query_expert_dict.", "query_router."),
)
PRETRAIN = File(
    "PointAlign pretrain",
    ("pointalign/pretrain.pth",),
    _stage3,
    stage="stage II or III",
)
FINETUNE = File(
    "PointAlign finetune",
    ("pointalign/finetune.pth",),
    _language_trained,
    stage="PointAlign's stage 2",
    beside=("alignment_projector.",),
)
BASE = (PHI2, BLIP2, POINTS)
CHAINS = {
    "front": (BLIP2, POINTS),
    "tinygpt-v": (*BASE, TINYGPTV),
    "stage-3": (*BASE, STAGE3),
    "stage-4": (*BASE, STAGE3, STAGE4),
    "pointalign-pretrain": (*BASE, PRETRAIN),
    "pointalign-finetune": (*BASE, PRETRAIN, FINETUNE),
}
"""What is stacked for a model that has come this far; of two files with a tensor the later wins."""


def find_files(folder: Path, upto: str) -> dict[File, Path]:
    """Where each file of a chain is in a weights folder; nothing is opened.

    upto : how far the model has come, one of `CHAINS`.

    Raises FileNotFoundError that lists every absent file and where it was looked for.
    """
    found: dict[File, Path] = {}
    absent = []
    for file in CHAINS[upto]:
        places = [Path(each) for each in file.paths]
        places = [p.with_suffix(".safetensors") for p in places if p.suffix == ".pth"] + places
        if there := [folder / place for place in places if (folder / place).exists()]:
            found[file] = there[0]
        else:
            absent.append(f"{file.title} (looked for {' or '.join(file.paths)})")
    if PHI2 in found:
        for name in ("config.json", "tokenizer.json"):
            if not (found[PHI2] / name).is_file():
                absent.append(f"{found[PHI2].name}/{name}")
    if absent:
        far = "" if upto == "front" else f", for a model up to {upto},"
        raise FileNotFoundError(f"weights folder {folder}{far} has no {'; no '.join(absent)}")
    return found
