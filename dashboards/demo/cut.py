"""Cut the run of the demo from a whole one: python dashboards/demo/cut.py RUN

Some objects of ten classes, baseline and aligned, all layers. States are rounded to five bits of
mantissa and clouds cut to 360 points, so that the archive is small; scores by depth and by step are
those of the whole run, of all its models. Neighbours and maps are computed from what is left, the
rest is copied for these objects.

RUN comes from python -m train.stage2 --capture-layers 4,8,...,32 --capture-every 60, then
python -m train.explain RUN --variants baseline,aligned, python -m train.evaluate RUN --variants
baseline,aligned and python -m probe RUN with every probe.
"""

import json
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import xarray as xr

import store
from dashboards.answers import FOLDER
from probe.maps import maps
from probe.objects import objects

CLASSES = ("chair", "stool", "table", "bench", "bed", "lamp", "cup", "bowl", "robot", "rocket")
GALLERY, QUERY = 4, 4  # objects of each class
VARIANTS = ["baseline", "aligned"]
COPIED = ("sweep", "steps", "lens", "causal", "reconstruction", "alignment")
SHOWN = ("advantage", "word")  # of what results keep of each object, these are on a page
MANTISSA = 5  # bits kept, of 10
POINTS = 360


def main(source: Path, out: Path) -> None:
    run = store.open_run(source)
    rows = chosen(run)
    copy_states(run, rows, out)
    demo = store.open_run(out)
    demo.write_probe("objects", objects(demo, k=GALLERY))
    demo.write_probe("maps", maps(demo, methods=("umap",)))
    for name in COPIED:
        demo.write_probe(name, smaller(run.probes(name)).assign_attrs(run=out.name))
    copy_answers(source, out, run.samples()["sample"].values[rows].astype(str).tolist())
    record = json.loads((source / "run.json").read_text())
    for place in ("out", "data_root"):  # of the machine that made it
        record["config"][place] = None
    record["command"] = re.sub(r" --(out|data-root) \S+", "", record["command"])
    record["demo"] = (
        f"{len(rows)} of {run.attrs['samples']} objects and {len(VARIANTS)} of "
        f"{len(run.variants)} models of a run on the embedded shapes; scores by depth and by step, "
        "lens, causes and rebuilt clouds are those of the whole run"
    )
    (out / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    shutil.rmtree(out / "cache")  # what was measured is there: nothing is measured anew
    if (source / "metrics.jsonl").exists():
        shutil.copy(source / "metrics.jsonl", out / "metrics.jsonl")


def chosen(run: store.Run) -> np.ndarray:
    """Rows of a few objects of each class; those that the lens has read come first."""
    table = run.samples()
    ids, split = table["sample"].values, table["split"].values
    try:
        read = np.isin(ids, run.probes("lens").object.values)
    except store.StoreError:
        read = np.zeros(len(ids), bool)
    found = []
    for name in CLASSES:
        own = table["class_name"].values == name
        for part, count in (("gallery", GALLERY), ("query", QUERY)):
            rows = np.flatnonzero(own & (split == part))
            found += sorted(rows, key=lambda row: not read[row])[:count]
    return np.sort(found)


def copy_states(run: store.Run, rows: np.ndarray, out: Path) -> None:
    table = run.samples().isel(sample=rows)
    names = {str(n): table[n].values for n in table.variables}
    labels = np.unique(names["label"], return_inverse=True)[1]
    writer = store.create_run(
        out,
        samples={"id": names.pop("sample")} | names | {"label": labels},
        layers=run.layers,
        variants=VARIANTS,
        tokens=run.attrs["tokens"],
        dim=run.attrs["dim"],
        target_dim=run.attrs["target_dim"],
        points=rounded(run.points()[rows, ::4][:, :POINTS].values, 23 - 13),
        encoder_dim=run.attrs["encoder_dim"],
        patches=run.attrs["patches"],
        dtype="float16",
        provenance=run.attrs["provenance"] | {"demo": f"{len(rows)} objects of {run.path.name}"},
    )
    for part in writer.pending("target"):
        writer.append_target(part, rounded(run.target()[rows[part]].values, 10 - MANTISSA))
    for part in writer.pending("encoder"):
        writer.append_encoder(part, rounded(run.encoder()[rows[part]].values, 10 - MANTISSA))
    read = run.attention().isel(sample=rows)
    for part in writer.pending("attention"):
        weights = rounded(read.weights[part].values, 10 - 5)
        writer.append_attention(part, weights, rounded(read.centres[part].values, 23 - 10))
    for variant in VARIANTS:
        states = run.final(variant)
        for part in writer.pending(variant):
            kept = states.isel(sample=rows[part]).values
            writer.append(variant, part, rounded(kept, 10 - MANTISSA))
    writer.finish()


def rounded(values: np.ndarray, drop: int) -> np.ndarray:
    """Floats with the last `drop` bits of the mantissa rounded off: these compress."""
    bits = values.view(f"u{values.itemsize}")
    half = bits.dtype.type(1 << (drop - 1))
    return ((bits + half) >> drop << drop).view(values.dtype)


def smaller(results: xr.Dataset) -> xr.Dataset:
    """Results without what no page shows, as scores of each object and the captions that a lens was
    read against, rebuilt clouds rounded to ten bits of mantissa and scores to 24, seven digits.
    """
    unseen = [n for n, part in results.items() if "object" in part.dims and n not in SHOWN]
    results = results.drop_vars(unseen).drop_dims("caption", errors="ignore")
    kinds = {"<f4": 23 - 10, "<f8": 52 - 24}
    less = {
        name: part.copy(data=rounded(part.values, kinds[part.dtype.str]))
        for name, part in results.data_vars.items()
        if part.dtype == "f8" or name in ("cloud", "target_cloud", "true_cloud")
    }
    return results.assign(less)


def copy_answers(source: Path, out: Path, samples: list[str]) -> None:
    """What the models answered about these objects, with its verdicts."""
    for file in sorted((source / FOLDER).glob("*/*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        found["results"] = [row for row in found["results"] if row["object_id"] in samples]
        there = out / FOLDER / file.parent.name
        there.mkdir(parents=True, exist_ok=True)
        (there / file.name).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "demo-shapes"
        main(Path(sys.argv[1]), made)
        with zipfile.ZipFile(Path(__file__).with_name("shapes.zip"), "w", zipfile.ZIP_LZMA) as kept:
            for file in sorted(made.rglob("*")):
                if file.is_file() and file.suffix != ".lock":
                    kept.write(file, file.relative_to(folder))
