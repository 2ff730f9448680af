"""python -m probe RUN: where in depth is geometry lost, and does alignment keep it?"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Probe every captured layer of a run; print a table, keep results and figures in the run."""

    run: Positional[Path]
    """Run folder."""
    layers: str = "all"
    """Captured layers to probe: all, or a list as 0,8,16."""
    probes: str = "knn,drift"
    """What to measure, a list of knn, drift, linear and geometry."""
    k: str = "1,10"
    """Neighbours that vote, a list."""
    seed: int = 0
    """Seeds resampling, permutations and the folds of the ridge map."""


def main(config: ProbeConfig) -> None:
    from probe.plots import save_depth_html, save_depth_png
    from probe.report import print_table, progress_bar
    from probe.sweep import sweep
    from store import open_run

    run = open_run(config.run)
    layers = run.layers if config.layers == "all" else numbers(config.layers, "--layers")
    with progress_bar() as show:
        results = sweep(
            run,
            [name.strip() for name in config.probes.split(",")],
            layers,
            k=numbers(config.k, "--k"),
            seed=config.seed,
            progress=show,
        )
    run.write_probe("sweep", results)
    print_table(results)
    if not {"knn_mean", "cka_mean"} & set(results):
        return  # the depth figure draws these
    for save, name in ((save_depth_png, "depth.png"), (save_depth_html, "depth.html")):
        print(save(results, run.path / name))


def numbers(text: str, flag: str) -> list[int]:
    """The whole numbers of a comma list, in order, each once."""
    try:
        return sorted({int(item) for item in text.split(",")})
    except ValueError:
        raise ValueError(f"{flag} {text!r}: expected whole numbers with commas between") from None


def cli() -> int:
    config = tyro.cli(ProbeConfig, prog="python -m probe", description=__doc__)
    from store import StoreError

    try:
        main(config)
    except (StoreError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(cli())
