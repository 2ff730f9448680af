"""Hooks that change what a language model reads at its point tokens, and what it then answers.

The model is an argument: any causal language model of transformers, bare or wrapped by peft, in
eval mode. Layer L is the residual stream after block L, 0 what enters block 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

AT_ONCE = 32
"""Samples of a forward pass."""
UNLABELLED = -100


@dataclass(frozen=True)
class Asked:
    """Questions about objects with the answers that are scored, padded on the right."""

    embeds: Tensor
    """(samples, tokens, dim), what enters block 1."""
    attention_mask: Tensor
    """(samples, tokens), 0 where nothing may look."""
    labels: Tensor
    """(samples, tokens), the token itself where it belongs to the answer, -100 elsewhere."""
    point_mask: Tensor
    """(samples, tokens) bool, equally many True in each row."""

    def __len__(self) -> int:
        return len(self.embeds)

    @property
    def points(self) -> Tensor:
        """What enters block 1 at the point tokens, (samples, points, dim)."""
        return at(self.embeds, self.point_mask)

    def with_points(self, points: Tensor) -> Asked:
        """The same questions about other objects: points (samples, points, dim)."""
        return Asked(
            put(self.embeds, self.point_mask, points),
            self.attention_mask,
            self.labels,
            self.point_mask,
        )

    def batches(self) -> Iterator[tuple[slice, Asked]]:
        """Rows and questions of each forward pass, in order."""
        for start in range(0, len(self), AT_ONCE):
            rows = slice(start, min(start + AT_ONCE, len(self)))
            yield rows, Asked(*(getattr(self, field.name)[rows] for field in fields(self)))


def at(hidden: Tensor, mask: Tensor) -> Tensor:
    """States where the mask is True, (samples, True in a row, dim)."""
    return hidden[mask].view(len(hidden), -1, hidden.shape[-1])


def put(hidden: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """A copy of hidden with values (samples, True in a row, dim) where the mask is True."""
    return hidden.masked_scatter(mask[..., None], values.to(hidden))


def find_blocks(model: Any) -> nn.ModuleList:
    """The blocks of the model: its outermost module list as long as its config says it is deep."""
    depth = model.config.get_text_config().num_hidden_layers
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not inside:
            found[name] = module
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__}: {len(found)} lists of {depth} blocks "
            f"({', '.join(found) or 'none'}), wanted exactly one"
        )
    return next(iter(found.values()))


def find_unembedding(model: Any, embeds: Tensor) -> tuple[nn.Module, nn.Module]:
    """Final norm and head of the model: what runs behind its last block.

    embeds : (samples, tokens, dim), any input to try it on.

    Raises ValueError when the two of the last state are not the model's logits, as in models that
    scale or cap these.
    """
    blocks = find_blocks(model)
    inside = {id(module) for module in blocks.modules()}
    behind: list[nn.Module] = []
    last: list[Tensor] = []

    def seen(_block, _args, output):
        behind.clear()
        last[:] = [output[0] if isinstance(output, tuple) else output]

    leaves = [m for m in model.modules() if id(m) not in inside and not list(m.children())]
    handles = [blocks[-1].register_forward_hook(seen)]
    handles += [leaf.register_forward_hook(lambda m, *_: behind.append(m)) for leaf in leaves]
    try:
        with torch.no_grad():
            logits = model(inputs_embeds=embeds, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    if not behind:
        raise ValueError(f"{type(model).__name__}: no module runs behind its last block")
    norm, head = nn.Sequential(*behind[:-1]), behind[-1]
    with torch.no_grad():
        same = torch.allclose(head(norm(last[0])), logits, rtol=1e-3, atol=1e-3)
    if not same:
        raise ValueError(
            f"{type(model).__name__}: norm and head of its last state are not its logits; a lens "
            "needs a model whose logits are head(norm(state))"
        )
    return norm, head


@contextmanager
def kept(model: Any, layers: Iterable[int], mask: Tensor) -> Iterator[dict[int, Tensor]]:
    """Keep the states at `mask` of each forward pass: {layer: (samples, True in a row, dim)}."""
    states: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor) -> None:
        states[layer] = at(hidden, mask)

    with _at_layers(model, layers, keep):
        yield states


@contextmanager
def replaced(model: Any, mask: Tensor, values: Mapping[int, Tensor]) -> Iterator[None]:
    """Put values in place of the states at `mask`, at every layer that has some.

    values : {layer: (samples, True in a row, dim)}; blocks behind the layer read these.
    """
    with _at_layers(model, values, lambda layer, hidden: put(hidden, mask, values[layer])):
        yield


@contextmanager
def unread(model: Any, mask: Tensor, blocks: Iterable[int]) -> Iterator[None]:
    """Cut attention from the other positions to those of `mask` in some blocks, counted from 1.

    The tokens at `mask` go on reading each other. A pre-hook edits the attention mask that a block
    is given, boolean or additive. Raises ValueError for attention that takes no such mask.
    """
    kind = model.config.get_text_config()._attn_implementation
    if kind not in ("sdpa", "eager"):
        raise ValueError(f"attention {kind!r} takes no mask by position: use sdpa or eager")
    cut = ~mask[:, None, :, None] & mask[:, None, None, :]  # (samples, 1, reader, read)

    def without_points(given: Tensor | None) -> Tensor:
        if given is None:  # what sdpa stands for without one
            tokens = mask.shape[1]
            given = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril()
        if given.dtype == torch.bool:
            return given & ~cut
        return given.masked_fill(cut, torch.finfo(given.dtype).min)

    def edit(block, args, kwargs):
        if "attention_mask" in kwargs:
            changed = without_points(kwargs["attention_mask"])
            return args, kwargs | {"attention_mask": changed}
        bound = inspect.signature(block.forward).bind(*args, **kwargs)
        if "attention_mask" not in bound.arguments:
            raise ValueError(f"{type(block).__name__}: it is given no attention_mask to edit")
        bound.arguments["attention_mask"] = without_points(bound.arguments["attention_mask"])
        return bound.args, bound.kwargs

    every = find_blocks(model)
    handles = []
    try:
        for block in blocks:
            hook = every[_checked(block, len(every)) - 1]
            handles.append(hook.register_forward_pre_hook(edit, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def outputs_of(model: Any, layers: Iterable[int]) -> Iterator[dict[int, Any]]:
    """Keep what the blocks at these layers return, of the whole sequence, for `resumed`."""
    outputs: dict[int, Any] = {}
    blocks = find_blocks(model)

    def keep(layer: int):
        return lambda _block, _args, output: outputs.update({layer: output})

    handles = [blocks[each - 1].register_forward_hook(keep(each)) for each in layers if each]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def resumed(model: Any, layer: int, outputs: Mapping[int, Any]) -> Iterator[None]:
    """Begin a pass at a layer: the blocks before it return what the one there has returned.

    outputs : of `outputs_of`, from a pass with the same input. The blocks' hooks run as ever.
    """
    skipped = list(find_blocks(model)[:layer])
    own = [block.__dict__.get("forward") for block in skipped]
    try:
        for block in skipped:
            block.forward = lambda *_, **__: outputs[layer]
        yield
    finally:
        for block, forward in zip(skipped, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


@torch.no_grad()
def answered(model: Any, asked: Asked) -> np.ndarray:
    """Log-probability of each answer, summed over its tokens, in nats: (samples,) float64."""
    output = model(inputs_embeds=asked.embeds, attention_mask=asked.attention_mask, use_cache=False)
    said = asked.labels[:, 1:]
    scored = said != UNLABELLED
    of_tokens = output.logits[:, :-1][scored].double().log_softmax(-1)
    of_tokens = of_tokens.gather(1, said[scored][:, None])[:, 0]
    return (
        of_tokens.new_zeros(said.shape).masked_scatter(scored, of_tokens).sum(dim=1).cpu().numpy()
    )


@torch.no_grad()
def states_at(model: Any, asked: Asked, mask: Tensor, layers: Sequence[int]) -> Tensor:
    """States at `mask`, (layers, all True of the mask, dim), on the CPU, object by object."""
    parts = []
    for rows, batch in asked.batches():
        every: dict[int, Tensor] = {}
        with _at_layers(model, layers, every.__setitem__):
            model(inputs_embeds=batch.embeds, attention_mask=batch.attention_mask, use_cache=False)
        wanted = mask[rows].to(batch.embeds.device)
        parts.append(torch.stack([every[layer][wanted].cpu() for layer in layers]))
    return torch.cat(parts, dim=1)


@contextmanager
def _at_layers(model: Any, layers: Iterable[int], see: Any) -> Iterator[None]:
    """Call see(layer, hidden) at each layer of each pass; a tensor it returns goes on instead."""
    blocks = find_blocks(model)

    def before(_block, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        changed = see(0, hidden)
        if changed is None:
            return None
        if args:
            return (changed, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": changed}

    def after(layer: int):
        def hook(_block, _args, output):
            whole = isinstance(output, tuple)
            changed = see(layer, output[0] if whole else output)
            return changed if changed is None or not whole else (changed, *output[1:])

        return hook

    handles = []
    try:
        for layer in layers:
            if layer == 0:
                handles.append(blocks[0].register_forward_pre_hook(before, with_kwargs=True))
            else:
                block = blocks[_checked(layer, len(blocks)) - 1]
                handles.append(block.register_forward_hook(after(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _checked(layer: int, depth: int) -> int:
    if not 1 <= layer <= depth:
        raise ValueError(f"no layer {layer}: this model has 0 (embeddings) to {depth}")
    return layer
