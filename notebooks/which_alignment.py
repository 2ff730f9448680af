"""Train one nano model for each way to align and each seed: python -m notebooks.which_alignment

Every run is `python -m train.stage2` with flags of its own; what aligned and baseline differ by is
read from its sweep and collected in which_alignment.csv, which notebook 5 shows. A run that is
already finished is not trained again, so more seeds or ways can be added later.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

import store

WAYS = {
    "layer 16, weight 0.1, cosine": [],
    "positions of the release": ["--align-positions", "release"],
    "layer 8": ["--align-layer", "8"],
    "weight 1": ["--align-weight", "1"],
    "loss contrastive": ["--align-loss", "contrastive"],
    "target: projector": ["--align-target", "projector"],
    "layer 24": ["--align-layer", "24"],
    "projector of 1 layer": ["--align-projector-layers", "1"],
}
SCALE = ["--train-per-class", "4", "--gallery-per-class", "6", "--query-per-class", "4"]
SCORES = ("knn", "cka", "drift_centred")
PARTS = {"": "mean", "_low": "low", "_high": "high", "_p_adjusted": "p_adjusted"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/which"), help="folder of the runs")
    parser.add_argument("--data-root", default="data", help="folder of the data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="runs of the main job")
    asked = parser.parse_args()
    table = Path(__file__).with_name("which_alignment.csv")
    rows = []
    for out in asked.also:
        config = json.loads((out / "run.json").read_text())["config"]
        same = {"seed": config["seed"], "steps": config["steps"]}
        rows.append(differences(out).assign(way="the main job", **same))
    for way, flags in WAYS.items():
        for seed in asked.seeds:
            out = asked.out / f"{re.sub('[^a-z0-9.]+', '-', way)}-{seed}"
            if not finished(out):
                command = [sys.executable, "-m", "train.stage2", *flags, *SCALE]
                command += ["--capture-layers", "8,16,24,32", "--seed", str(seed)]
                command += ["--steps", str(asked.steps), "--data-root", asked.data_root]
                subprocess.run([*command, "--out", str(out)], check=True)
            rows.append(differences(out).assign(way=way, seed=seed, steps=asked.steps))
            pd.concat(rows).to_csv(table, index=False, float_format="%.6g")


def finished(folder: Path) -> bool:
    try:
        store.open_run(folder).probes("sweep")
    except store.StoreError:
        return False
    return True


def differences(folder: Path) -> pd.DataFrame:
    """Aligned less baseline of accuracy (K = 10), CKA and drift: a row a layer."""
    sweep = store.open_run(folder).probes("sweep").sel(comparison="aligned - baseline", k=10)
    columns = {
        f"{score.removesuffix('_centred')}_{part}": sweep[f"{score}_difference{ending}"].to_series()
        for score in SCORES
        for ending, part in PARTS.items()
    }
    table = pd.DataFrame(columns).reset_index()
    return table.assign(query_objects=sweep.attrs["query_objects"])


if __name__ == "__main__":
    main()
