"""What a run would cost, before it starts: parameters, memory, size of the store."""

from __future__ import annotations

from train.config import ModelConfig, Stage2Config

MIB = 2**20
TOKENS_OF_A_SAMPLE = 128
"""Prompt, points and answer of a typical conversation."""
STATES_A_BLOCK = 16
"""Values of the LLM's width kept for the backward pass, a token and block: norms, fused
projection, rotary, attention output, feed-forward (counted as its share of the width) and LoRA."""


def training_memory(config: Stage2Config, sizes: ModelConfig, parameters: int, trained: int) -> int:
    """Bytes of training one model: weights, gradients, AdamW's two moments, kept activations.

    parameters, trained : counts of all and of the trained weights, in single precision.
    """
    weights = 4 * parameters + 4 * trained + 8 * trained
    tokens = config.batch_size * TOKENS_OF_A_SAMPLE
    kept = STATES_A_BLOCK * sizes.llm_width + 2 * sizes.llm_ffn
    return weights + 4 * tokens * (sizes.llm_depth * kept + sizes.vocabulary)


def store_bytes(config: Stage2Config, sizes: ModelConfig, layers: int, objects: int, variants: int):
    """Bytes of the store before compression: states, targets and clouds."""
    width = 2 if config.capture_dtype == "float16" else 4
    states = variants * layers * objects * sizes.queries * sizes.llm_width * width
    targets = objects * sizes.queries * sizes.qformer_width * width
    return states + targets + objects * SHOWN_POINTS * 6 * 4


SHOWN_POINTS = 2048
"""Points of each cloud kept in the store for looking at."""
