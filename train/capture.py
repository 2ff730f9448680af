"""Hooks that copy the residual stream at the point tokens, and the short forward they need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from store.writer import RunWriter
from train.models.minigpt3d import MiniGPT3D
from train.progress import track
from train.prompts import Encoded, collate


def transformer_blocks(model: Any) -> nn.ModuleList:
    """The list of blocks of a causal language model, also inside a peft wrapper.

    It is the module list as long as `config.num_hidden_layers`. Raises ValueError when there is
    none, or more than one.
    """
    depth = model.config.get_text_config().num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    outermost = [
        (name, module)
        for name, module in found
        if not any(name.startswith(f"{other}.") for other, _ in found)
    ]
    if len(outermost) != 1:
        raise ValueError(
            f"{type(model).__name__}: {len(outermost)} lists of {depth} blocks "
            f"({', '.join(name for name, _ in outermost) or 'none'}), wanted exactly one"
        )
    return outermost[0][1]


@contextmanager
def capture_hidden_states(
    model: nn.Module,
    layers: Sequence[int],
    positions: Tensor | slice | None = None,
    *,
    detach: bool = True,
) -> Iterator[dict[int, Tensor]]:
    """Keep the residual stream at `layers` of each forward pass inside the `with`.

    model     : any causal language model of transformers, bare or wrapped by peft.
    layers    : layer L is the output of block L, before any final norm; 0 is what enters block 1.
    positions : which tokens are kept: None for all, a slice, or a bool mask (samples, tokens) with
                as many True in each row.
    detach    : False keeps the graph, for a loss on the states.

    Yields {layer: (samples, tokens, dim)}, copies that hold no more than what was asked for; the
    next pass overwrites them. No hook outlives the `with`, whatever happens inside. Raises
    ValueError for a layer that the model does not have or a mask of unequal rows.
    """
    blocks = transformer_blocks(model)
    if wrong := [layer for layer in layers if not 0 <= layer <= len(blocks)]:
        raise ValueError(f"no layer {wrong}: this model has 0 (embeddings) to {len(blocks)}")
    pick = _picker(positions)
    states: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor) -> None:
        picked = pick(hidden)
        # A slice that is only a view would keep the whole sequence alive.
        states[layer] = picked.detach().clone() if detach else picked

    def before(_block, args, kwargs):
        keep(0, args[0] if args else kwargs["hidden_states"])

    def after(layer: int):
        def hook(_block, _args, output):
            keep(layer, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = []
    try:
        for layer in set(layers):
            if layer == 0:
                handles.append(blocks[0].register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(blocks[layer - 1].register_forward_hook(after(layer)))
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _picker(positions: Tensor | slice | None):
    if positions is None:
        return lambda hidden: hidden
    if isinstance(positions, slice):
        return lambda hidden: hidden[:, positions]
    counts = positions.sum(dim=1)
    if positions.dtype != torch.bool or (counts != counts[0]).any():
        raise ValueError(
            f"positions must be a bool mask with as many True in each row; got {positions.dtype} "
            f"with {counts.tolist()}"
        )
    rows, tokens = len(positions), int(counts[0])
    return lambda hidden: hidden[positions.to(hidden.device)].view(rows, tokens, hidden.shape[-1])


class _Deepest(Exception):
    """Ends a forward pass: every requested layer has been seen."""


def short_forward(
    model: nn.Module,
    inputs_embeds: Tensor,
    layers: Sequence[int],
    positions: Tensor | slice | None = None,
) -> dict[int, Tensor]:
    """States at `layers` from a pass that ends at the deepest of them.

    inputs_embeds : (samples, tokens, dim), nothing behind the tokens that are asked for and no
                    padding: a causal model's states do not depend on what follows.

    Returns {layer: (samples, tokens, dim)} on the model's device. Equals the states of the full
    forward at the same positions.
    """
    blocks = transformer_blocks(model)
    with capture_hidden_states(model, layers, positions) as states, torch.no_grad():

        def stop(*_):
            raise _Deepest

        # Registered after the capture's own hook, so it runs after the last state is kept.
        deepest = max(layers)
        block = blocks[max(deepest, 1) - 1]
        handle = block.register_forward_hook(stop)
        try:
            with suppress(_Deepest):
                model(inputs_embeds=inputs_embeds, use_cache=False)
        finally:
            handle.remove()
    return {layer: states[layer] for layer in sorted(states)}


def capture_objects(
    model: MiniGPT3D,
    targets: Tensor,
    prefix: Encoded,
    layers: Sequence[int],
    writer: RunWriter,
    variant: str,
) -> None:
    """Append the point tokens of all objects to the store, going on where it was stopped.

    model   : in eval mode
    targets : Q-Former outputs, (objects, queries, width), in the order of the store's samples
    prefix  : the tokens up to the last point token, the same for every object
    """
    device = next(model.parameters()).device
    span = slice(prefix.point_start, prefix.point_start + prefix.points)
    done, objects = writer.done(variant), len(targets)
    starts = range(done, objects, writer.chunk)
    total = -(-objects // writer.chunk)
    label = f"capture {variant}"
    for start in track(starts, label, total=total, completed=total - len(starts)):
        rows = slice(start, min(start + writer.chunk, objects))
        shown = targets[rows].to(device)
        with torch.no_grad():
            batch = collate([prefix] * len(shown), pad_id=0)  # equally long: nothing is padded
            embeds = model.embed(batch.to(device), shown)
        states = short_forward(model.llm, embeds, layers, span)
        writer.append(variant, rows, torch.stack(list(states.values())).float().cpu().numpy())
