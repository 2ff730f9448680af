"""Stage 2: python -m train.stage2 --capture-layers 4,8,...,32. Where does geometry go?

From one stage-1 checkpoint it trains the baseline (next-token loss) and the aligned model (plus the
alignment loss), captures the point tokens of both, of the start and of an untrained LLM layer by
layer, and measures what is left of the geometry.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

from train.cli import read_config, run
from train.config import STAGE2, TRAINED, VARIANTS, Stage2Config, parse_layers, with_recipe
from train.start import model_sizes


def main(config: Stage2Config) -> None:
    """Check everything that can be checked, then train, capture, measure and report."""
    sizes = model_sizes(config)
    layers = sorted({0, *parse_layers(config.capture_layers, sizes.llm_depth)})
    config.aligned_layers(sizes.llm_depth)

    from train.capture_job import held
    from train.job import Stage2Run

    job = Stage2Run(config, sizes, layers)
    if config.dry_run:
        job.describe()
        return
    begun = time.perf_counter()
    main_process = job.accelerator.is_main_process
    with held(config.folder, config.store) if main_process else nullcontext():
        job.load()
        job.start()
        for variant in VARIANTS:
            if variant in TRAINED:
                job.train(variant)
            job.capture(variant)
        if main_process:
            job.measure()
            job.finish(time.perf_counter() - begun)
        else:
            job.writer.close()


if __name__ == "__main__":
    run(main, read_config(STAGE2, recipe=with_recipe))
