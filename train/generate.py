"""Draw a cloud from a text, a cloud, or a sum of several: python -m train.generate.

Any-to-3D, as Point-Bind shows it (section 3.4): the query becomes a vector of the joint space, and
the decoder that `python -m train.pointbind` fitted there draws the cloud. The published decoder
(CLIP-Forge) takes vectors of another space and can't be used: see `train.models.clouddecoder`.
The cloud is then embedded again, to say what it is taken for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train.cli import read_config, run
from train.pointbind_files import GALLERY, read_decoder, read_gallery
from train.retrieve import QueryConfig, Space, draw, name_of, nearest, query_parts

if TYPE_CHECKING:  # a call for --help doesn't wait for torch
    import numpy as np

KINDS = (".npy", ".ply")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(QueryConfig):
    """Draw the cloud that stands where a query stands in the joint space."""

    out: Path = Path("generated.npy")
    """The cloud, (points, 3) or with colours (points, 6): .npy or .ply."""
    picture: Path | None = None
    """Where to draw it; beside --out by default."""

    def __post_init__(self):
        if self.out.suffix not in KINDS:
            raise ValueError(f"--out {self.out}: must end in {' or '.join(KINDS)}")


def main(config: GenerateConfig) -> None:
    """Write the cloud and its picture, and say where it stands when it is embedded again."""
    import torch

    from train.models.clouddecoder import POINTS, draw_clouds

    parts = query_parts(config.query, config.add)
    space = Space(config.run)
    decoder = read_decoder(config.run)
    gallery = read_gallery(config.run / GALLERY, space.encoder)
    vector = space.sum(parts)[None]
    count = space.sizes.get("points", POINTS)
    cloud = draw_clouds(decoder, vector, count)
    with torch.no_grad():
        again = space.model(torch.from_numpy(cloud))
    points, channels = decoder.shape
    write_cloud(config.out, cloud[0, :points, :channels])
    picture = config.picture or config.out.with_suffix(".png")
    draw(picture, cloud, [f"{points} points"], name_of(parts), space.up)
    scores, rows = nearest(gallery.embeddings, again, 3)
    print(f"drawn from {name_of(parts)}")
    print(f"embedded again: cosine to the query {float(vector[0] @ again[0]):.3f}; nearest clouds:")
    for score, at in zip(scores[0], rows[0], strict=True):
        print(f"     {score:.3f}  {gallery.ids[at]}  {gallery.captions[at]}")
    print(f"cloud: {config.out}\npicture: {picture}")


def write_cloud(path: Path, cloud: np.ndarray) -> None:
    """A cloud (points, 3 or 6) as .npy or .ply, float32 and for .ply 8-bit colours."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, cloud)
        return
    import trimesh

    colours = (255 * cloud[:, 3:]).round().astype(np.uint8) if cloud.shape[1] == 6 else None
    trimesh.PointCloud(cloud[:, :3], colors=colours).export(path)


if __name__ == "__main__":
    run(main, read_config({"nano": GenerateConfig()}))
