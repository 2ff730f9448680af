"""Copy what flows through a language model at the point tokens: python -m train.capture.

The library part is small: hooks on the blocks, and the short forward that the point tokens need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from train.cli import read_config, run
from train.config import CaptureConfig
from train.prompts import Encoded, collate

if TYPE_CHECKING:  # a call for --help doesn't wait for transformers and zarr
    from store.writer import RunWriter
    from train.models.minigpt3d import MiniGPT3D
    from train.verify import Proofs

SITES = ("resid", "attn", "mlp")
"""The residual stream, and what the attention and the feed-forward branch of a block add to it."""
BRANCHES = {
    "attn": (
        *("post_layernorm", "post_self_attn_layernorm"),
        *("self_attn", "self_attention.dense", "self_attention", "attention", "attn"),
    ),
    "mlp": (
        *("post_mlp_layernorm", "mlp.dense_4h_to_h", "mlp", "feed_forward", "fc2"),
        *("ffn.down_proj", "block_sparse_moe"),
    ),
}
"""Module of a block whose output is a branch, first found. MiniGPT-3D norms the attention's output
(`post_layernorm`) before it adds it, GLM-4 both; BLOOM and MPT add the stream inside a branch."""
NORMED_BRANCHES = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
"""The same where both branches are normed on their way out, as in Gemma 2 and OLMo 2."""
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Where torch's wrappers of a single block (compile, FSDP 1, checkpointing) keep it."""

Keep = Callable[[int, Tensor], Any]
"""Called with a layer and its states at the positions, which are the model's own: copy them."""


def unwrapped(model: Any) -> Any:
    """The model without the wrappers of torch: compiled, data parallel, sharded."""
    while not hasattr(model, "config") or hasattr(model, "_orig_mod"):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if inner is None:
            raise ValueError(f"{type(model).__name__} is no language model: it has no config")
        model = inner
    return model


def transformer_blocks(model: Any) -> nn.ModuleList:
    """The list of blocks of a causal language model, also inside peft and torch's wrappers.

    It is the module list as long as `config.num_hidden_layers`. Raises ValueError when there is
    none, or more than one.
    """
    model = unwrapped(model)
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


def branch(block: nn.Module, site: str) -> nn.Module:
    """The module whose output a block adds to the stream: its attention or its feed-forward."""
    while wrapped := [name for name in WRAPPED if name in block._modules]:
        block = getattr(block, wrapped[0])
    names: tuple[str, ...] = BRANCHES[site]
    if hasattr(block, NORMED_BRANCHES["mlp"]):
        names = (NORMED_BRANCHES[site], *names)
    found = [name for name in names if _has(block, name)]
    if not found:
        children = [name for name, _ in block.named_children()]
        raise ValueError(f"{type(block).__name__} has no {site} branch among {children}")
    return block.get_submodule(found[0])


def _has(block: nn.Module, name: str) -> bool:
    try:
        block.get_submodule(name)
    except AttributeError:
        return False
    return True


@contextmanager
def capture_hidden_states(
    model: nn.Module,
    layers: Sequence[int],
    positions: Tensor | slice | None = None,
    *,
    detach: bool = True,
    site: str = "resid",
    keep: Keep | None = None,
) -> Iterator[dict[int, Tensor]]:
    """Keep the residual stream at `layers` of each forward pass inside the `with`.

    model     : any causal language model of transformers, bare or wrapped by peft or torch. A
                compiled model runs as it was written inside the `with`, since compiled code would
                pass over the hooks.
    layers    : layer L is the output of block L, before any final norm; 0 is what enters block 1.
    positions : which tokens are kept: None for all, a slice, or a bool mask (samples, tokens) with
                as many True in each row.
    detach    : False keeps the graph, for a loss on the states.
    site      : `resid`, or what block L adds to it: `attn` or `mlp` (there is no layer 0 then).
    keep      : called with layer and states, in the hook, instead of a copy; what it returns is
                yielded. So `train.background` puts them where they are written from.

    Yields {layer: (samples, tokens, dim)}, copies that hold no more than what was asked for; the
    next pass overwrites them, and what gradient checkpointing computes again doesn't. No hook
    outlives the `with`, whatever happens inside. Raises ValueError for a layer that the model does
    not have or a mask of unequal rows.
    """
    blocks = transformer_blocks(model)
    first = 0 if site == "resid" else 1
    if wrong := [layer for layer in layers if not first <= layer <= len(blocks)]:
        raise ValueError(
            f"no layer {wrong}: this model has {first}{'' if first else ' (embeddings)'} to "
            f"{len(blocks)}"
        )
    pick = _picker(positions)
    states: dict[int, Tensor] = {}
    recording = torch.is_grad_enabled()

    def see(layer: int, hidden: Tensor) -> None:
        if _recomputing():
            return
        if recording and not detach and not torch.is_grad_enabled():
            raise RuntimeError(
                "reentrant gradient checkpointing hides the graph of its blocks from a loss on "
                'their states; turn it on with {"use_reentrant": False}'
            )
        picked = pick(hidden)
        if keep:
            states[layer] = keep(layer, picked.detach())
        else:  # a slice that is only a view would keep the whole sequence alive
            states[layer] = picked.detach().clone() if detach else picked

    def before(_block, args, kwargs):
        see(0, args[0] if args else kwargs["hidden_states"])

    samples: list[int] = []

    def count(_block, args, kwargs):
        samples[:] = [len(args[0] if args else kwargs["hidden_states"])]

    def after(layer: int):
        block = blocks[layer - 1]
        scale = 1 if site == "resid" else getattr(block, "residual_multiplier", 1)  # of Granite

        def hook(_block, _args, output):
            hidden = output[0] if isinstance(output, tuple | list) else output
            if hidden.ndim == 2:  # OPT's feed-forward has all tokens of a batch in a row
                hidden = hidden.unflatten(0, (samples[0], -1))
            see(layer, hidden if scale == 1 else hidden * scale)

        return hook

    with ExitStack() as stack:
        stack.enter_context(_as_written(model))
        if site != "resid":
            handle = blocks[0].register_forward_pre_hook(count, with_kwargs=True)
            stack.callback(handle.remove)
        for layer in sorted(set(layers)):
            if layer == 0:
                handle = blocks[0].register_forward_pre_hook(before, with_kwargs=True)
            else:
                block = blocks[layer - 1]
                module = block if site == "resid" else branch(block, site)
                handle = module.register_forward_hook(after(layer))
            stack.callback(handle.remove)
        yield states


def _recomputing() -> bool:
    """Whether a backward pass is under way: gradient checkpointing then repeats its forward."""
    return torch._C._current_graph_task_id() != -1


def _as_written(model: nn.Module):
    """Nothing runs compiled inside, where something of the model is."""
    compiled = any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in model.modules()  # a thousand, at every step: hasattr would take its time
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _picker(positions: Tensor | slice | None) -> Callable[[Tensor], Tensor]:
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
    *,
    attention_mask: Tensor | None = None,
    site: str = "resid",
    keep: Keep | None = None,
) -> dict[int, Tensor]:
    """States at `layers` from a pass that ends at the deepest of them.

    inputs_embeds  : (samples, tokens, dim). Nothing needs to stand behind the tokens that are asked
                     for: a causal model's states do not depend on what follows.
    attention_mask : (samples, tokens), 0 at padding; None where there is none.
    site, keep     : as in `capture_hidden_states`

    Returns {layer: (samples, tokens, dim)} on the model's device. Equals the states of the full
    forward at the same positions. A sharded model (FSDP) runs to its end, to gather as it is used
    to.
    """
    block = transformer_blocks(model)[max([1, *layers]) - 1]

    def stop(*_):
        raise _Deepest

    with (
        ExitStack() as stack,
        torch.no_grad(),
        capture_hidden_states(model, layers, positions, site=site, keep=keep) as states,
    ):
        if not _sharded(model):
            model = unwrapped(model)
            # Registered after the capture's own hook, so it runs after the last state is kept.
            stack.callback(block.register_forward_hook(stop).remove)
        stack.enter_context(suppress(_Deepest))
        model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False)
    return {layer: states[layer] for layer in sorted(states)}


def _sharded(model: nn.Module) -> bool:
    names = ("FullyShardedDataParallel", "FSDPModule")
    return any(kind.__name__ in names for module in model.modules() for kind in type(module).mro())


@torch.no_grad()
def capture_objects(
    model: MiniGPT3D,
    targets: Tensor,
    prefix: Encoded,
    layers: Sequence[int],
    writer: RunWriter,
    variant: str,
    *,
    step: int | None = None,
    verify: bool = True,
    share: tuple[int, int] = (0, 1),
) -> Proofs:
    """Append the point tokens of all objects to the store, going on where it was stopped.

    model   : in eval mode
    targets : Q-Former outputs, (objects, queries, width), in the order of the store's samples
    prefix  : the tokens up to the last point token, the same for every object
    step    : of a variant that is captured several times while it trains
    verify  : prove the capture before anything is stored, see `train.verify`
    share   : number of this process, and how many there are: each appends its own rows

    Returns the proofs, none without `verify`. Raises CaptureError with the proof that fails.
    """
    from train.background import in_background
    from train.progress import track
    from train.verify import verify_capture

    device = next(model.parameters()).device
    span = slice(prefix.point_start, prefix.point_start + prefix.points)

    def embed(shown: Tensor) -> Tensor:
        batch = collate([prefix] * len(shown), pad_id=0)  # equally long: nothing is padded
        return model.embed(batch.to(device), shown)

    def write(rows: slice, arrays: dict[str, Any]) -> None:
        writer.append(variant, rows, arrays["states"], step=step)

    proofs: Proofs = {}
    pending = list(writer.pending(variant, *share, step=step))
    total = len(range(share[0], -(-len(targets) // writer.chunk), share[1]))
    label = f"capture {variant}" if step is None else f"capture {variant} {step}"
    if verify and pending:
        shown = two_or_more(targets).to(device)
        embeds, points = embed(shown), entering(model, shown)
        with model.mixed():
            proofs = verify_capture(model.llm, embeds, span, layers, entering=points)
    with in_background(write, writer.chunk, writer.held) as batches:
        keep = partial(batches.keep, "states")
        for rows in track(pending, label, total=total, completed=total - len(pending)):
            embeds = embed(targets[rows].to(device))
            with model.mixed():
                short_forward(model.llm, embeds, layers, span, keep=keep)
            batches.put(rows)
    return proofs


def entering(model: MiniGPT3D, targets: Tensor) -> Tensor:
    """The projector's output as it enters the LLM, whose embeddings may be of half precision."""
    from train.models.llm import bare

    return model.projector(targets).to(bare(model.llm).get_input_embeddings().weight.dtype)


def two_or_more(values: Any, most: int = 3) -> Any:
    """The first samples of an array or tensor, to verify on; an only one stands there twice."""
    return values[:most] if len(values) > 1 else values[[0, 0]]


def main(config: CaptureConfig) -> None:
    """Capture a model's layers for the objects of a data set."""
    from train.capture_job import capture

    capture(config)


if __name__ == "__main__":
    run(main, read_config({"nano": CaptureConfig()}))
