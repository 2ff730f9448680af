"""What capturing 8 layers costs over the plain forward: python -m tests.benchmarks.bench_capture

Each way is run turn about with the plain forward, in one process on the same tokens, and the median
of the ratios is printed with its quartiles. Time is that of the processor on a CPU, where other
programs don't count, and that of the clock on a GPU. Beside ours stand `output_hidden_states=True`,
and nnsight and TransformerLens where they are installed; that all keep the same states is checked
first. Nothing is written: what is handed over, as `train.capture` does, is given up unseen.

TransformerLens (4.3) refuses MiniGPT-3D's Phi-2: its adapter knows no norms of queries and keys.
It stands in a second comparison, --llm llama, of a stock Llama of the same sizes. It turns the
attention of a model it wraps to the eager one, and so all others of that comparison have it, too.

Measured once each at nano size on one CPU thread, Phi-2 / Llama: ours 1.001 / 1.013 (goal 1.03),
output_hidden_states 1.034 / 1.051, nnsight 1.017 / 0.992, TransformerLens - / 1.204; the plain
forward over itself 1.002 / 1.002, with quartiles up to 0.016 from 1. Kept of 8 layers: 1.5 MiB,
21.7 (all layers), 5.2 and 5.2 (views of the whole sequence). Later, of Phi-2 alone: ours 1.007, and
with the layers handed over 1.006, where the plain forward over itself came to 1.016.

--memory compares peaks of whole processes at a size where a batch of states is 64 MiB, over one
that only passes (goal 1): keeping the states takes 0.87 batches more, storing them by the thread
that writes 0.88, on a disk that takes half a second for each layer 0.90, and in a bucket that does
0.88 (a server of the S3 protocol on this machine, where s3fs and moto are installed).
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
import torch
from transformers import LlamaForCausalLM

import store
from train.background import Batches, in_background
from train.capture import capture_hidden_states, short_forward
from train.config import MODELS, ModelConfig
from train.models.llm import bare, build_llm, hold_in, set_attention

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
GOAL = 1.03
SAMPLES = {"nano": 16, "small": 8, "minigpt3d": 32 if CUDA else 1}


def ways(
    llm: Any, embeds: torch.Tensor, span: slice, layers: list[int], batches: Batches
) -> dict[str, Callable]:
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

    def stored() -> list[torch.Tensor]:
        with capture_hidden_states(llm, layers, span, keep=partial(batches.keep, "states")):
            llm(inputs_embeds=embeds, use_cache=False)
        batches.put(slice(0, len(embeds)))
        return []

    found = {"plain": plain, "plain again": plain, "ours": ours, "ours, handed over": stored}
    found["ours, short forward"] = short
    found["output_hidden_states"] = transformers
    if importlib.util.find_spec("nnsight"):
        found["nnsight"] = nnsight(llm, embeds, span, layers)
    if not isinstance(bare(llm), LlamaForCausalLM):
        return found
    if importlib.util.find_spec("transformer_lens"):
        found["TransformerLens"] = transformer_lens(llm, embeds, span, layers)
    else:
        print("TransformerLens is not installed: left out")
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


def transformer_lens(llm: Any, embeds: torch.Tensor, span: slice, layers: list[int]) -> Callable:
    """Of a copy, since it is changed as it is wrapped."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    own = copy.deepcopy(llm)
    bridge = build_bridge_from_module(own, type(own).__name__, hf_config=own.config)
    names = [f"blocks.{layer - 1}.hook_out" for layer in layers]

    def pass_through() -> list[torch.Tensor]:
        _, cache = bridge.run_with_cache(embeds, names_filter=names, pos_slice=span)
        return [cache[name] for name in names]

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


def alike(kept: dict[str, list[torch.Tensor]], layers: list[int], span: slice) -> None:
    """Every way has kept what ours has, but for the last one's norm in that of transformers."""
    for name, states in kept.items():
        if name == "output_hidden_states":
            states = [states[layer][:, span] for layer in layers][:-1]
        for mine, its in zip(kept["ours"], states, strict=False):
            torch.testing.assert_close(its, mine, rtol=1e-3, atol=1e-3, msg=name)


@torch.no_grad()
def compare(preset: str, rounds: int, llm_type: Literal["phi-2", "llama"]) -> None:
    sizes = replace(MODELS[preset], llm_type=llm_type)
    llm = build_llm(sizes).eval()
    if llm_type == "llama":
        set_attention(llm, "eager")
    if CUDA:
        hold_in(llm, torch.bfloat16)
    llm.to(DEVICE)
    layers = [sizes.llm_depth * part // 8 for part in range(1, 9)]
    samples, tokens, span = SAMPLES[preset], 112, slice(8, 8 + sizes.queries)
    torch.manual_seed(0)
    embeds = torch.randn(samples, tokens, sizes.llm_width, device=DEVICE)
    embeds = embeds.to(bare(llm).dtype if CUDA else torch.float32)
    print(
        f"{preset}, {llm_type}: {samples} samples of {tokens} tokens, layers {layers}, on {DEVICE}"
    )

    def write(_rows: slice, arrays: dict[str, Any]) -> None:
        while next(arrays["states"], None) is not None:
            pass

    with (
        torch.autocast("cuda", torch.bfloat16, enabled=CUDA),
        in_background(write, samples) as batches,
    ):
        found = ways(llm, embeds, span, layers, batches)
        alike({name: run() for name, run in found.items()}, layers, span)
        ratios: dict[str, list[float]] = {name: [] for name in found if name != "plain"}
        for at in range(rounds):
            for name in ratios:
                first, second = ("plain", name) if at % 2 else (name, "plain")
                took = {which: seconds(found[which]) for which in (first, second)}
                ratios[name].append(took[name] / took["plain"])
        for name, values in ratios.items():
            low, middle, high = np.percentile(values, [25, 50, 75])
            kept = sum(t.untyped_storage().nbytes() for t in found[name]()) / 2**20
            kept_here = f", {kept:.1f} MiB kept" if kept else ""
            goal = f"  goal {GOAL}" if name in ("ours", "ours, handed over") else ""
            print(f"  {name:22} {middle:.3f} ({low:.3f} to {high:.3f}){kept_here}{goal}")


MEMORY = ("plain", "kept", "stored", "stored, slow disk", "stored, slow bucket")


def memory() -> None:
    """Peak memory of processes that only pass, keep 8 layers, and store them, beside one batch.

    Of a model 512 wide with batches of 128 objects, 64 MiB of states; what is freed is given back
    to the system at once, so that the peaks are of what was held.
    """
    freed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    batch, plain = 0.0, 0.0
    with bucket() as settings:
        for name in MEMORY:
            if "bucket" in name and not settings:
                print("s3fs or moto is not installed: no bucket")
                continue
            command = [sys.executable, "-m", __spec__.name, "--peak", name]
            told = subprocess.run(
                command, capture_output=True, check=True, env=os.environ | freed | settings
            )
            peak, batch = map(float, told.stdout.split())
            plain = plain or peak
            over = (peak - plain) / batch
            print(f"  {name:22} {peak:.0f} MiB, {over:+.2f} batches of {batch:.0f} MiB")


@contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """What tells a process where s3://runs is, on a server in a process of its own."""
    if not (importlib.util.find_spec("s3fs") and importlib.util.find_spec("moto")):
        yield {}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    null = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=null, stderr=null)
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.terminate()
        server.wait()


@torch.no_grad()
def peak(way: str) -> None:
    """Print the peak of this process in MiB while it does one of `MEMORY`, and one batch's size."""
    sizes = replace(MODELS["nano"], llm_width=512, llm_heads=8, llm_ffn=1024, llm_depth=8)
    llm, layers, span = build_llm(sizes).eval(), list(range(1, 9)), slice(8, 8 + sizes.queries)
    embeds = torch.randn(128, span.stop, sizes.llm_width)

    def four(keep: Callable | None, put: Callable) -> None:
        for number in range(4):
            if way == "plain":
                bare(llm).model(inputs_embeds=embeds, use_cache=False)
            else:
                short_forward(llm, embeds, layers, span, keep=keep)
            put(slice(128 * number, 128 * (number + 1)))

    def slowly(states: np.ndarray) -> np.ndarray:
        time.sleep(0.5 if "slow" in way else 0)
        return states

    four(None, lambda _: None)  # warms up
    with tempfile.TemporaryDirectory() as folder:
        places = [f"s3://runs-{os.getpid()}"] if "AWS_ENDPOINT_URL" in os.environ else []
        writers = [new_run(place, sizes, layers) for place in (folder, *places)]
        for writer in writers:  # its libraries are loaded
            writer.append("captured", slice(0, 128), embeds[None, :, span].numpy().repeat(8, 0))
        writer = writers["bucket" in way]

        def write(rows: slice, arrays: dict[str, Any]) -> None:
            writer.append("captured", rows, map(slowly, arrays["states"]))

        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
        if "stored" in way:
            with in_background(write, 128, writer.held) as batches:
                four(partial(batches.keep, "states"), batches.put)
        else:
            four(None, lambda _: None)
        for writer in writers:
            writer.close()
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024, embeds[:, span].nbytes / 2**17)


def new_run(folder: str, sizes: ModelConfig, layers: list[int]) -> store.RunWriter:
    """A store that takes 128 objects an append."""
    if folder.startswith("s3:"):
        fsspec.filesystem("s3").mkdir(folder)
    objects = [str(number) for number in range(512)]
    columns = {name: objects for name in ("id", "class_name", "caption")}
    return store.create_run(
        f"{folder}/run",
        samples=columns | {"label": [0] * 512, "split": ["gallery"] * 512},
        layers=layers,
        variants=["captured"],
        tokens=sizes.queries,
        dim=sizes.llm_width,
        target_dim=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", default=["nano"], help="nano, small, minigpt3d")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--llm", choices=["phi-2", "llama"], default="phi-2")
    parser.add_argument("--memory", action="store_true", help="peaks of memory, in a minute")
    parser.add_argument("--peak", choices=MEMORY, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.peak:
        peak(chosen.peak)
        return
    if chosen.memory:
        memory()
        return
    for preset in chosen.presets:
        compare(preset, chosen.rounds, chosen.llm)


if __name__ == "__main__":
    main()
