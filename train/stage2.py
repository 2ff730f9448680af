"""Stage 2: python -m train.stage2 --capture-layers 4,8,...,32. Where does geometry go?

From one stage-1 checkpoint it trains the baseline (next-token loss) and the aligned model (plus the
alignment loss), captures the point tokens of both, of the start and of an untrained LLM layer by
layer, and measures what is left of the geometry.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from train.cli import read_config, run
from train.config import (
    STAGE2,
    TRAINED,
    VARIANTS,
    ModelConfig,
    Stage2Config,
    parse_layers,
)


def main(config: Stage2Config) -> None:
    """Check everything that can be checked, then train, capture, measure and report."""
    checkpoint = starting_point(config)
    sizes = model_sizes(checkpoint)
    layers = parse_layers(config.capture_layers, sizes.llm_depth)
    if not 1 <= config.align_layer <= sizes.llm_depth:
        raise ValueError(f"--align-layer {config.align_layer}: must be 1 to {sizes.llm_depth}")
    layers = sorted({0, *layers})

    from train.job import Stage2Run

    job = Stage2Run(config, checkpoint, sizes, layers)
    if config.dry_run:
        job.describe()
        return
    begun = time.perf_counter()
    job.start()
    for variant in VARIANTS:
        if variant in TRAINED:
            job.train(variant)
        job.capture(variant)
    job.measure()
    job.finish(time.perf_counter() - begun)


def starting_point(config: Stage2Config) -> Path:
    """Folder of the stage-1 checkpoint: the one that was named or, for nano, the shipped one."""
    if config.stage1:
        return config.stage1
    if config.preset != "nano":
        raise ValueError(
            f"--preset {config.preset} needs --stage1 DIR, a checkpoint of that size written by "
            "python -m train.stage1; only the nano one ships with the project"
        )
    return Path(__file__).parent / "checkpoints" / "nano-stage1"


def model_sizes(checkpoint: Path) -> ModelConfig:
    """Sizes of a checkpoint, before anything heavy is loaded."""
    path = checkpoint / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint in {checkpoint} (config.json is missing); give --stage1 a folder "
            "written by python -m train.stage1"
        )
    try:
        return replace(ModelConfig(), **json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a model's sizes: {error}") from None


if __name__ == "__main__":
    run(main, read_config(STAGE2))
