"""What do point tokens say in words? Logit lens, tuned lens and nearest captions, by layer.

States are read as if they stood behind the last block: through the model's final norm and head
(nostalgebraist 2020), or through an affine map per layer before these, fitted on text (Belrose et
al. 2023, arXiv:2303.08112). A name of several tokens stands for its first. The contextual lens
looks for the caption token whose state in the same layer is nearest (LatentLens).

`lens` makes a Dataset. Each NAME_mean has NAME_low and NAME_high, 95 % intervals over objects, or
over texts, which are of an object each:

variable               | over variant, and    | meaning
-----------------------|----------------------|--------------------------------------------------
log_probability_mean   | lens, layer          | nats, of the word of the object's class, mean
                       |                      | over its tokens; higher is better
advantage_mean         | lens, layer          | the same less the mean over the words of other
                       |                      | classes: 0 is chance, higher is better
rank_mean              | lens, layer          | rank of the class word among all tokens, a
                       |                      | geometric mean; 1 is the most probable
entropy_mean           | lens, layer          | nats of the lens' distribution; 0 is certain
log_probability,       | lens, layer, object  | of each object: the means are means of these
advantage, entropy     |                      |
log_rank               | lens, layer, object  | of each object: rank_mean is e to their mean
top_word, top_share    | lens, layer, place   | words most often on top; share of point tokens
word                   | lens, layer, object, | row of `vocabulary` that is on top
                       | token                |
kl_mean                | lens, layer          | nats from the model's own next-token distribution
                       |                      | on held-out text, over its conversations (`text`),
                       |                      | of fewer than 6 without ends; lower is better
kl                     | lens, layer, text    | of each conversation, a mean over its tokens
caption_match_mean     | layer                | share of point tokens whose nearest caption token
                       |                      | is of their class; higher is better
caption_match_shuffled | layer                | the same where captions swap their classes
caption_match          | layer, object        | of each object
nearest_caption        | layer, object, token | row of `caption`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

from probe.controls import shuffled_labels
from probe.intervals import Interval, bootstrap

LENSES = ("logit", "tuned")
NUMBERS_AT_ONCE = 2**24  # logits held in memory at a time
HELD_OUT = 5  # one conversation in so many is kept from the fit of the tuned lens
FEW = 6  # texts: resamples of fewer hold the truth in less than 9 of 10
STEPS = 200
BATCH = 128
RATE = 2e-3
SHUFFLES = 20
UNITS = {
    "log_probability": "nats, of the word of the object's class; higher is better",
    "advantage": "nats more than the words of other classes; 0 is chance, higher is better",
    "rank": "rank of the class word among all tokens, geometric mean; 1 is the most probable",
    "log_rank": "log of the rank of the class word among all tokens; 0 is the most probable word",
    "entropy": "nats; 0 is certain of one word",
    "kl": "nats from the model's own next token on held-out text; lower is better",
    "caption_match": "share of point tokens; higher is better",
    "caption_match_shuffled": "share of point tokens, by chance",
    "nearest_caption": "row of caption",
    "word": "row of vocabulary",
    "top_share": "share of point tokens with this word on top",
}


class Reading(NamedTuple):
    """States read as next-token distributions.

    top             : (samples, tokens, top) token ids, the most probable first
    log_probability : (samples, tokens, words) nats        rank : the same shape, 1 is on top
    entropy         : (samples, tokens) nats
    """

    top: np.ndarray
    log_probability: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray


@dataclass(frozen=True)
class Text:
    """States of the text in conversations, on which the tuned lens is fitted."""

    states: Tensor
    """(layers, tokens, dim)"""
    final: Tensor
    """(tokens, dim), the same tokens behind the last block."""
    of: np.ndarray
    """(tokens,), the conversation that each token belongs to."""


@dataclass(frozen=True)
class Captions:
    """States of the tokens of captions, each in its caption: the contextual lens' dictionary."""

    states: Tensor
    """(layers, tokens, dim)"""
    of: np.ndarray
    """(tokens,), the caption that each token belongs to."""
    labels: np.ndarray
    """(captions,), the class of each."""


def first_tokens(encode: Callable[[str], Sequence[int]], names: Sequence[str]) -> np.ndarray:
    """Token that begins each name in the middle of a sentence: the first of " " + name.

    Raises ValueError that names a name without one.
    """
    found = [encode(" " + name.replace("_", " ")) for name in names]
    if empty := [name for name, ids in zip(names, found, strict=True) if not ids]:
        raise ValueError(f"class {empty[0]!r} has no token: a lens can't look for it")
    return np.array([ids[0] for ids in found])


@torch.no_grad()
def logit_lens(
    hidden: Tensor,
    norm: nn.Module,
    head: nn.Module,
    words: Sequence[int] | np.ndarray = (),
    *,
    top: int = 5,
    translator: nn.Module | None = None,
) -> Reading:
    """Read states of one layer as words.

    hidden     : (samples, tokens, dim), before the final norm: it is applied once, here.
    norm, head : the model's, as `probe.patching.find_unembedding` finds them.
    words      : token ids to look for.
    translator : of the tuned lens; None for the plain one.
    """
    device = next(head.parameters()).device
    vocabulary = head(norm(hidden[:1, :1].to(device))).shape[-1]
    rows = max(1, NUMBERS_AT_ONCE // (hidden.shape[1] * vocabulary))
    wanted = torch.as_tensor(np.asarray(words, np.int64), device=device)
    parts = []
    for chunk in hidden.split(rows):
        chunk = chunk.to(device)
        logits = head(norm(chunk if translator is None else translator(chunk)))
        spread = logits.float().log_softmax(-1)
        found = spread[..., wanted].contiguous()
        ascending = spread.sort(-1).values
        rank = spread.shape[-1] - torch.searchsorted(ascending, found, right=True) + 1
        entropy = -(spread.exp() * spread).sum(-1)
        parts.append((spread.topk(top, -1).indices, found, rank, entropy))
    return Reading(*(torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)))


class Translator(nn.Linear):
    """h -> h + A h + b, the identity at first."""

    def __init__(self, dim: int):
        super().__init__(dim, dim)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + super().forward(hidden)


def tuned_lens(
    text: Text,
    norm: nn.Module,
    head: nn.Module,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> Iterator[tuple[Translator, np.ndarray]]:
    """For each layer a translator, which makes its lens say what the model will say.

    Minimises KL(model's next-token distribution || lens) by Adam at a falling rate (Belrose et al.
    use SGD) on four conversations in five. Norm and head stay as they are.

    Yields the translator and the KL in nats of each conversation of `held_out`, a mean over its
    tokens, (2, conversations): of the logit lens and of the tuned one. Raises ValueError for fewer
    than five conversations.
    """
    kept_out = held_out(text, seed)
    held = torch.from_numpy(np.isin(text.of, kept_out))
    of = np.searchsorted(kept_out, text.of[held.numpy()])
    device = next(head.parameters()).device
    told = text.final.float()
    for states in text.states:
        states = states.float()
        draw = torch.Generator().manual_seed(seed)  # the same tokens in the same order each layer
        translator = Translator(states.shape[-1]).to(device)
        weights = list(translator.parameters())
        optimizer = torch.optim.Adam(weights, lr=RATE)
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)
        before = _of_each(translator, states[held], told[held], of, norm, head)
        learnt = torch.nonzero(~held)[:, 0]
        for _ in range(steps):
            rows = learnt[torch.randint(len(learnt), (BATCH,), generator=draw)]
            loss = _divergence(translator, states[rows], told[rows], norm, head).mean()
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = slope
            optimizer.step()
            falling.step()
        after = _of_each(translator, states[held], told[held], of, norm, head)
        yield translator.requires_grad_(False), np.array([before, after])


def held_out(text: Text, seed: int = 0) -> np.ndarray:
    """Conversations that `tuned_lens` keeps from its fit, one in five, ascending."""
    conversations = np.unique(text.of)
    if len(conversations) < HELD_OUT:
        raise ValueError(
            f"{len(conversations)} conversations: a tuned lens needs {HELD_OUT} or more"
        )
    return np.sort(np.random.default_rng([seed, 9]).permutation(conversations)[::HELD_OUT])


def _divergence(
    translator: Translator, states: Tensor, told: Tensor, norm: nn.Module, head: nn.Module
) -> Tensor:
    """KL in nats of the lens from the model's own distribution, (tokens,). states (tokens, dim)."""
    device = next(head.parameters()).device
    with torch.no_grad():
        own = head(norm(told.to(device))).float().log_softmax(-1)
    seen = head(norm(translator(states.to(device)))).float().log_softmax(-1)
    return F.kl_div(seen, own, reduction="none", log_target=True).sum(-1)


@torch.no_grad()
def _of_each(
    translator: Translator,
    states: Tensor,
    told: Tensor,
    of: np.ndarray,
    norm: nn.Module,
    head: nn.Module,
) -> np.ndarray:
    """Mean `_divergence` of each conversation, (conversations,), from few tokens at a time.

    of : (tokens,), the number of each one's conversation
    """
    vocabulary = head(norm(told[:1].to(next(head.parameters()).device))).shape[-1]
    rows = max(1, NUMBERS_AT_ONCE // vocabulary)
    pieces = zip(states.split(rows), told.split(rows), strict=True)
    every = torch.cat([_divergence(translator, a, b, norm, head).cpu() for a, b in pieces])
    return np.bincount(of, every.double().numpy()) / np.bincount(of)


def nearest_captions(hidden: Tensor, bank: Tensor) -> np.ndarray:
    """Caption token next to each point token in one layer: rows of the bank, (samples, tokens).

    hidden : (samples, tokens, dim)    bank : (entries, dim), caption tokens in their context

    By cosine, as LatentLens does, but with the mean of either set taken off: what all point tokens
    have in common says nothing about one of them.
    """
    points = F.normalize((hidden - hidden.mean(dim=(0, 1))).float(), dim=-1)
    captions = F.normalize((bank - bank.mean(dim=0)).float(), dim=-1)
    rows = max(1, NUMBERS_AT_ONCE // (hidden.shape[1] * len(bank)))
    return torch.cat([(part @ captions.T).argmax(-1) for part in points.split(rows)]).numpy()


def read_model(
    points: Tensor,
    labels: np.ndarray,
    words: np.ndarray,
    text: Text,
    captions: Captions,
    norm: nn.Module,
    head: nn.Module,
    *,
    top: int = 5,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, np.ndarray]:
    """All readings of one model, for `lens`.

    points : (layers, objects, tokens, dim)    labels : (objects,), rows of `words`
    words  : (classes,), the token of each class

    Returns arrays by name, with the dimensions of the table above without `variant`, where words
    are still token ids; and `held_out`, the conversations that `kl` is of.
    """
    shuffled = shuffled_labels(captions.labels, shuffles=SHUFFLES, seed=seed)
    own = np.asarray(labels)[:, None]
    rows: dict[str, list] = {}
    for place, (translator, kl) in enumerate(tuned_lens(text, norm, head, seed=seed)):
        seen = [
            _of_one(
                logit_lens(points[place], norm, head, words, top=top, translator=each),
                labels,
                words,
                top,
            )
            for each in (None, translator)
        ]
        near = captions.of[nearest_captions(points[place], captions.states[place])]
        found = {name: np.stack([one[name] for one in seen]) for name in seen[0]} | {
            "kl": kl,
            "nearest_caption": near.astype(np.int32),
            "caption_match": (captions.labels[near] == own).mean(axis=1),
            "caption_match_shuffled": np.asarray((shuffled[:, near] == own).mean()),
        }
        for name, values in found.items():
            rows.setdefault(name, []).append(values)
        if progress is not None:
            progress(place + 1, len(points), "")
    both = [*seen[0], "kl"]  # these have a leading axis of the two lenses: it goes before layers
    found = {n: np.stack(v, axis=1 if n in both else 0) for n, v in rows.items()}
    return found | {"held_out": held_out(text, seed)}


def lens(
    found: Mapping[str, Mapping[str, np.ndarray]],
    *,
    layers: Sequence[int],
    objects: Sequence[str],
    vocabulary: Sequence[str],
    captions: Sequence[str],
    texts: Sequence[str],
    seed: int = 0,
) -> xr.Dataset:
    """Readings of all models with their intervals over objects: the table above.

    found : variant -> its `read_model`        objects : ids, (objects,)
    vocabulary : the text of each token        captions : of the contextual lens
    texts : the name of each conversation that the tuned lens is fitted or held against
    """
    stacked = {
        name: np.stack([each[name] for each in found.values()])
        for name in next(iter(found.values()))
    }
    results = xr.Dataset(
        coords={
            "variant": list(found),
            "lens": list(LENSES),
            "layer": list(layers),
            "object": list(objects),
            "vocabulary": list(vocabulary),
            "caption": list(captions),
            "text": [texts[row] for row in next(iter(found.values()))["held_out"]],
        },
        attrs={"level": 0.95, "seed": seed},
    )
    each = ("variant", "lens", "layer")
    for name in ("log_probability", "advantage", "log_rank", "entropy"):
        _add_means(results, name, each, stacked[name], seed)
    for part in ("mean", "low", "high"):  # back from the log, in which ranks are averaged
        results[f"rank_{part}"] = np.exp(results[f"log_rank_{part}"])
        results = results.drop_vars(f"log_rank_{part}")
    _add_means(results, "caption_match", ("variant", "layer"), stacked["caption_match"], seed)
    results["caption_match_shuffled"] = (("variant", "layer"), stacked["caption_match_shuffled"])
    results["nearest_caption"] = (
        ("variant", "layer", "object", "token"),
        stacked["nearest_caption"],
    )
    results["word"] = ((*each, "object", "token"), stacked["word"])
    results["top_word"] = ((*each, "place"), np.asarray(vocabulary)[stacked["top_word"]])
    results["top_share"] = ((*each, "place"), stacked["top_share"])
    if stacked["kl"].shape[-1] < FEW:
        nothing = np.full(stacked["kl"].shape[:-1], np.nan)
        missed = Interval(stacked["kl"].mean(axis=-1), nothing, nothing)
    else:
        missed = bootstrap(stacked["kl"], seed=seed)
    _add(results, "kl", (*each, "text"), stacked["kl"], missed)
    for name, units in UNITS.items():
        for variable in (name, f"{name}_mean", f"{name}_low", f"{name}_high"):
            if variable in results:
                results[variable].attrs["units"] = units
    return results


def findings(results: xr.Dataset) -> list[str]:
    """What the results show, a sentence for each model."""
    said = []
    for variant in results.variant.values.astype(str):
        one = results.sel(variant=variant, lens="tuned")
        clear = one.layer.values[(one.advantage_low > 0).values]
        best = one.isel(layer=int(one.advantage_mean.argmax("layer")))
        words = ", ".join(repr(word.strip()) for word in best.top_word.values[:3])
        if not len(clear):
            said.append(f"{variant}: no layer's point tokens name their class beyond chance.")
            continue
        mean, low, high = (float(best[f"advantage_{part}"]) for part in Interval._fields)
        near = one.isel(layer=int(one.caption_match_mean.argmax("layer")))
        match, least, most = (100 * float(near[f"caption_match_{p}"]) for p in Interval._fields)
        by_chance = 100 * float(near.caption_match_shuffled)
        said.append(
            f"{variant}: through the tuned lens point tokens name their class beyond chance at "
            f"{len(clear)} of {one.sizes['layer']} layers, most at layer {int(best.layer)}: "
            f"{mean:.2f} [{low:.2f}, {high:.2f}] nats above other classes' words, rank "
            f"{float(best.rank_mean):.0f} of {one.sizes['vocabulary']}; most often on top: {words};"
            f" the caption nearest to a token is of its class for {match:.1f} [{least:.1f}, "
            f"{most:.1f}] % of the tokens at layer {int(near.layer)} (captions shuffled: "
            f"{by_chance:.1f} %)."
        )
    return said


def _of_one(
    reading: Reading, labels: np.ndarray, words: np.ndarray, top: int
) -> dict[str, np.ndarray]:
    """What a reading says of each object's class, means over its tokens: (samples,) each."""
    log_probability = reading.log_probability.mean(axis=1)  # (samples, words)
    own = log_probability[np.arange(len(labels)), labels]
    others = words[None] != words[labels][:, None]  # two classes may begin with one token
    rank = np.take_along_axis(reading.rank, np.asarray(labels)[:, None, None], 2)[..., 0]
    ids, counts = np.unique(reading.top[..., 0], return_counts=True)
    first = np.argsort(-counts, kind="stable")[:top]
    first = np.pad(first, (0, top - len(first)), mode="edge")  # fewer words than places
    return {
        "log_probability": own,
        "advantage": own - np.where(others, log_probability, 0).sum(1) / others.sum(1),
        "log_rank": np.log(rank).mean(axis=1),
        "entropy": reading.entropy.mean(axis=1),
        "word": reading.top[..., 0].astype(np.int32),
        "top_word": ids[first],
        "top_share": counts[first] / counts.sum(),
    }


def _add_means(
    results: xr.Dataset, name: str, dims: tuple[str, ...], values: np.ndarray, seed: int
) -> None:
    """Values of each object, and their means with intervals. values : (*dims, objects)."""
    _add(results, name, (*dims, "object"), values, bootstrap(values, seed=seed))


def _add(
    results: xr.Dataset, name: str, dims: tuple[str, ...], values: np.ndarray, found: Interval
) -> None:
    results[name] = (dims, values.astype(np.float32))
    for part, numbers in zip(found._fields, found, strict=True):
        results[f"{name}_{part}"] = (dims[:-1], numbers)
