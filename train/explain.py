"""Lenses and causes of a finished run: python -m train.explain RUN.

What do the point tokens of each model say in words, layer by layer, and does the model still use
them? Results go into the run, as its probes "lens" and "causal".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import tyro
from tyro.conf import Positional

from train.cli import fail, run
from train.config import TRAINED, parse_layers

if TYPE_CHECKING:
    import xarray as xr

    from store.reader import Run

PROBES = ("lens", "causal")
GALLERY = 240
"""Gallery objects at most, on which means, the tuned lens and the captions are based."""
Progress = Callable[[int, int, str], None]
Found: TypeAlias = "tuple[xr.Dataset, list[str]]"


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Read point tokens as words, and change them to see whether the answer does."""

    run: Positional[Path]
    """Folder of a finished run of stage 2."""
    probes: str = "lens,causal"
    """What to do, a list of lens and causal."""
    variants: str = "all"
    """Captured models to explain: all, or a list as baseline,aligned."""
    objects: int = 120
    """Query objects, equally many of each class; two at least, so few leave out classes."""
    layers: str = ""
    """Layers as 0,4,...,32 or all; by default those captured. 0 and the last are always read."""
    answer: Literal["class", "caption"] = "class"
    """The answer whose probability is measured: the class of the object, or its caption."""
    stage1: Path | None = None
    """Where the weights that the run began with are now, if they have moved."""
    seed: int = 0
    """Seeds the choice of objects, the tuned lens and the intervals."""

    def __post_init__(self):
        if self.objects < 4:
            raise ValueError(f"--objects {self.objects}: two of two classes, so 4 or more")
        if wrong := [name for name in self.wanted if name not in PROBES]:
            raise ValueError(f"--probes {wrong[0]!r}: a list of {' and '.join(PROBES)}")

    @property
    def wanted(self) -> list[str]:
        """The probes, by name."""
        return [name.strip() for name in self.probes.split(",")]

    def chosen(self, captured: Run) -> list[str]:
        """The captured models asked for; ValueError for one that the run does not have."""
        names = [name.strip() for name in self.variants.split(",")]
        if names == ["all"]:
            return list(captured.variants)
        if wrong := [name for name in names if name not in captured.variants]:
            raise ValueError(
                f"--variants {wrong[0]!r}: {captured.name} has {', '.join(captured.variants)}"
            )
        return names


def main(config: ExplainConfig) -> None:
    """Probe each model in turn, write the results into the run and say what they show."""
    from probe.other_tables import print_causes
    from probe.report import progress_bar
    from train.finished import captured_of

    begun = time.perf_counter()
    captured = captured_of(config.run)
    explained = Explained(config, captured)
    probes = {"lens": explained.lens, "causal": explained.causal}
    with progress_bar() as show:
        for name in config.wanted:
            results, said = probes[name](show)
            captured.write_probe(name, results.assign_attrs(explained.about))
            if name == "causal":
                print_causes(results)
            for sentence in said:
                print(f"• {sentence}")
    objects, seconds = len(explained.query.ids), time.perf_counter() - begun
    print(f"{objects} query objects; results are in {captured.name}; took {seconds:.0f} s")


class Explained:
    """The objects, layers and models of one run, and what the two probes find in them."""

    def __init__(self, config: ExplainConfig, captured: Run):
        from train.finished import began_with, describe, recorded
        from train.start import model_sizes

        self.config, self.variants = config, config.chosen(captured)
        depth = model_sizes(began_with(recorded(config.run), config.stage1)).llm_depth
        asked = parse_layers(config.layers, depth) if config.layers else captured.layers
        self.layers = sorted({0, *asked, depth})
        answer, seed = config.answer, config.seed
        self.query = describe(captured, "query", config.objects, answer, seed)
        self.gallery = describe(captured, "gallery", GALLERY, answer, seed)
        self.about = {"run": config.run.name, "answer": answer, "question": self.query.question}

    def lens(self, show: Progress) -> Found:
        """Results of `probe.lens`, and what they show in words."""
        from probe import lens
        from probe.patching import find_unembedding, states_at
        from train.finished import ask, caption_states, encode_ids, text_states, vocabulary

        found = {}
        for variant in self.variants:
            model, tokenizer = self._load(variant)
            names = self.query.class_names
            words = lens.first_tokens(partial(encode_ids, tokenizer), names)
            with model.mixed():
                asked, others = (ask(model, tokenizer, each) for each in (self.query, self.gallery))
                states = states_at(model.llm, asked, asked.point_mask, self.layers)
                shape = (len(self.layers), len(asked), -1, states.shape[-1])
                found[variant] = lens.read_model(
                    states.view(shape),
                    self.query.labels,
                    words,
                    text_states(model, others, self.layers),
                    caption_states(model, tokenizer, self.gallery, self.layers),
                    *find_unembedding(model.llm, asked.embeds[:1]),
                    seed=self.config.seed,
                    progress=_named(show, f"lens {variant}"),
                )
        results = lens.lens(
            found,
            layers=self.layers,
            objects=self.query.ids,
            vocabulary=vocabulary(model, tokenizer),
            captions=self.gallery.captions,
            texts=self.gallery.ids,
            seed=self.config.seed,
        )
        return results, lens.findings(results)

    def causal(self, show: Progress) -> Found:
        """Results of `probe.causal`, and what they show in words."""
        from probe import causal
        from train.finished import ask

        both = set(TRAINED) <= set(self.variants)
        seed, labels = self.config.seed, self.query.labels
        found, states, moved = {}, {}, {}
        for variant in self.variants:
            model, tokenizer = self._load(variant)
            with model.mixed():
                asked = ask(model, tokenizer, self.query)
                means = causal.mean_states(model.llm, ask(model, tokenizer, self.gallery))
                bar = _named(show, f"causes {variant}")
                found[variant] = causal.effects(
                    model.llm, asked, labels, means, self.layers, seed=seed, progress=bar
                )
                if both and variant in TRAINED:
                    states[variant] = causal.point_states(model.llm, asked, self.layers)
        for into, giver in (TRAINED, TRAINED[::-1]) if both else ():
            model, tokenizer = self._load(into)
            bar = _named(show, f"transplant into {into}")
            with model.mixed():
                asked = ask(model, tokenizer, self.query)
                moved[into] = giver, causal.transplants(model.llm, asked, states[giver], bar)
        results = causal.causal(found, moved, objects=self.query.ids, seed=seed)
        return results, causal.findings(results)

    def _load(self, variant: str):
        from train.finished import load_variant

        return load_variant(self.config.run, variant, self.config.stage1)


def _named(show: Progress, what: str) -> Progress:
    return lambda done, total, _: show(done, total, what)


def cli(arguments: list[str] | None = None) -> None:
    """Run the command line, `sys.argv` when None; a wrong call ends it with code 2."""
    try:
        config = tyro.cli(
            ExplainConfig, prog="python -m train.explain", description=__doc__, args=arguments
        )
    except ValueError as error:
        fail(str(error), 2)
    run(main, config)


if __name__ == "__main__":
    cli()
