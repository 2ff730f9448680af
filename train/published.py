"""Published files to a model: each file of a weights folder holds a part, stacked in their order.

    python -m train.stage2 --preset minigpt3d --weights DIR

Nothing in these files is ever run: pickles are read as tensors and plain values only, and one that
asks for more is refused. Names and shapes are checked before memory is taken for the model.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from train.checkpoint import give_numbers, held_in, sha256
from train.config import ModelConfig
from train.losses import AlignmentProjector
from train.models import phi, pointbert, qformer
from train.models.experts import MixtureOfQueryExperts
from train.models.llm import read_tokenizer
from train.models.minigpt3d import MiniGPT3D, build
from train.models.pointbert import check_names, only_tensors
from train.prompts import bos_id

WRAPPERS = ("model", "base_model", "state_dict")
"""Keys under which published files keep their tensors, beside optimizer states and settings."""
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
DAMAGED = (
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
"""What torch.load raises over files that are cut short or something else, depending on where."""
ENCODER = "point_encoder."
ADDED_NORM = re.compile(r"\.(post|q|k)_layernorm\.weight$")
BESIDE = ("alignment_projector.", "query_expert_dict.", "query_router.")
"""Modules that stand beside the model: PointAlign's projector, and stage IV's query experts."""
PHI_CONFIG = {
    "hidden_size": "llm_width",
    "intermediate_size": "llm_ffn",
    "num_hidden_layers": "llm_depth",
    "num_attention_heads": "llm_heads",
    "vocab_size": "vocabulary",
    "partial_rotary_factor": "llm_rotary",
}
"""Entry of Phi-2's config.json -> ours. Heads and rotary share leave no trace in any shape."""


# --- what each file is called, holds and must hold --------------------------------------------


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


def _mlp(name: str) -> bool:
    return name.startswith("point_2_Qformer_proj.")


def _qformer_trained(name: str) -> bool:
    return name == "query_tokens" or (
        name.startswith("Qformer.")
        and (".lora_" in name or qformer.TRAINED_NORMS.search(name) is not None)
    )


def _tinygptv(name: str) -> bool:
    return _language_trained(name) or _projector(name)


def _stage3(name: str) -> bool:
    return _tinygptv(name) or _mlp(name) or _qformer_trained(name)


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


# --- reading ----------------------------------------------------------------------------------


def read_weights(path: Path, keep: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth or .bin file, or of a folder of shards, by their names in it.

    keep : which to read, by name; of a folder with an index only the shards that hold one of them.

    The tensors may still lie in the files: copy them before a file is written anew. Raises
    ValueError, one sentence, when a file is cut short, holds something else than tensors, or would
    run code.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path, keep):
        tensors |= _read_file(file, keep)
    return tensors


def weight_files(path: Path, keep: Callable[[str], bool] | None = None) -> list[Path]:
    """The files that `read_weights` opens."""
    if not path.is_dir():
        return [path]
    for index in (path / name for name in INDEXES):
        if index.is_file():
            shards = sorted({shard for name, shard in _weight_map(index) if not keep or keep(name)})
            if absent := [shard for shard in shards if not (path / shard).is_file()]:
                raise FileNotFoundError(f"{path}: no {', '.join(absent)}, which {index.name} names")
            return [path / shard for shard in shards]
    for whole in (path / name for name in WHOLE):
        if whole.is_file():
            return [whole]
    raise FileNotFoundError(f"no weights in {path}: looked for {', '.join((*WHOLE, *INDEXES))}")


def _weight_map(index: Path) -> Iterable[tuple[str, str]]:
    shards = _json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{index} is not an index of shards; copy it again")
    for name, shard in shards.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(
                f"{index} is not an index of shards: {name!r} is in {shard!r}, and must be in a "
                "file beside the index; copy it again"
            )
    return shards.items()


def _read_file(path: Path, keep: Callable[[str], bool] | None) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if not keep or keep(name)]  # noqa: SIM118
                return {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise ValueError(
                f"{path} can't be read as safetensors ({error}); copy it again"
            ) from None
    content = _unpickle(path)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not tensors by name")
    tensors = only_tensors(str(path), content)
    return {name: value for name, value in tensors.items() if not keep or keep(name)}


def _unpickle(path: Path) -> Any:
    """What torch.save wrote, as far as it can be read without running anything of it."""
    # A plain pickle instead of a zip archive comes from an old torch and can't be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except DAMAGED as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted or "Unsupported operand" in str(error):
            asked = wanted[1] if wanted else "a newer pickle than torch.save writes"
            raise ValueError(
                f"{path} asks for {asked}, and a file of weights must not run code: it was not "
                "loaded; convert it to .safetensors where you trust it"
            ) from None
        raise ValueError(
            f"{path} can't be read: it is cut short or no file of torch.save; copy it again"
        ) from None


# --- the folder -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What one file gave to the model; used + copies + dropped is all that it holds."""

    path: Path
    sha256: str
    used: int
    """Tensors taken from it; a later file may have replaced some."""
    copies: int
    """Tensors of the encoder that are the same as in the file before, or twice in this one."""
    replaced: int
    """Tensors of the encoder, among those used, that differ from the file before."""
    dropped: tuple[str, ...]
    """Tensors that no part of the model reads, by name."""

    def __str__(self) -> str:
        text = f"{self.path.name}: {self.used} tensors"
        if self.copies:
            text += f", {self.copies} equal copies"
        if self.replaced:
            text += f", {self.replaced} of the encoder differ from the file before and win"
        if self.dropped:
            modules = Counter(sorted(name.split(".")[0] for name in self.dropped))
            each = ", ".join(f"{module} {count}" for module, count in modules.items())
            text += f", {len(self.dropped)} not read ({each})"
        return f"{text}, sha256 {self.sha256[:12]}"


@dataclass(frozen=True)
class Published:
    """A model made of published files, on the CPU in eval mode, and where each part came from."""

    model: MiniGPT3D
    tokenizer: Tokenizer
    sources: tuple[Source, ...]
    fresh: tuple[str, ...]
    """Published names of what no file holds: norm biases at 0; before stage I, MLP and LoRA too."""
    first_queries: Tensor
    """BLIP-2's `query_tokens` (1, queries, width), from which stage IV begins its experts."""
    experts: MixtureOfQueryExperts | None = None
    """From stage IV, part of the model; its expert 0 is the Q-Former's `query_tokens`."""
    alignment_projector: AlignmentProjector | None = None
    """From PointAlign's stage 2: trained there, for measuring; the model does not need it."""

    def hashes(self) -> dict[str, str]:
        """{folder/file: sha256}, for the record of a run."""
        return {f"{each.path.parent.name}/{each.path.name}": each.sha256 for each in self.sources}


def load_folder(
    folder: Path,
    config: ModelConfig | None = None,
    *,
    upto: str = "pointalign-pretrain",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Published:
    """Stack the published files of a folder into one model, tokenizer included.

    config : sizes; the published ones if not given.
    upto   : how far the model has come, one of `CHAINS`; other files are not opened.
    dtype  : of the LLM's own matrices and their biases; norms, LoRA and all before the LLM are
             float32 whatever the files hold.
    seed   : draws what training begins with before stage I: the MLP and the Q-Former's LoRA.

    Raises FileNotFoundError that lists every absent file and where it was looked for, ValueError
    when a file is damaged, unsafe, of another stage or of other sizes.
    """
    config = config or ModelConfig()
    if upto not in CHAINS or upto == "front":
        raise ValueError(f"upto={upto!r} must be one of {', '.join(list(CHAINS)[1:])}")
    paths = find_files(Path(folder), upto)
    tokenizer = _read_language(paths[PHI2], config)
    # Without numbers: 2.8 billion random ones would take minutes and be thrown away.
    with torch.device("meta"):
        model = build(replace(config, experts=0))
    own = model.state_dict()
    shapes = {name: own[ours] for name, ours in published_names(model).items()}
    state: dict[str, Tensor] = {}
    sources: list[Source] = []
    for file in CHAINS[upto]:
        sources += _stack(file, paths[file], shapes, config.llm_heads, state)
        if file is BLIP2:
            first_queries = state["query_tokens"].float().clone()
    beside = {name: state.pop(name) for name in list(state) if name.startswith(BESIDE)}
    experts = alignment = None
    if upto == "stage-4":
        experts = _experts(beside | {"query_tokens": state["query_tokens"]}, config)
    elif upto == "pointalign-finetune":
        alignment = _alignment(beside, config)
    fresh = _fill(model, state, dtype, seed)
    if experts is not None:
        model.experts = experts
        experts.share_queries(model.qformer.query_tokens)
    return Published(
        model.eval(), tokenizer, tuple(sources), fresh, first_queries, experts, alignment
    )


def load_front(folder: Path, model: MiniGPT3D) -> tuple[Source, ...]:
    """Put the published encoder and BLIP-2's Q-Former into a model with an LLM of any kind.

    What stage I and II train, MLP, LoRA and projector, stays as it is. Raises as `load_folder`.
    """
    paths = find_files(Path(folder), "front")
    own, names = model.state_dict(), published_names(model)
    shapes = {name: own[ours] for name, ours in names.items() if not ours.startswith("llm.")}
    state: dict[str, Tensor] = {}
    sources: list[Source] = []
    for file in CHAINS["front"]:
        sources += _stack(file, paths[file], shapes, 1, state)
    with torch.no_grad():
        for name, value in state.items():
            own[names[name]].copy_(value)
    return tuple(sources)


def published_names(model: MiniGPT3D) -> dict[str, str]:
    """{published name: our name} for every tensor of a model."""
    names = {ENCODER + name: f"point_encoder.{name}" for name in model.point_encoder.state_dict()}
    for ours, theirs in (
        ("mlp.first", "point_2_Qformer_proj.0"),
        ("mlp.second", "point_2_Qformer_proj.2"),
        ("projector.first", "llama_proj"),
        ("projector.second", "llama_proj2"),
    ):
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    names |= {qformer.published_name(n): f"qformer.{n}" for n in model.qformer.state_dict()}
    return names | {key: f"llm.{name}" for key, name in phi.published_names(model.llm).items()}


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
        raise FileNotFoundError(
            f"weights folder {folder}, for a model up to {upto}, has no {'; no '.join(absent)}"
        )
    return found


def _read_language(folder: Path, config: ModelConfig) -> Tokenizer:
    """Hold Phi-2's config.json against the sizes; returns the tokenizer."""
    path, given = folder / "config.json", _json(folder / "config.json")
    rope = given.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: rope_parameters is a {type(rope).__name__}; copy it again")
    given = rope | given
    wrong = [
        f"{theirs} {given[theirs]} instead of {getattr(config, ours)}"
        for theirs, ours in PHI_CONFIG.items()
        if theirs in given and given[theirs] != getattr(config, ours)
    ]
    if wrong:
        raise ValueError(f"{path} is of another model: {', '.join(wrong)}")
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    if tokenizer.get_vocab_size() > config.vocabulary:
        raise ValueError(
            f"{folder / 'tokenizer.json'} has {tokenizer.get_vocab_size()} tokens, the model "
            f"embeds {config.vocabulary}"
        )
    bos_id(tokenizer)
    return tokenizer


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; copy it again")
    return content


def _stack(
    file: File, path: Path, shapes: Mapping[str, Tensor], heads: int, state: dict[str, Tensor]
) -> list[Source]:
    """Put the tensors of one published file, or of its shards, over those in `state`."""
    given: dict[str, Tensor] = {}
    sources = []
    for shard in weight_files(path, lambda name: file.rename(name) is not None):
        tensors, twins, dropped = _renamed(file, shard)
        # A stage saves the frozen encoder once more, rounded to half precision.
        again = [name for name in tensors if name.startswith(ENCODER) and name in state]
        equal = {name for name in again if _same(state[name], tensors[name])}
        sources.append(
            Source(
                path=shard,
                sha256=sha256(shard),
                used=len(tensors) - len(equal),
                copies=twins + len(equal),
                replaced=len(again) - len(equal),
                dropped=dropped,
            )
        )
        given |= {name: state[name] if name in equal else tensors[name] for name in tensors}
    _check(file, path, given, shapes, state)
    state |= phi.fuse_split(given, heads)
    return sources


def _renamed(file: File, shard: Path) -> tuple[dict[str, Tensor], int, tuple[str, ...]]:
    """Tensors by published name, how many stood there under two, and the names of the unread."""
    dropped: list[str] = []

    def keep(name: str) -> bool:
        if file.rename(name) is None:
            dropped.append(name)
            return False
        return True

    read = _read_file(shard, keep)
    tensors: dict[str, Tensor] = {}
    for name, value in read.items():
        ours = str(file.rename(name))
        if ours in tensors and not _same(tensors[ours], value):
            raise ValueError(f"{shard} holds {ours} under two names, and the two differ")
        tensors[ours] = value
    return tensors, len(read) - len(tensors), tuple(dropped)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal in the lesser precision of both."""
    dtype = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(dtype), other.to(dtype))


def _check(
    file: File,
    path: Path,
    given: Mapping[str, Tensor],
    shapes: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> None:
    """ValueError unless the file holds what it must, and nothing else than the model's tensors."""
    wanted = phi.split_shapes(shapes, given)
    needed = {name for name in wanted if file.needs(name)}
    if file.stage:
        lacking = sorted(needed - given.keys())
        if (found := stage_of(given)) != file.stage:
            but = f"; it lacks {len(lacking)} tensors, such as {lacking[0]}" if lacking else ""
            raise ValueError(f"{path} is of {found}, and must be of {file.stage}{but}")
        if absent := [each for each in file.beside if not any(n.startswith(each) for n in given)]:
            raise ValueError(f"{path} is not whole: it holds no {' and no '.join(absent)}*")
        if norms := [n for n in lacking if ADDED_NORM.search(n) and n not in state]:
            raise ValueError(
                f"{len(norms)} norms that MiniGPT-3D adds to Phi-2 are neither in {path} nor in a "
                f"file before it: {', '.join(norms)}"
            )
        needed -= {name for name in lacking if ADDED_NORM.search(name)}
    own = {name: value for name, value in given.items() if not name.startswith(file.beside)}
    check_names(
        str(path), {n: tensor for n, tensor in wanted.items() if n in needed or n in given}, own
    )


def _fill(
    model: MiniGPT3D, state: dict[str, Tensor], dtype: torch.dtype, seed: int
) -> tuple[str, ...]:
    """Give a model on the meta device its numbers, and empty `state`; returns what was not in it.

    One tensor after the other is copied out of its file, so that no second model is in memory.
    """
    fresh, tensors = [], {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, ours in published_names(model).items():
            if name in state:
                value = state.pop(name)
                kind = held_in(ours, dtype) if value.is_floating_point() else value.dtype
                tensors[ours] = value.to(kind, copy=True).contiguous()
            elif phi.NEVER_PUBLISHED.search(name):
                fresh.append(name)
                tensors[ours] = torch.zeros(model.get_parameter(ours).shape)
            elif _mlp(name) or (name.startswith("Qformer.") and ".lora_" in name):
                fresh.append(name)
                tensors[ours] = _first_value(model, ours)
    give_numbers(model, tensors)
    return tuple(fresh)


def _first_value(model: nn.Module, ours: str) -> Tensor:
    """What torch gives a linear layer, which is what peft gives LoRA's A; its B begins at 0."""
    module, _, kind = ours.rpartition(".")
    linear = model.get_submodule(module)
    assert isinstance(linear, nn.Linear)
    if ".lora_B." in ours:
        return torch.zeros(linear.weight.shape)
    return getattr(nn.Linear(linear.in_features, linear.out_features), kind).detach()


def _experts(beside: Mapping[str, Tensor], config: ModelConfig) -> MixtureOfQueryExperts:
    router = beside.get("query_router.0.weight")
    experts = MixtureOfQueryExperts(
        feature_width=config.encoder_width,
        hidden_size=config.qformer_width,
        queries=config.queries,
        experts=sum(name.startswith("query_expert_dict.") for name in beside),
        router_width=256 if router is None else len(router),
    )
    experts.load_published(beside)
    return experts.eval()


def _alignment(beside: Mapping[str, Tensor], config: ModelConfig) -> AlignmentProjector:
    layers = sum(name.endswith(".weight") for name in beside)
    projector = AlignmentProjector(config.llm_width, config.qformer_width, layers)
    projector.load_published(beside)
    return projector.eval()
