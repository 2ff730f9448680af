"""Proofs that a capture holds what it says, made before its first sample is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.capture import (
    branch,
    capture_hidden_states,
    short_forward,
    transformer_blocks,
    unwrapped,
)

Proofs = dict[str, str]
FOLLOWING = 3
"""Tokens put behind the point tokens, to see that a causal model does not look ahead."""


class CaptureError(RuntimeError):
    """A capture that can't prove itself right; the message begins with the name of the proof."""


class _OnPurpose(Exception):
    """Raised inside a capture, to see that it comes out and leaves no hook behind."""


@dataclass(frozen=True)
class Plain:
    """What the model gives when nothing of ours is attached to it."""

    logits: Tensor
    """(samples, tokens, vocabulary)"""
    states: tuple[Tensor, ...]
    """transformers' own hidden states: layer 0 to depth, the last behind the final norm."""


@torch.no_grad()
def verify_capture(
    model: nn.Module,
    inputs_embeds: Tensor,
    positions: Tensor | slice,
    layers: Sequence[int],
    *,
    entering: Tensor | None = None,
    attention_mask: Tensor | None = None,
    sites: Sequence[str] = ("resid",),
    capture: Callable[..., dict[int, Tensor]] = short_forward,
    hooks: Callable = capture_hidden_states,
) -> Proofs:
    """Prove a capture on a few samples; {name of the proof: what was seen}.

    model          : a causal language model of transformers, bare or wrapped.
    inputs_embeds  : (samples, tokens, dim), two samples or more that differ.
    positions      : which tokens the capture keeps, as in `capture_hidden_states`.
    layers         : layers that will be captured; those at both ends are proven with them.
    entering       : (samples, points, dim), what the projector gave, to be found at `positions`.
    attention_mask : (samples, tokens), 0 at padding.
    sites          : as in `train.capture.SITES`; branches must add up to what a block adds.
    capture, hooks : what is on trial, called as the functions that are the defaults.

    What is compared are passes over the same numbers in the same shape, so they must agree bit for
    bit. Where shapes differ (one sample alone, tokens that follow) sums are rounded otherwise, and
    half of the digits must agree. Raises CaptureError with the first proof that fails.
    """
    model = unwrapped(model)
    mask = _as_mask(positions, inputs_embeds)
    if len(inputs_embeds) < 2:
        raise ValueError(f"{len(inputs_embeds)} sample to verify a capture on, it takes 2 or more")
    trial = _Trial(model, inputs_embeds, mask, attention_mask, capture, hooks)
    proofs: Proofs = {"eval": _check_eval(model)}
    plain, depth = trial.plain(), len(transformer_blocks(model))
    asked = sorted({0, *layers, depth})
    proofs["repeat"] = _check_repeat(plain, trial.plain())
    states = _run(trial, asked)
    kept = {layer: state.clone() for layer, state in states.items()}
    proofs["shape"] = _check_shape(states, plain, asked, mask)
    proofs["dtype"] = _check_dtype(states, plain)
    proofs["finite"] = _check_finite(states)
    proofs["layer 0"] = _check_entering(states, plain, trial, entering)
    proofs["indices"] = _check_indices(states, plain, mask, depth)
    proofs["last"] = _check_last(states, plain, trial, depth)
    proofs["fresh"] = _check_fresh(states, kept, trial, asked)
    proofs["batch"] = _check_batch(states, trial, asked)
    proofs["copies"] = _check_copies(states, kept, trial, asked)
    proofs["short"] = _check_short(states, trial, asked, sorted(set(layers)))
    proofs["logits"] = _check_logits(plain, trial, asked)
    proofs["hooks"] = _check_hooks(trial, asked)
    proofs["errors"] = _check_errors(trial, asked)
    if set(sites) != {"resid"}:
        proofs["branches"] = _check_branches(trial, depth)
    _check_eval(model)  # the capture has left it so
    return proofs


@dataclass(frozen=True)
class _Trial:
    """The model, its input, and the two functions on trial."""

    model: nn.Module
    embeds: Tensor
    positions: Tensor
    attention: Tensor | None
    capture: Callable[..., dict[int, Tensor]]
    hooks: Callable

    def forward(self, embeds: Tensor | None = None, **more):
        embeds = self.embeds if embeds is None else embeds
        return self.model(
            inputs_embeds=embeds, attention_mask=self.attention, use_cache=False, **more
        )

    @property
    def rounding(self) -> float:
        return _rounding(self.model, self.embeds.device.type)

    @property
    def half_the_digits(self) -> float:
        """Rounding stays below it, another layer, sample or prompt does not."""
        return self.rounding**0.5

    def plain(self) -> Plain:
        output = self.forward(output_hidden_states=True)
        states, depth = output.hidden_states or (), len(transformer_blocks(self.model))
        if len(states) != depth + 1:
            raise CaptureError(
                f"indices: {type(self.model).__name__} returns {len(states)} hidden states of "
                f"{depth} blocks, wanted {depth + 1} to compare with"
            )
        return Plain(output.logits, states)


def verify_pooled(
    model: nn.Module, pooled: Tensor, alone: Sequence[Tensor], layers: Sequence[int]
) -> str:
    """Prove means over tokens: among other samples, with padding, and of a sample alone, without.

    pooled : (layers, samples, 1, dim), as they will be stored.
    alone  : of each sample (layers, tokens, dim), the states that its mean is over.

    Returns what was seen; CaptureError with the layer and the sample that differ.
    """
    bound, worst = _rounding(model, pooled.device.type) ** 0.5, 0.0
    for row, states in enumerate(alone):
        for mean, each, layer in zip(pooled[:, row, 0], states, layers, strict=True):
            worst = max(worst, apart := _apart(mean, each.float().mean(dim=0)))
            if apart > bound:
                raise CaptureError(
                    f"pool: layer {layer} of sample {row} is not the mean over its {len(each)} "
                    f"tokens when the sample is alone ({apart:.2g} of its size)"
                )
    return f"means of samples alone, {_agreement(worst)}"


def verify_padded(
    model: nn.Module, padded: Tensor, alone: Sequence[Tensor], layers: Sequence[int]
) -> str:
    """Prove tokens of samples with different numbers of them: each has its own, before zeros.

    padded : (layers, samples, tokens, dim), as they will be stored.
    alone  : of each sample (layers, own tokens, dim), when it passes alone, without padding.

    Returns what was seen; CaptureError with the layer and the sample that differ.
    """
    bound, worst = _rounding(model, padded.device.type) ** 0.5, 0.0
    for row, states in enumerate(alone):
        for kept, each, layer in zip(padded[:, row], states, layers, strict=True):
            worst = max(worst, apart := _apart(kept[: len(each)], each))
            if apart > bound or kept[len(each) :].any():
                raise CaptureError(
                    f"padding: layer {layer} of sample {row} is not its {len(each)} tokens of when "
                    f"the sample is alone, and zeros behind them ({apart:.2g} of their size)"
                )
    return f"tokens of samples alone, {_agreement(worst)}"


def _rounding(model: nn.Module, device: str) -> float:
    """Relative error of one operation, in the coarsest precision that the model computes in."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def _run(trial: _Trial, layers: Sequence[int]) -> dict[int, Tensor]:
    return trial.capture(
        trial.model, trial.embeds, layers, trial.positions, attention_mask=trial.attention
    )


def _check_eval(model: nn.Module) -> str:
    if training := [
        name or "the model" for name, module in model.named_modules() if module.training
    ]:
        raise CaptureError(
            f"eval: {training[0]} and {len(training) - 1} more modules are in training mode, so "
            "dropout may be on; call .eval() before a capture"
        )
    return "every module evaluates"


def _check_repeat(plain: Plain, again: Plain) -> str:
    if not torch.equal(plain.logits, again.logits):
        raise CaptureError(
            "repeat: two passes over the same samples give different logits, so something in the "
            "model draws random numbers"
        )
    return "two passes agree bit for bit"


def _check_shape(
    states: dict[int, Tensor], plain: Plain, asked: Sequence[int], mask: Tensor
) -> str:
    if sorted(states) != list(asked):
        raise CaptureError(
            f"shape: layers {sorted(states)} came back, {list(asked)} were asked for"
        )
    for layer, state in states.items():
        dim = plain.states[min(layer, len(plain.states) - 2)].shape[-1]
        expected = (len(mask), int(mask[0].sum()), dim)
        if tuple(state.shape) != expected:
            raise CaptureError(
                f"shape: layer {layer} has {tuple(state.shape)}, expected {expected} "
                "(sample, token, dim)"
            )
    return "(sample, token, dim) = " + str(expected)


def _check_dtype(states: dict[int, Tensor], plain: Plain) -> str:
    for layer, state in states.items():
        wanted = plain.states[min(layer, len(plain.states) - 2)].dtype
        if state.dtype != wanted:
            raise CaptureError(
                f"dtype: layer {layer} is {state.dtype}, the model has {wanted} there"
            )
    return str(state.dtype).removeprefix("torch.")


def _check_finite(states: dict[int, Tensor]) -> str:
    for layer, state in states.items():
        if not state.isfinite().all():
            raise CaptureError(
                f"finite: layer {layer} holds {int((~state.isfinite()).sum())} values that are NaN "
                "or infinite"
            )
    return f"up to {max(float(state.abs().max()) for state in states.values()):.4g}"


def _check_entering(
    states: dict[int, Tensor], plain: Plain, trial: _Trial, entering: Tensor | None
) -> str:
    """The projector's tokens enter at the positions, and layer 0 is what the model makes of it."""
    given = _pick(trial.embeds, trial.positions)
    if entering is not None and entering.shape != given.shape:
        raise CaptureError(
            f"layer 0: the projector gives {tuple(entering.shape)}, the point positions hold "
            f"{tuple(given.shape)} (sample, token, dim)"
        )
    if entering is not None and not torch.equal(given, entering.to(given.dtype)):
        rows = (given != entering.to(given.dtype)).flatten(1).any(dim=1).nonzero()[:, 0].tolist()
        raise CaptureError(
            f"layer 0: what enters at the point positions is not the projector's output in samples "
            f"{rows}; the positions are not those of the point tokens"
        )
    if not torch.equal(states[0], _pick(plain.states[0], trial.positions)):
        raise CaptureError("layer 0: the state is not what enters block 1 at the point positions")
    if plain.states[0].shape == trial.embeds.shape and torch.equal(plain.states[0], trial.embeds):
        return "the projector's output, bit for bit"
    return "the projector's output, after what this model adds to it before block 1"


def _check_indices(states: dict[int, Tensor], plain: Plain, mask: Tensor, depth: int) -> str:
    theirs = {layer: _pick(plain.states[layer], mask) for layer in range(depth)}
    for layer in sorted(set(states) - {depth}):
        if torch.equal(states[layer], theirs[layer]):
            continue
        same = [at for at, state in theirs.items() if torch.equal(states[layer], state)]
        what = f"layer {same[0]}" if same else "none of its layers"
        raise CaptureError(
            f"indices: layer {layer} is {what} of those that transformers returns, wanted {layer}"
        )
    return f"layers below {depth} are those of transformers, bit for bit"


def _check_last(states: dict[int, Tensor], plain: Plain, trial: _Trial, depth: int) -> str:
    """Final norm and head, applied to the raw last state of all tokens, are the model's logits."""
    with trial.hooks(trial.model, [depth]) as seen:
        trial.forward()
    raw = seen[depth]
    if not torch.equal(_pick(raw, trial.positions), states[depth]):
        raise CaptureError(f"last: layer {depth} is not what block {depth} gives at the positions")
    tail, read, scores = unembedding(trial)
    if not torch.equal(raw, read):
        raise CaptureError(
            f"last: layer {depth} is not what enters the final norm ({type(tail[0]).__name__})"
        )
    lens = raw
    for module in tail:
        lens = module(lens)
    if not torch.equal(lens, scores):
        raise CaptureError(
            f"last: final norm and head of layer {depth} differ from the model's logits by up to "
            f"{float((lens - scores).abs().max()):.3g}"
        )
    scaled = "" if torch.equal(scores, plain.logits) else ", before the model scales them"
    return f"{' and '.join(type(module).__name__ for module in tail)} give the logits{scaled}"


def unembedding(trial: _Trial) -> tuple[list[nn.Module], Tensor, Tensor]:
    """What runs behind the last block, in order (norm, head); what enters it and what leaves it."""
    blocks = transformer_blocks(trial.model)
    inside = set(blocks.modules())
    tail: list[nn.Module] = []
    seen: dict[str, Tensor] = {}

    def leave(*_):
        seen["behind"] = torch.ones(())

    def enter(module, args):
        if "behind" in seen and not any(module in other.modules() for other in tail):
            tail.append(module)
            seen.setdefault("first", args[0])

    def result(module, _args, output):
        if tail and module is tail[-1]:
            seen["last"] = output

    handles = [blocks[-1].register_forward_hook(leave)]
    for module in trial.model.modules():
        if module not in inside:
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(result))
    try:
        trial.forward()
    finally:
        for handle in handles:
            handle.remove()
    if not tail:
        raise CaptureError("last: no head runs behind the last block, so there is no lens")
    return tail, seen["first"], seen["last"]


def _check_batch(states: dict[int, Tensor], trial: _Trial, asked: Sequence[int]) -> str:
    """Each sample alone, without padding, has the states that it has among the others."""
    worst = 0.0
    for row in range(len(trial.embeds)):
        here = slice(row, row + 1)
        real = slice(None) if trial.attention is None else trial.attention[row].bool()
        alone = trial.capture(
            trial.model, trial.embeds[here, real], asked, trial.positions[here, real]
        )
        for layer in asked:
            apart = _apart(alone[layer], states[layer][here])
            worst = max(worst, apart)
            if apart > trial.half_the_digits:
                raise CaptureError(
                    f"batch: layer {layer} of sample {row} is another one when the sample is alone "
                    f"({apart:.2g} of its size)"
                )
    return _agreement(worst)


def _check_fresh(
    states: dict[int, Tensor], kept: dict[int, Tensor], trial: _Trial, asked: Sequence[int]
) -> str:
    """Other samples have other states, and do not change those that are already there."""
    back = trial.attention.flip(0) if trial.attention is not None else None
    turned = trial.capture(
        trial.model, trial.embeds.flip(0), asked, trial.positions.flip(0), attention_mask=back
    )
    for layer in asked:
        if not torch.equal(states[layer], kept[layer]):
            raise CaptureError(f"fresh: a later pass changes the states of layer {layer} before it")
        if _apart(turned[layer].flip(0), kept[layer]) > trial.half_the_digits:
            raise CaptureError(
                f"fresh: layer {layer} of samples in reversed order is not the reversed layer, so "
                "it holds states of another batch or mixes samples"
            )
    return "a second batch has its own states"


def _check_copies(
    states: dict[int, Tensor], kept: dict[int, Tensor], trial: _Trial, asked: Sequence[int]
) -> str:
    """States hold no more memory than their numbers, and what overwrites a block's output later
    does not reach them."""
    with trial.hooks(trial.model, asked, trial.positions) as seen:
        # The blocks' outputs are spoilt after the capture has seen them.
        handles = [
            block.register_forward_hook(_spoil) for block in transformer_blocks(trial.model)[-1:]
        ]
        try:
            trial.forward()
        finally:
            for handle in handles:
                handle.remove()
    for layer in asked:
        if not torch.equal(seen[layer], kept[layer]):
            raise CaptureError(
                f"copies: layer {layer} changes when the model overwrites its block's output later"
            )
        for state in (states[layer], seen[layer]):
            if state.requires_grad:
                raise CaptureError(f"copies: layer {layer} keeps the graph of its pass alive")
            size = state.numel() * state.element_size()
            if (held := state.untyped_storage().nbytes()) > size:
                raise CaptureError(
                    f"copies: layer {layer} is a view that keeps {held} bytes alive for {size}"
                )
    return "each state has memory of its own"


def _spoil(_block, _args, output):
    hidden = output[0] if isinstance(output, tuple | list) else output
    hidden.zero_()


def _check_short(
    states: dict[int, Tensor], trial: _Trial, asked: Sequence[int], layers: Sequence[int]
) -> str:
    """A pass that ends at the deepest layer that will be captured has the same states, and so has
    the full forward with tokens behind: the model is causal."""
    alone = _run(trial, layers)
    if wrong := [at for at in layers if at not in alone or not torch.equal(alone[at], states[at])]:
        raise CaptureError(f"short: layer {wrong[0]} is another one when no deeper one is captured")
    if trial.attention is not None:
        return "not asked: there is padding"
    longer = torch.cat([trial.embeds, trial.embeds[:, :FOLLOWING].flip(0)], dim=1)
    behind = torch.zeros_like(trial.positions[:, :1]).expand(
        -1, longer.shape[1] - trial.embeds.shape[1]
    )
    with trial.hooks(trial.model, asked, torch.cat([trial.positions, behind], dim=1)) as full:
        trial.forward(longer)
    worst = 0.0
    for layer in asked:
        worst = max(worst, apart := _apart(full[layer], states[layer]))
        if apart > trial.half_the_digits:
            raise CaptureError(
                f"short: layer {layer} changes when tokens follow ({apart:.2g} of its size), so "
                "the model is not causal or the short forward not the full one"
            )
    return _agreement(worst)


def _check_logits(plain: Plain, trial: _Trial, asked: Sequence[int]) -> str:
    with trial.hooks(trial.model, asked, trial.positions):
        during = trial.forward().logits
    after = trial.forward().logits
    for when, logits in (("while", during), ("after", after)):
        if not torch.equal(logits, plain.logits):
            raise CaptureError(
                f"logits: they are others {when} states are captured, by up to "
                f"{float((logits - plain.logits).abs().max()):.3g}; a hook changes the model"
            )
    return "bit-identical with hooks and without"


def _check_hooks(trial: _Trial, asked: Sequence[int]) -> str:
    before = _hooks(trial.model)
    with trial.hooks(trial.model, asked, trial.positions):
        during = _hooks(trial.model)
    _run(trial, asked)
    if (added := during - before) > len(asked):
        raise CaptureError(f"hooks: {added} hooks for {len(asked)} layers, one each is enough")
    if (left := _hooks(trial.model) - before) > 0:
        raise CaptureError(f"hooks: {left} hooks stay behind after a capture")
    return f"{added} hooks for {len(asked)} layers, none left"


def _check_errors(trial: _Trial, asked: Sequence[int]) -> str:
    """An error in a capture comes out of it, and takes the hooks along."""
    before = _hooks(trial.model)

    def fail(*_):
        raise _OnPurpose

    handle = transformer_blocks(trial.model)[0].register_forward_hook(fail)
    try:
        for name, pass_through in (
            ("hooks", lambda: _with_hooks(trial, asked)),
            ("capture", lambda: _run(trial, asked)),
        ):
            try:
                pass_through()
            except _OnPurpose:
                continue
            raise CaptureError(f"errors: the {name} on trial swallow an error of the model")
    finally:
        handle.remove()
    if (left := _hooks(trial.model) - before) > 0:
        raise CaptureError(f"errors: {left} hooks stay behind after an error")
    return "they come out and leave no hook behind"


def _with_hooks(trial: _Trial, asked: Sequence[int]) -> None:
    with trial.hooks(trial.model, asked, trial.positions):
        trial.forward()


def _check_branches(trial: _Trial, depth: int) -> str:
    """What the two branches give is what a block adds to the stream."""
    layers, worst = list(range(1, depth + 1)), 0.0
    with (
        trial.hooks(trial.model, [0, *layers], trial.positions) as stream,
        trial.hooks(trial.model, layers, trial.positions, site="attn") as attended,
        trial.hooks(trial.model, layers, trial.positions, site="mlp") as fed,
    ):
        trial.forward()
    for layer in layers:
        total = stream[layer - 1] + attended[layer] + fed[layer]
        worst = max(worst, apart := _apart(total, stream[layer]))
        if apart > 8 * trial.rounding:  # a few roundings: what is added is small
            block = transformer_blocks(trial.model)[layer - 1]
            names = [type(branch(block, site)).__name__ for site in ("attn", "mlp")]
            raise CaptureError(
                f"branches: block {layer} adds something else than {' and '.join(names)} give "
                f"({apart:.2g} of its size)"
            )
    return f"attention and feed-forward add up to the stream, {_agreement(worst)}"


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def _as_mask(positions: Tensor | slice, embeds: Tensor) -> Tensor:
    if isinstance(positions, Tensor):
        return positions.to(embeds.device)
    mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    mask[:, positions] = True
    return mask


def _pick(states: Tensor, mask: Tensor) -> Tensor:
    return states[mask].view(len(mask), -1, states.shape[-1])


def _apart(one: Tensor, other: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    if one.shape != other.shape:
        return float("inf")
    scale = other.abs().max().float().clamp_min(torch.finfo(torch.float32).tiny)
    return float((one - other).abs().max().float() / scale)


def _agreement(worst: float) -> str:
    return "bit for bit" if worst == 0 else f"to {worst:.1g} of their size, by rounding"
