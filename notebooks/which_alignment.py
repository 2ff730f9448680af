"""Collect what aligned and baseline differ by in runs of a sweep: for notebook 5.

    python -m train.sweep --over align_layer=8,24 --seeds 0,1 --out runs/sweep
    python -m notebooks.which_alignment runs/sweep

reads the finished runs of one folder or several and writes which_alignment.csv beside this file: a
row a setting, seed and layer. More runs can be added to a folder, and this be said again.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

import store

SCORES = ("knn", "cka", "drift_centred")
PARTS = {"": "mean", "_low": "low", "_high": "high", "_p_adjusted": "p_adjusted"}
TABLE = Path(__file__).with_name("which_alignment.csv")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m notebooks.which_alignment", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folders", type=Path, nargs="+", help="--out of python -m train.sweep")
    parser.add_argument("--table", type=Path, default=TABLE, help="the table to write")
    asked = parser.parse_args(arguments)
    rows = [
        differences(run, run.name.rpartition("-seed")[0])
        for folder in asked.folders
        for run in sorted(folder.glob("*-seed*"))
        if finished(run)
    ]
    if not rows:
        parser.error(f"no finished run in {', '.join(map(str, asked.folders))}")
    pd.concat(rows).to_csv(asked.table, index=False, float_format="%.6g")
    print(f"{len(rows)} runs: {asked.table}")


def finished(folder: Path) -> bool:
    """Whether it is a run whose sweep over the layers was kept."""
    if not folder.is_dir():
        return False
    try:
        store.open_run(folder).probes("sweep")
    except store.StoreError:
        return False
    return True


def differences(folder: Path, setting: str) -> pd.DataFrame:
    """Aligned less baseline of accuracy (largest K), CKA and drift: a row a layer."""
    found = store.open_run(folder).probes("sweep")
    pair = found.sel(comparison="aligned - baseline").isel(k=-1)
    columns = {
        f"{score.removesuffix('_centred')}_{part}": pair[f"{score}_difference{ending}"].to_series()
        for score in SCORES
        for ending, part in PARTS.items()
    }
    config = json.loads((folder / "run.json").read_text())["config"]
    about = {"setting": setting, "seed": config["seed"], "steps": config["steps"]}
    about |= {"trained_on": found.attrs["classes"] * config["train_per_class"]}
    about |= {"query_objects": found.attrs["query_objects"], "k": int(pair.k)}
    return pd.DataFrame(columns).reset_index().assign(**about)


if __name__ == "__main__":
    main()
