"""What capturing 8 layers costs over the plain forward: python -m tests.benchmarks.bench_capture

Each way is run turn about with the plain forward, in one process on the same tokens, and the median
of the ratios is printed with its quartiles. Time is that of the processor on a CPU, where other
programs don't count, and that of the clock on a GPU. Beside ours stand `output_hidden_states=True`
and nnsight, where it is installed. TransformerLens is left out: it runs models of its own list
only, after converting their weights. Nothing is written.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from train.capture import capture_hidden_states, short_forward
from train.config import MODELS
from train.models.llm import bare, build_llm, hold_in

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
GOAL = 1.03
SAMPLES = {"nano": 16, "small": 8, "minigpt3d": 32 if CUDA else 1}


def ways(llm: Any, embeds: torch.Tensor, span: slice, layers: list[int]) -> dict[str, Callable]:
    """Name -> one pass; each returns what it keeps, on the device of the model."""

    def plain() -> list[torch.Tensor]:
        llm(inputs_embeds=embeds, use_cache=False)
        return []

    def ours() -> list[torch.Tensor]:
        with capture_hidden_states(llm, layers, span) as states:
            llm(inputs_embeds=embeds, use_cache=False)
        return list(states.values())

    def short() -> list[torch.Tensor]:
        return list(short_forward(llm, embeds[:, : span.stop], layers, span).values())

    def transformers() -> list[torch.Tensor]:
        output = llm(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
        return list(output.hidden_states)

    found = {"plain": plain, "plain again": plain, "ours": ours, "ours, short forward": short}
    found["output_hidden_states"] = transformers
    if importlib.util.find_spec("nnsight"):
        found["nnsight"] = nnsight(llm, embeds, span, layers)
    return found


def nnsight(llm: Any, embeds: torch.Tensor, span: slice, layers: list[int]) -> Callable:
    from nnsight import NNsight

    traced, blocks = NNsight(llm), len(llm.base_model.layers)

    def pass_through() -> list[torch.Tensor]:
        kept = []
        with traced.trace(inputs_embeds=embeds, use_cache=False):
            for layer in layers:
                assert 1 <= layer <= blocks
                kept.append(traced.model.layers[layer - 1].output[:, span].save())
        return kept

    return pass_through


def seconds(run: Callable) -> float:
    clock = time.perf_counter if CUDA else time.process_time
    if CUDA:
        torch.cuda.synchronize()
    begun = clock()
    run()
    if CUDA:
        torch.cuda.synchronize()
    return clock() - begun


@torch.no_grad()
def compare(preset: str, rounds: int) -> None:
    sizes = MODELS[preset]
    llm = build_llm(sizes).eval()
    if CUDA:
        hold_in(llm, torch.bfloat16)
    llm.to(DEVICE)
    layers = [sizes.llm_depth * part // 8 for part in range(1, 9)]
    samples, tokens, span = SAMPLES[preset], 112, slice(8, 8 + sizes.queries)
    torch.manual_seed(0)
    embeds = torch.randn(samples, tokens, sizes.llm_width, device=DEVICE)
    embeds = embeds.to(bare(llm).dtype if CUDA else torch.float32)
    found = ways(llm, embeds, span, layers)
    print(f"{preset}: {samples} samples of {tokens} tokens, layers {layers}, on {DEVICE}")
    with torch.autocast("cuda", torch.bfloat16, enabled=CUDA):
        for run in found.values():
            run()
        ratios: dict[str, list[float]] = {name: [] for name in found if name != "plain"}
        for at in range(rounds):
            for name in ratios:
                first, second = ("plain", name) if at % 2 else (name, "plain")
                took = {which: seconds(found[which]) for which in (first, second)}
                ratios[name].append(took[name] / took["plain"])
        for name, values in ratios.items():
            low, middle, high = np.percentile(values, [25, 50, 75])
            kept = sum(t.untyped_storage().nbytes() for t in found[name]()) / 2**20
            goal = f"  goal {GOAL}" if name == "ours" else ""
            print(f"  {name:22} {middle:.3f} ({low:.3f} to {high:.3f}), {kept:.1f} MiB kept{goal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", default=["nano"], help="nano, small, minigpt3d")
    parser.add_argument("--rounds", type=int, default=25)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for preset in chosen.presets:
        compare(preset, chosen.rounds)


if __name__ == "__main__":
    main()
