"""Find clouds by a cloud, a text or the sum of several, or name a cloud: python -m train.retrieve.

Looks in the gallery that `python -m train.pointbind` kept, by cosine in the joint space (FAISS).
With --add, unit vectors are added and the sum made a unit vector again: "a chair" and a cloud of a
car is a place between the two. With --classes the query is named by one of them, by words alone
(zero-shot, 64 prompts a class, as published). `python -m train.generate` draws a cloud from such a
vector instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.cli import read_config, run
from train.pointbind_files import GALLERY, MODEL, read_gallery, read_model, read_sizes

if TYPE_CHECKING:  # a call for --help doesn't wait for torch
    import numpy as np
    from torch import Tensor

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
FILES = (".npy", ".wav", *IMAGES)
"""A query that ends so is a file, every other one a text."""


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """A query: something in the joint space, or the sum of several."""

    config: Path | None = None
    """YAML file of these settings; flags on the command line win over it."""
    run: Path = Path("runs/pointbind-shapes-seed0")
    """Folder that python -m train.pointbind wrote."""
    query: str = ""
    """A text, or a file: .npy of a cloud (points, 3 or 6); an image (.png, .jpg) where the frozen
    space is CLIP's, SigLIP's or ImageBind's; a 16 kHz sound (.wav) where it is ImageBind's."""
    add: tuple[str, ...] = ()
    """More of the same, added to the query."""


@dataclass(frozen=True, kw_only=True)
class RetrieveConfig(QueryConfig):
    """Find the clouds of a gallery that are nearest to a query."""

    classes: tuple[str, ...] = ()
    """Name the query by these instead of looking in the gallery."""
    index: Path | None = None
    """Gallery to look in (default: gallery.npz of the run)."""
    top: int = 8
    """How many are shown."""
    picture: Path | None = None
    """Draw what was found into this file."""

    def __post_init__(self):
        if self.top < 1:
            raise ValueError(f"--top {self.top}: must be 1 or more")


def main(config: RetrieveConfig) -> None:
    """Print, and draw if asked, the nearest clouds."""
    parts = query_parts(config.query, config.add)
    space = Space(config.run)
    if config.classes:
        print(named(space, parts, config.classes))
        return
    gallery = read_gallery(config.index or config.run / GALLERY, space.encoder)
    scores, rows = nearest(gallery.embeddings, space.sum(parts)[None], config.top)
    asked = name_of(parts)
    print(f"nearest of {len(gallery.ids)} to {asked}")
    for place, (score, at) in enumerate(zip(scores[0], rows[0], strict=True), start=1):
        print(f"{place:3}  {score:.3f}  {gallery.ids[at]}  {gallery.captions[at]}")
    if config.picture:
        names = [
            f"{gallery.ids[at]}\ncosine {score:.2f}"
            for at, score in zip(rows[0], scores[0], strict=True)
        ]
        draw(config.picture, gallery.points[rows[0]], names, asked, space.up)
        print(f"picture: {config.picture}")


def named(space: Space, parts: Sequence[str], classes: Sequence[str]) -> str:
    """The classes from the likeliest down: cosine, and share of a softmax at the learnt scale."""
    from train.zeroshot import class_features

    if len(set(classes)) < 2 or any(not name.strip() for name in classes):
        raise ValueError("--classes needs two names or more, all different and none empty")
    cosines = class_features(space.frozen.text, classes) @ space.sum(parts)
    shares = (space.model.logit_scale.detach().exp() * cosines).softmax(dim=0)
    lines = [
        f"{shares[at]:6.1%}  cosine {cosines[at]:.3f}  {classes[at]}"
        for at in cosines.argsort(descending=True).tolist()
    ]
    return "\n".join([f"{name_of(parts)}, by words alone:", *lines])


def query_parts(query: str, add: Sequence[str]) -> list[str]:
    """What is asked for, part by part; ValueError where one is empty."""
    parts = [query, *add]
    if any(not part.strip() for part in parts):
        raise ValueError("an empty query: give --query a text or the path of a cloud (.npy)")
    return parts


def name_of(parts: Sequence[str]) -> str:
    """The query as a title: texts as they are, files by their name."""
    kinds = [is_file(part) for part in parts]
    return " + ".join(
        Path(part).name if file else part for part, file in zip(parts, kinds, strict=True)
    )


def is_file(part: str) -> bool:
    """Whether a part of a query is a file to read; ValueError for a file of an unknown kind."""
    if part.lower().endswith(FILES):
        return True
    if "\n" not in part and len(part) < 255 and Path(part).is_file():
        raise ValueError(f"{part} is a file of a kind that is not read: {', '.join(FILES)}")
    return False


def nearest(embeddings: np.ndarray, query: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows, (queries, count) each, best first; all where there are fewer.

    embeddings : (objects, dim), unit vectors    query : (queries, dim), unit vectors
    """
    import faiss
    import numpy as np

    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(np.ascontiguousarray(embeddings, np.float32))
    wanted = np.ascontiguousarray(query.detach().numpy(), np.float32)
    return index.search(wanted, min(count, len(embeddings)))


class Space:
    """The joint space of a run: what turns a query into a vector of it."""

    def __init__(self, folder: Path):
        from train.anchors import FrozenSpace
        from train.checkpoint import sha256

        self.sizes: dict[str, Any] = read_sizes(folder)
        self.model = read_model(folder, self.sizes)
        self.encoder = sha256(folder / MODEL)
        """Digest of the encoder's weights."""
        self.up: str = self.sizes.get("up", "y")
        """Axis that points up in its clouds."""
        paths = (
            self.sizes.get("weights") or self.sizes.get("text_model"),
            self.sizes.get("merges"),
        )
        self.frozen = FrozenSpace(*(Path(path) if path else None for path in paths))

    def sum(self, parts: Sequence[str]) -> Tensor:
        """The unit vector (dim,) of a query: of its only part, or of the sum of its parts."""
        from train.models.pointbind import add_embeddings

        return add_embeddings([self.embed(part) for part in parts])

    def embed(self, part: str) -> Tensor:
        """One unit vector (dim,) of a text or of a file, by the ending of its name."""
        import torch

        from train.models.imagebind_inputs import image_array

        path = Path(part)
        if not is_file(part):
            return self.frozen.text([part])[0]
        if path.suffix.lower() == ".npy":
            with torch.no_grad():
                return self.model(self.cloud(path))[0]
        if path.suffix.lower() == ".wav":
            return self.frozen.sound(path)
        return self.frozen.image([image_array(path)])[0]

    def cloud(self, path: Path) -> Tensor:
        """A cloud from a file as the encoder reads it, (1, points, 6).

        Colours are left out where the encoder never saw any. Raises ValueError where there are none
        and it was trained on coloured clouds.
        """
        import numpy as np
        import torch

        from train.data.objects import normalised

        if not path.is_file():
            raise FileNotFoundError(f"no cloud at {path}")
        try:
            cloud = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is no plain array: {error}") from None
        if not isinstance(cloud, np.ndarray) or cloud.ndim != 2:
            raise ValueError(f"{path} is no cloud: one array (points, 3 or 6) is wanted")
        if self.sizes.get("colour") and cloud.shape[1] == 3:
            raise ValueError(
                f"{path} has no colour, shape {cloud.shape}: this encoder was trained on coloured "
                "clouds, (points, 6) with rgb from 0 to 1"
            )
        found = normalised(cloud, path.stem, len(cloud))
        if not self.sizes.get("colour"):
            found[:, 3:] = 0
        return torch.from_numpy(found)[None]


def draw(path: Path, clouds: np.ndarray, names: Sequence[str], title: str, up: str = "y") -> None:
    """Pictures of clouds (clouds, points, 6), each under its name.

    up : axis that points up in them, "y" or "z"
    """
    from matplotlib.figure import Figure

    columns = min(4, len(clouds))
    lines = -(-len(clouds) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * lines + 0.4), layout="constrained")
    for place, (cloud, name) in enumerate(zip(clouds, names, strict=True), start=1):
        axes: Any = figure.add_subplot(lines, columns, place, projection="3d")
        x, y, z = cloud[:, [2, 0, 1] if up == "y" else [0, 1, 2]].T
        shown = cloud[:, 3:].clip(0, 1) if cloud[:, 3:].any() else z
        axes.scatter(x, y, z, c=shown, s=2)
        axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
        axes.set_box_aspect((1, 1, 1), zoom=1.2)
        axes.set_axis_off()
        axes.set_title(name, fontsize=8)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run(main, read_config({"nano": RetrieveConfig()}))
