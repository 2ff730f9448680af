"""MiniGPT-3D as a host, ours or the published one; or its front before any other language model.

The cloud enters as point tokens, found from the placeholder in the prompt; the target is the frozen
Q-Former's output. With --llm the same tokens go into a causal language model of transformers from a
folder, see `train.hosts.causal`: it has not been trained to read them, so its curve tells what its
depth does to geometry that lies in its stream, not what it has learnt to keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.attention import read_attention
from train.capture import capture_hidden_states, entering, short_forward
from train.captured import clouds
from train.checkpoint import read_tensors, sha256
from train.config import CaptureConfig, Stage2Config, parse_layers
from train.data.objects import DataSet
from train.hosts import Keep, Site, causal
from train.models.llm import hold_in, set_attention
from train.models.minigpt3d import MiniGPT3D
from train.progress import track
from train.prompts import Batch, bos_id, collate, encode_conversation, prefix, prefix_text
from train.start import load_start, model_sizes
from train.verify import Proofs, verify_capture, verify_padded, verify_pooled

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
START = "stage1"
"""Name of the model in the checkpoint, as in the runs of stage 2."""
FINETUNED = "aligned"
"""Name of PointAlign's own, also as there."""
COUNTED = 1024  # objects whose conversations are laid side by side to count their tokens


class MiniGPTHost:
    """See `train.hosts.Host`."""

    def __init__(self, config: CaptureConfig):
        self.config = config
        self.own = self.sizes = model_sizes(like_stage2(config))
        if config.llm:
            self.sizes = replace(self.own, **causal.sizes(config.llm))
        self.layers = parse_layers(config.layers, self.sizes.llm_depth)
        if self.layers == [0] and config.site_list != ["resid"]:
            raise ValueError(f"--sites {config.sites}: blocks add nothing before layer 1; name one")
        for folder in config.trained:
            _trained_file(folder)
        self.hashes: dict[str, str] = {}
        self.about: dict[str, Any] = {"prefix": prefix_text()}
        if config.asks:
            self.about["question"] = config.question
        self.model: MiniGPT3D
        self.data: DataSet

    def load(self, data: DataSet, device: torch.device) -> None:
        config, self.data, self.device = self.config, data, device
        dtype = DTYPES[config.precision]
        begin = load_start(like_stage2(config), self.own, dtype)
        self.model, self.tokenizer, self.hashes = begin.model, begin.tokenizer, begin.hashes
        if config.llm:
            self.model.llm, self.tokenizer = causal.load(config.llm, dtype)
            self.hashes |= causal.hashes(config.llm, config.llm_map)
            rows = np.arange(min(causal.MEASURED, len(data.gallery)))
            with torch.no_grad():
                target = self.model.encode(clouds(data, rows, self.own.points, config.draw))
            self.model.projector, said = causal.fitted(  # type: ignore[assignment]
                self.model, target, config.llm_map, config.seed
            )
            self.about |= {"llm": f"{self.variants[0]} in the place of ours; {said}"}
        else:
            hold_in(self.model.llm, dtype)
        set_attention(self.model.llm, config.attention)
        self.model.to(device).eval()
        self.hashes |= {folder.name: sha256(_trained_file(folder)) for folder in config.trained}

    @property
    def variants(self) -> list[str]:
        if self.config.llm:
            return [causal.variant(self.config.llm)]
        if self.config.start == "pointalign-finetune":
            return [FINETUNED]
        return [START, *(folder.name for folder in self.config.trained)]

    @property
    def sites(self) -> dict[str, Site]:
        tokens = self.sizes.queries if self.config.pool == "none" else 1
        tokens = tokens if self.own_tokens is None else int(self.own_tokens.max())
        return {
            site: Site(self._layers(site), tokens, self.sizes.llm_width)
            for site in self.config.site_list
        }

    @cached_property
    def own_tokens(self) -> np.ndarray | None:
        if self.config.tokens == "point" or self.config.pool == "mean":
            return None
        rows = np.arange(len(self.data.gallery) + len(self.data.query))
        starts = range(0, len(rows), COUNTED)
        bar = track(starts, "count tokens", total=len(starts))
        parts = [self._counted(self._batch(rows[at : at + COUNTED])) for at in bar]
        return np.concatenate([part.sum(dim=1).numpy() for part in parts])

    @property
    def target_dim(self) -> int:
        return self.sizes.qformer_width

    @property
    def encoder_dim(self) -> int | None:
        return 2 * self.sizes.encoder_width

    @property
    def patches(self) -> int | None:
        return self.sizes.groups

    @contextmanager
    def model_of(self, variant: str) -> Iterator[MiniGPT3D]:
        """The one model with the weights that stage 2 gave it, and its own again afterwards."""
        own, before = dict(self.model.named_parameters()), {}
        folders = {folder.name: folder for folder in self.config.trained}
        try:
            if variant in folders:
                path = _trained_file(folders[variant])
                for name, tensor in read_tensors(path).items():
                    name = name.removeprefix("model.")
                    if name.startswith("alignment_"):
                        continue
                    if name not in own or own[name].shape != tensor.shape:
                        raise ValueError(f"{path}: {name} is not of this checkpoint's model")
                    before[name] = own[name].detach().clone()
                    own[name].data.copy_(tensor)
            yield self.model
        finally:
            for name, tensor in before.items():
                own[name].data.copy_(tensor)

    def prove(self, rows: np.ndarray) -> Proofs:
        target = self._front(rows)["target"]
        batch = self._batch(rows).to(self.device)
        embeds, points = self.model.embed(batch, target), entering(self.model, target)
        mask = None if self.config.tokens == "point" else batch.attention_mask
        with self.model.mixed():
            proofs = verify_capture(
                self.model.llm,
                embeds,
                batch.point_mask,
                self.layers,
                entering=points,
                attention_mask=mask,
                sites=self.config.site_list,
            )
            if self.config.pool == "mean":
                means: list[Tensor] = []
                self.states(rows, ["resid"], lambda *kept: means.append(kept[-1]))
                alone = [self._unpooled(rows[[at]], target[[at]]) for at in range(len(rows))]
                proofs["pool"] = verify_pooled(
                    self.model.llm, torch.stack(means), alone, self.layers
                )
            elif self.own_tokens is not None:
                padded: list[Tensor] = []
                self.states(rows, ["resid"], lambda *kept: padded.append(kept[-1]))
                alone = [self._unpooled(rows[[at]], target[[at]]) for at in range(len(rows))]
                proofs["padding"] = verify_padded(
                    self.model.llm, torch.stack(padded), alone, self.layers
                )
        return proofs

    def states(self, rows: np.ndarray, sites: list[str], keep: Keep) -> dict[str, Tensor]:
        found = self._front(rows)
        batch = self._batch(rows).to(self.device)
        embeds = self.model.embed(batch, found["target"])
        if self.config.pool == "mean":
            keep = self._means(batch, keep)
        elif self.own_tokens is not None:
            keep = self._padded(batch, keep)
        if self.config.pool == "mean" or self.own_tokens is not None:
            for name in ("target", "weights"):
                found[name] = found[name].mean(dim=-2, keepdim=True)
        with self.model.mixed():
            self._forward(batch, embeds, sites, keep)
        return found

    def _unpooled(self, row: np.ndarray, target: Tensor) -> Tensor:
        """(layers, tokens, dim): the states of one object that count, alone."""
        batch = self._batch(row).to(self.device)
        states = short_forward(self.model.llm, self.model.embed(batch, target), self.layers)
        found = torch.stack(list(states.values()))[:, 0]
        return found[:, self._counted(batch)[0]]

    def _counted(self, batch: Batch) -> Tensor:
        """Which tokens are asked for, (samples, tokens) of bool."""
        return {
            "point": batch.point_mask,
            "answer": batch.labels >= 0,
            "all": batch.attention_mask.bool(),
        }[self.config.tokens]

    def _layers(self, site: str) -> list[int]:
        return self.layers if site == "resid" else [at for at in self.layers if at]

    def _forward(self, batch: Batch, embeds: Tensor, sites: list[str], keep: Keep) -> None:
        """Every layer of the sites, all from one pass."""
        llm, tokens = self.model.llm, self.config.tokens
        positions = batch.point_mask if tokens == "point" else None
        with ExitStack() as stack:
            for site in sites:
                if site != "resid" or tokens != "point":
                    hooks = capture_hidden_states(
                        llm, self._layers(site), positions, site=site, keep=partial(keep, site)
                    )
                    stack.enter_context(hooks)
            if tokens == "point":
                short_forward(llm, embeds, self.layers, positions, keep=partial(keep, "resid"))
            else:
                llm(inputs_embeds=embeds, attention_mask=batch.attention_mask, use_cache=False)

    def _means(self, batch: Batch, keep: Keep) -> Keep:
        """Keeps one token instead, the mean of those that count; in float32 for any model, since
        half precision has too few digits for a sum of many tokens."""
        counted = self._counted(batch)
        if self.config.tokens == "point":  # no others are kept
            counted = counted[counted].view(len(counted), -1)
        share = (counted / counted.sum(dim=1, keepdim=True))[:, None]  # (samples, 1, tokens)

        def keep_mean(site: str, layer: int, states: Tensor) -> None:
            with torch.autocast(states.device.type, enabled=False):
                keep(site, layer, share @ states.float())

        return keep_mean

    def _padded(self, batch: Batch, keep: Keep) -> Keep:
        """Keeps the tokens that count, an object's own before zeros."""
        assert self.own_tokens is not None
        counted, longest = self._counted(batch), int(self.own_tokens.max())
        sample, at = counted.nonzero(as_tuple=True)
        place = counted.cumsum(dim=1)[sample, at] - 1

        def keep_own(site: str, layer: int, states: Tensor) -> None:
            own = states.new_zeros(len(states), longest, states.shape[-1])
            own[sample, place] = states[sample, at]
            keep(site, layer, own)

        return keep_own

    def _front(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Clouds through the frozen front: `train.hosts.FROZEN`."""
        shown = clouds(self.data, rows, self.sizes.points, self.config.draw).to(self.device)
        with read_attention(self.model) as reading:
            target = self.model.encode(shown)
        assert reading.centres is not None and reading.encoder is not None
        return {
            "target": target,
            "encoder": reading.encoder,
            "weights": reading.weights(),
            "centres": reading.centres,
        }

    def _batch(self, rows: np.ndarray) -> Batch:
        """What stands around the point tokens: the prefix, or a whole question and answer."""
        queries, pad = self.sizes.queries, bos_id(self.tokenizer)
        if self.config.tokens == "point":
            return collate([prefix(self.tokenizer, queries)] * len(rows), pad)
        captions = [*self.data.gallery.captions, *self.data.query.captions]
        encoded = [
            encode_conversation(
                self.tokenizer,
                [(self.config.question, captions[row])],
                points=queries,
                context=self.sizes.llm_context,
            )
            for row in rows
        ]
        return collate(encoded, pad)


def like_stage2(config: CaptureConfig) -> Stage2Config:
    """The settings that say which model and which data, as stage 2 reads them."""
    shared = ("data", "data_root", "seed", "skip_missing")
    counts = ("train_per_class", "gallery_per_class", "query_per_class")
    same: dict[str, Any] = {name: getattr(config, name) for name in (*shared, *counts)}
    if config.weights:
        same["start"] = config.start
        return replace(Stage2Config(preset="minigpt3d", weights=config.weights), **same)
    return replace(Stage2Config(stage1=config.checkpoint), **same)


def _trained_file(folder: Path) -> Path:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"--trained {folder}: no model.safetensors in it; give RUN/checkpoints/NAME of a run "
            "of python -m train.stage2"
        )
    return path
