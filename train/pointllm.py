"""Point-LLM: train a Llama to talk about vectors of a joint space, then show it clouds.

python -m train.pointllm: Point-LLM (Guo et al. 2023, section 4) at a size that a CPU trains in
minutes. In the published training the vector is that of an image; the frozen space of our nano
Point-Bind is one of text, so the embedding of what is said of an object stands in for that of its
image. No cloud is seen in this training. Afterwards the model is shown the vectors that
Point-Bind's encoder makes of clouds, and asked "What is this?": does what it learnt about one
modality hold for another that lies in the same space?

Phases: `language` (a small Llama from nothing, which stands for LLaMA; not with --llm), `pretrain`
(bind network, the layers' queries and gates, on captions) and `finetune` (LoRA, biases and norms,
on conversations, and with --tune-gates what the phase before trained as well).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.cli import read_config, run

if TYPE_CHECKING:  # a call for --help doesn't wait for torch
    import numpy as np
    from accelerate import Accelerator
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import LlamaForCausalLM

    from train.anchors import TextAnchor
    from train.data.objects import DataSet, Objects
    from train.hosts.bindllm_files import Loaded
    from train.models.bindllm import PointLLM

QUESTION = "What is this?"
FREE = ("out", "config", "threads", "data_root", "save_every", "pointbind", "llm")
"""Settings that may differ when an interrupted training goes on; folders are known by hashes."""
AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class PointLLMConfig:
    """Train Point-LLM without a cloud and measure what it says about clouds."""

    config: Path | None = None
    """YAML file of these settings; flags on the command line win over it."""
    pointbind: Path = Path("runs/pointbind-shapes-seed0")
    """Folder that python -m train.pointbind wrote: the joint space, the encoder and the data."""
    llm: Path | None = None
    """Folder of a Llama-architecture model as transformers writes it; default: a small one, trained
    here from nothing."""
    out: Path | None = None
    """Folder of the result (default runs/pointllm-DATA-seedSEED); an interrupted one goes on."""
    data_root: Path = Path("data")
    """Folder of the data that Point-Bind was trained on."""
    seed: int = 0
    """Seeds the weights, the batches and the controls."""
    language_steps: int = 300
    pretrain_steps: int = 300
    finetune_steps: int = 1500
    tune_gates: bool = True
    """Train gates, queries and bind network in the second phase too. The released code freezes
    them there, and its paper says that the gates are tuned."""
    batch_size: int = 32
    save_every: int = 50
    threads: int = 0
    """CPU threads; 0 lets torch choose."""

    def __post_init__(self):
        steps = {name: getattr(self, f"{name}_steps") for name in ("language", *PHASES)}
        if wrong := [name for name, count in steps.items() if count < 1]:
            raise ValueError(f"--{wrong[0]}-steps {steps[wrong[0]]}: must be 1 or more")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size}: must be 1 or more")

    def folder(self, data: str) -> Path:
        """Where the result is written."""
        return self.out or Path("runs") / f"pointllm-{data}-seed{self.seed}"


PHASES = ("pretrain", "finetune")


def main(config: PointLLMConfig) -> None:
    """Train the phases, write the model, measure what it says."""
    import torch
    from accelerate import Accelerator

    from train.anchors import FrozenSpace
    from train.hosts import bindllm_files
    from train.provenance import provenance
    from train.record import check_new, check_same, write_record
    from train.retrieve import read_sizes
    from train.zeroshot import class_features

    begun = time.perf_counter()
    if config.threads:
        torch.set_num_threads(config.threads)
    sizes = read_sizes(config.pointbind)
    if "published" in sizes:
        raise ValueError(
            f"{config.pointbind} is the published Point-Bind: the published Point-LLM is captured "
            "as it is, with python -m train.capture --host bindllm"
        )
    data, bound = load(config)
    folder = config.folder(data.name)
    check_new(folder)
    hashes = {"data": data.train.fingerprint()} | digests(config)
    record = provenance(config, hashes)
    check_same(folder, json.loads(json.dumps(record, default=str)), FREE)
    write_record(folder, record | {"status": "running"})
    places = (sizes.get(name) for name in ("text_model", "merges"))
    anchor = FrozenSpace(*(Path(place) if place else None for place in places)).text
    words = class_features(anchor, data.train.class_names)
    anchors = anchor_vectors(anchor, words, data.train)
    recipe = Recipe(config, folder, data.train, anchors, Accelerator(cpu=True))
    model = recipe.train()
    keys = anchors.flatten(0, 1)
    own = {"space": anchor.width, "norm": "layer"}
    bindllm_files.save(folder, model, config.pointbind, keys, own)
    loaded = bindllm_files.load(folder)
    seen = [name for name in data.query.class_names if name not in bound["unseen_classes"]]
    rows = measure(loaded, anchor, words, data.query, seen, config.seed)
    text = table(rows, f"{len(data.query)} unseen objects of {data.name}, asked {QUESTION!r}")
    print(text)
    (folder / "report.md").write_text(text + "\n")
    seconds = round(time.perf_counter() - begun, 1)
    done = {"status": "complete", "seconds": seconds, "anchor": anchor.name, "rows": rows}
    write_record(folder, record | done)
    print(f"model and report: {folder}")
    print(f"capture it  python -m train.capture --host bindllm --checkpoint {folder}")
    print(f"took        {seconds:.0f} s")


def load(config: PointLLMConfig) -> tuple[DataSet, dict[str, Any]]:
    """The objects that Point-Bind was trained and measured on, and its report.

    Raises ValueError where these objects are other ones now.
    """
    from train.config import Stage2Config
    from train.data.load import load_data

    path = config.pointbind / "report.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: python -m train.pointbind writes it when it is done")
    bound = json.loads(path.read_text())
    names = ("data", "seed", "train_per_class", "gallery_per_class", "query_per_class")
    same = {name: bound["config"][name] for name in names}
    data = load_data(Stage2Config(data_root=config.data_root, **same))
    if data.query.fingerprint() != bound["hashes"]["data"]:
        raise ValueError(
            f"the objects under --data-root {config.data_root} are not those that "
            f"{config.pointbind} was measured on"
        )
    return data, bound


def digests(config: PointLLMConfig) -> dict[str, str]:
    """Of the encoder, and of the Llama where one is given."""
    from train.checkpoint import sha256

    found = {"pointbind": sha256(config.pointbind / "model.safetensors")}
    files = sorted(config.llm.glob("*.safetensors")) if config.llm else []
    return found | {f"llm/{path.name}": sha256(path) for path in files}


def anchor_vectors(anchor: TextAnchor, words: Tensor, objects: Objects) -> Tensor:
    """What an object is bound to, (2, objects, space): its caption, and its class in 64 prompts.

    words : (classes, space), of `train.zeroshot.class_features`
    """
    import torch

    return torch.stack([anchor(objects.captions), words[torch.from_numpy(objects.labels)]])


@dataclass(frozen=True)
class Recipe:
    """A Llama on its way to a Point-LLM; each phase goes on where it was stopped."""

    config: PointLLMConfig
    folder: Path
    data: Objects
    anchors: Tensor
    accelerator: Accelerator

    def train(self) -> PointLLM:
        """The trained model in eval mode; its Llama and tokenizer lie in `llm/`."""
        import torch

        from train.models.bindllm import PointLLM, finetuned, pretrained, tuned_llm

        base, tokenizer = self._llama()
        torch.manual_seed(self.config.seed)
        model = PointLLM(tuned_llm(base), space=self.anchors.shape[-1])
        self._fit("pretrain", model, tokenizer, pretrained, 3e-3)

        def tuned(name: str) -> bool:
            return finetuned(name) or (self.config.tune_gates and pretrained(name))

        self._fit("finetune", model, tokenizer, tuned, 3e-3)
        return model.cpu().eval()

    def _llama(self) -> tuple[LlamaForCausalLM, Tokenizer]:
        import shutil

        import torch
        from transformers import LlamaForCausalLM
        from transformers.utils import logging

        from train.hosts.bindllm_files import LLAMA
        from train.models.llm import TOKENIZER, llm_from_folder, read_tokenizer
        from train.pointllm_train import NANO_LLAMA, train_tokenizer

        path = self.folder / LLAMA
        if self.config.llm:
            base, tokenizer = llm_from_folder(self.config.llm, kinds=("llama",))
            assert isinstance(base, LlamaForCausalLM)
            shutil.copytree(self.config.llm, path, dirs_exist_ok=True)
            return base, tokenizer
        if (path / TOKENIZER).is_file():
            tokenizer = read_tokenizer(path / TOKENIZER)
        else:
            tokenizer = train_tokenizer(self.data, path / TOKENIZER)
        logging.disable_progress_bar()
        torch.manual_seed(self.config.seed)
        base = LlamaForCausalLM(NANO_LLAMA)
        self._fit("language", base, tokenizer, lambda _: True, 3e-3)
        base.cpu().save_pretrained(path)
        return base, tokenizer

    def _fit(self, phase: str, model: Any, tokenizer: Tokenizer, wanted: Any, peak: float) -> None:
        from train.checkpoint import train_only
        from train.loop import Training, fit
        from train.pointllm_train import TalkBatches, TalkObjective
        from train.stages import quick_schedule

        config = self.config
        steps = getattr(config, f"{phase}_steps")
        batches = TalkBatches(
            phase,
            self.data,
            self.anchors,
            tokenizer,
            size=config.batch_size,
            seed=config.seed,
            context=model.config.max_position_embeddings,
        )
        trained = train_only(model, wanted)
        print(f"{phase}: {sum(trained.values()):,} parameters, {steps} steps")
        fit(
            phase,
            TalkObjective(model),
            batches,
            Training(
                schedule=quick_schedule(steps, peak),
                seed=config.seed,
                save_every=config.save_every,
            ),
            self.accelerator,
            self.folder / "training" / phase,
            self.folder / "metrics.jsonl",
        )


def measure(
    loaded: Loaded,
    anchor: TextAnchor,
    words: Tensor,
    objects: Objects,
    seen: list[str],
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of the report: what was shown, how often the right class was named, beside chance.

    seen : names of the classes whose clouds Point-Bind was trained on; of none of these clouds has
           the Llama been told anything
    """
    import numpy as np
    import torch

    from train.hosts.bindllm_files import drawn, vectors_of
    from train.models.bindllm import mix
    from train.progress import track

    parts = []
    starts = range(0, len(objects), 32)
    for start in track(starts, "embed clouds", total=len(starts)):
        found = torch.from_numpy(objects.points(range(start, min(start + 32, len(objects)))))
        parts.append(vectors_of(loaded, found, cache=False)[1])
    plain = torch.cat(parts)
    others = partners(len(objects), seed)
    rows: list[dict[str, Any]] = []
    known = np.isin([objects.class_names[label] for label in objects.labels], seen)
    named = {
        "clouds": name_all(loaded, plain, objects, "clouds"),
        "clouds, with the visual cache": name_all(
            loaded, drawn(loaded, plain), objects, "with cache"
        ),
        "captions, as in training": name_all(
            loaded, mix([anchor(objects.captions)]), objects, "captions"
        ),
        "clouds of other objects": name_all(loaded, plain[others], objects, "other clouds"),
    }
    named["no LLM: the class nearest to the cloud"] = (plain @ words.T).argmax(dim=1).numpy()
    for what, answer in named.items():
        for name, among in (("seen as clouds", known), ("never seen as clouds", ~known)):
            if among.any():
                rows.append(scored(what, name, answer[among], objects.labels[among]))
    return rows


def name_all(loaded: Loaded, vectors: Tensor, objects: Objects, label: str) -> np.ndarray:
    """Class that each answer names, (objects,); -1 where it names none."""
    import numpy as np

    from train.judges import named_class
    from train.pointllm_train import answers
    from train.progress import track

    said: list[str] = []
    starts = range(0, len(vectors), AT_ONCE)
    for start in track(starts, f"ask about {label}", total=len(starts)):
        part = vectors[start : start + AT_ONCE]
        said += answers(loaded.model, loaded.tokenizer, part, QUESTION)
    found = [named_class(text, objects.class_names) for text in said]
    return np.array([-1 if row is None else row for row in found])


def partners(count: int, seed: int) -> np.ndarray:
    """Another object for each: a shuffled ring, so that none is its own."""
    import numpy as np

    ring = np.random.default_rng([seed, count]).permutation(count)
    other = np.empty(count, int)
    other[ring] = np.roll(ring, 1)
    return other


def scored(what: str, classes: str, named: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """A row: share of right answers with its 95 % interval, and what guessing gives."""
    import numpy as np

    from probe.intervals import wilson

    right = int((named == labels).sum())
    found = wilson(right, len(labels))
    chance = np.bincount(labels).max() / len(labels)
    values = {"value": float(found.mean), "low": float(found.low), "high": float(found.high)}
    values |= {"chance": float(chance), "unnamed": float((named < 0).mean())}
    return {"what": what, "classes": classes, **values, "objects": len(labels)}


def table(rows: list[dict[str, Any]], note: str) -> str:
    """The rows as a Markdown table, in percent."""
    lines = [note, "", "| shown | classes | named right, % | 95 % interval | chance | objects |"]
    lines.append("|---|---|--:|---|--:|--:|")
    for each in rows:
        value, low, high, chance = (
            f"{100 * each[key]:.1f}" for key in ("value", "low", "high", "chance")
        )
        lines.append(
            f"| {each['what']} | {each['classes']} | {value} | {low} to {high} | {chance} | "
            f"{each['objects']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, read_config({"nano": PointLLMConfig()}))
