"""A procedural set of coloured, captioned objects whose making is known.

Every object is drawn from its own random generator, seeded with (seed, split, family, number),
and written as the published point-cloud language sets are, so that `objaverse` reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.progress import track

from train.data import captions, families
from train.data.families import FAMILIES, PALETTE, Design
from train.data.families.solids import rotation, scatter
from train.data.objaverse import read_set
from train.data.objects import DataSet, normalised

POINTS = 8192
SPLITS = ("train", "gallery", "query")
YAW, TILT = 20.0, 4.0
"""Largest turn about the vertical and standard deviation of the tilts, in degrees."""


@dataclass(frozen=True)
class Recipe:
    """All that decides which set is made, but for the code."""

    seed: int
    train_per_class: int
    gallery_per_class: int
    query_per_class: int

    def digest(self) -> str:
        """Names the folder: another recipe, or other code that makes objects, is another set."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        sources = sorted(Path(families.__file__).parent.glob("*.py"))
        for source in [*sources, Path(captions.__file__), Path(__file__)]:
            digest.update(source.read_bytes())
        return digest.hexdigest()[:12]

    def size(self, split: str) -> int:
        return getattr(self, f"{split}_per_class")


def shapes(
    root: Path,
    *,
    seed: int = 0,
    train_per_class: int = 40,
    gallery_per_class: int = 24,
    query_per_class: int = 12,
    workers: int | None = None,
    progress: bool = True,
) -> DataSet:
    """The procedural set under `root`, made there first when it is missing.

    workers : processes that make objects; None for one a core, and one for small sets.

    A set of another seed or size has a folder of its own. Nothing is left of a making that was
    stopped half way: the folder gets its name when it is complete.
    """
    recipe = Recipe(seed, train_per_class, gallery_per_class, query_per_class)
    if min(recipe.size(split) for split in SPLITS) < 1:
        raise ValueError(f"every split of the shapes needs 1 object a class or more: {recipe}")
    folder = Path(root) / f"shapes-{recipe.digest()}"
    if not folder.exists():
        _make(folder, recipe, workers, progress)
    return read_set(folder, name="shapes")


def make_object(seed: int, split: str, name: str, number: int) -> tuple[np.ndarray, dict]:
    """One object: cloud (8192, 6) float32 and its record of id, factors and conversations."""
    key = [seed, SPLITS.index(split), list(FAMILIES).index(name), number]
    rng = np.random.default_rng(key)
    design = FAMILIES[name](rng)
    extents = _extents(design)
    yaw, tilt = rng.uniform(-YAW, YAW), rng.normal(0, TILT, 2).clip(-2 * TILT, 2 * TILT)
    cloud = sample(design, rng, POINTS)
    pose = rotation("x", tilt[0]) @ rotation("y", tilt[1]) @ rotation("z", yaw)
    cloud[:, :3] = cloud[:, :3] @ pose.T
    identifier = f"{name.replace(' ', '-')}-{split[0]}-{number:05d}"
    # Words have a generator of their own, so that rewording leaves every cloud as it is.
    said = captions.describe(name, design, extents, np.random.default_rng([*key, 1]))
    record = {
        "id": identifier,
        "factors": factors(name, design, extents, yaw, tilt),
        "said": [asdict(each) for each in said],
    }
    return normalised(cloud, identifier, POINTS), record


def factors(name: str, design: Design, extents: np.ndarray, yaw: float, tilt: np.ndarray) -> dict:
    """Ground truth of one object, the same keys for all families."""
    main = design.parts[0]
    counts = {part.name: part.count for part in design.parts}
    level = float(max(extents[0], extents[1]))
    return {
        "class": name,
        "theme": families.THEME_OF[name],
        "colour": main.colour,
        "colours": len({part.colour for part in design.parts}),
        "parts": len(design.parts),
        "pieces": sum(counts.values()),
        "largest_count": max(counts.values()),
        "height_to_width": float(extents[2]) / level,
        "depth_to_width": float(extents[1] / extents[0]),
        "shape": captions.shape_word(extents),
        "symmetry": design.symmetry,
        "symmetry_order": design.order,
        "yaw": float(yaw),
        "tilt_x": float(tilt[0]),
        "tilt_y": float(tilt[1]),
        "counts": counts,
        "part_colours": {part.name: part.colour for part in design.parts},
    }


def sample(design: Design, rng: np.random.Generator, points: int) -> np.ndarray:
    """Points drawn evenly over the surface of all parts: (points, 6), xyz and colour."""
    meshes = [(mesh, part.colour) for part in design.parts for mesh in part.meshes]
    triangles = np.concatenate([mesh.vertices[mesh.faces] for mesh, _ in meshes])
    shade = {part.colour: rng.normal(0, 0.03, 3) for part in design.parts}
    palette = np.array([PALETTE[colour] + shade[colour] for _, colour in meshes])
    piece = np.repeat(np.arange(len(meshes)), [len(mesh.faces) for mesh, _ in meshes])
    places, chosen = scatter(triangles, points, rng)
    cloud = np.empty((points, 6))
    cloud[:, :3] = places
    cloud[:, 3:] = (palette[piece[chosen]] + rng.normal(0, 0.015, (points, 3))).clip(0, 1)
    return cloud


def _extents(design: Design) -> np.ndarray:
    """(3,) width, depth and height of the upright object."""
    vertices = np.concatenate([mesh.vertices for part in design.parts for mesh in part.meshes])
    return vertices.max(axis=0) - vertices.min(axis=0)


def _make(folder: Path, recipe: Recipe, workers: int | None, progress: bool) -> None:
    """Write the whole set beside its place, then give it its name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    jobs = [
        (recipe.seed, split, name, number)
        for split in SPLITS
        for name in FAMILIES
        for number in range(recipe.size(split))
    ]
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (scratch / "8192_npy").mkdir()
        records = list(
            track(
                _records(jobs, scratch / "8192_npy", workers),
                description=f"making {len(jobs)} shapes",
                total=len(jobs),
                disable=not progress,
            )
        )
        _write_words(scratch, recipe, records)
        try:
            scratch.rename(folder)
        except OSError:  # another process made the same set meanwhile
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _records(jobs: list[tuple], clouds: Path, workers: int | None):
    """Make the objects in order, in several processes when there are many."""
    workers = workers or (1 if len(jobs) < 400 else os.cpu_count() or 1)
    tasks = [(clouds, *job) for job in jobs]
    if workers == 1:
        yield from map(_write_object, tasks)
        return
    # Spawned, because a fork of a process that already runs threads may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_write_object, tasks, chunksize=16)


def _write_object(task: tuple) -> dict:
    clouds, seed, split, name, number = task
    cloud, record = make_object(seed, split, name, number)
    np.save(clouds / f"{record['id']}_{POINTS}.npy", cloud, allow_pickle=False)
    record["sha256"] = hashlib.sha256(cloud.tobytes()).hexdigest()
    record["split"] = split
    return record


def _write_words(folder: Path, recipe: Recipe, records: list[dict]) -> None:
    """Annotations of each split, factors and class names, in the order of making."""
    for split in SPLITS:
        rows = [
            {"object_id": record["id"], "conversation_type": said["kind"], "conversations": talk}
            for record in records
            if record["split"] == split
            for said in record["said"]
            for talk in [_published(said["turns"])]
        ]
        (folder / f"{split}.json").write_text(json.dumps(rows, indent=1))
    (folder / "factors.json").write_text(
        json.dumps({record["id"]: record["factors"] for record in records}, indent=1)
    )
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in FAMILIES))
    whole = hashlib.sha256("".join(record["sha256"] for record in records).encode())
    (folder / "recipe.json").write_text(
        json.dumps({**asdict(recipe), "clouds_sha256": whole.hexdigest()}, indent=1)
    )


def _published(turns) -> list[dict]:
    """(question, answer) turns as the published annotation lists them."""
    entries = []
    for place, (question, answer) in enumerate(turns):
        mark = "" if place else "<point>\n"
        entries.append({"from": "human", "value": mark + question})
        entries.append({"from": "gpt", "value": answer})
    return entries
