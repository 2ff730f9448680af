"""Find clouds by a cloud, a text, or the sum of several: python -m train.retrieve.

Looks in the gallery that `python -m train.pointbind` kept, by cosine in the joint space (FAISS).
With --add, unit vectors are added and the sum made a unit vector again: "a chair" and a cloud of a
car is a place between the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from train.cli import read_config, run

if TYPE_CHECKING:  # a call for --help doesn't wait for torch
    import numpy as np
    from torch import Tensor

    from train.models.pointbind import PointBind

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
FILES = (".npy", ".wav", *IMAGES)
"""A query that ends so is a file, every other one a text."""


@dataclass(frozen=True, kw_only=True)
class RetrieveConfig:
    """Find the clouds of a gallery that are nearest to a query."""

    config: Path | None = None
    """YAML file of these settings; flags on the command line win over it."""
    run: Path = Path("runs/pointbind-shapes-seed0")
    """Folder that python -m train.pointbind wrote."""
    query: str = ""
    """A text, or a file: .npy of a cloud (points, 3 or 6). With the published model also an image
    (.png, .jpg) or a 16 kHz sound (.wav)."""
    add: tuple[str, ...] = ()
    """More of the same, added to the query."""
    index: Path | None = None
    """Gallery to look in (default: gallery.npz of the run)."""
    top: int = 8
    """How many are shown."""
    picture: Path | None = None
    """Draw what was found into this file."""

    def __post_init__(self):
        if self.top < 1:
            raise ValueError(f"--top {self.top}: must be 1 or more")


class Gallery(NamedTuple):
    """What can be found."""

    embeddings: np.ndarray
    """(objects, dim) float32, unit vectors"""
    ids: list[str]
    captions: list[str]
    points: np.ndarray
    """(objects, points, 6), thinned, for pictures"""


def main(config: RetrieveConfig) -> None:
    """Print, and draw if asked, the nearest clouds."""
    from train.models.pointbind import add_embeddings

    parts = [config.query, *config.add]
    if any(not part.strip() for part in parts):
        raise ValueError("an empty query: give --query a text or the path of a cloud (.npy)")
    space = Space(config.run)
    gallery = read_gallery(config.index or config.run / "gallery.npz", space.encoder)
    vector = add_embeddings([space.embed(part) for part in parts])
    scores, rows = nearest(gallery.embeddings, vector[None], config.top)
    asked = " + ".join(Path(part).name if part.endswith(FILES) else part for part in parts)
    print(f"nearest of {len(gallery.ids)} to {asked}")
    for place, (score, at) in enumerate(zip(scores[0], rows[0], strict=True), start=1):
        print(f"{place:3}  {score:.3f}  {gallery.ids[at]}  {gallery.captions[at]}")
    if config.picture:
        draw(config.picture, gallery, rows[0].tolist(), scores[0].tolist(), asked)
        print(f"picture: {config.picture}")


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


def read_gallery(path: Path, encoder: str) -> Gallery:
    """The gallery in a file. Raises ValueError where it was embedded by another encoder.

    encoder : digest of the weights of the encoder that embeds the queries
    """
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"no gallery at {path}: python -m train.pointbind writes it")
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["encoder"]) != encoder:
                raise ValueError(
                    f"{path} was embedded by another encoder: its vectors can't be compared with "
                    "those of this run; run python -m train.pointbind again"
                )
            points = stored["points"].astype(np.float32)
            words = (stored["ids"].tolist(), stored["captions"].tolist())
            return Gallery(stored["embeddings"], *words, points)
    except KeyError as error:
        raise ValueError(f"{path} is no gallery: {error.args[0]}") from None


class Space:
    """The joint space of a run: what turns a query into a vector of it."""

    def __init__(self, folder: Path):
        from train.checkpoint import sha256

        self.sizes: dict[str, Any] = read_sizes(folder)
        self.model = read_model(folder, self.sizes)
        self.encoder = sha256(folder / "model.safetensors")
        """Digest of the encoder's weights."""

    def embed(self, query: str) -> Tensor:
        """One unit vector (dim,) of a text or of a file, by the ending of its name."""
        import torch
        import torch.nn.functional as F

        path = Path(query)
        with torch.no_grad():
            if path.suffix == ".npy":
                return self.model(self.cloud(path))[0]
            if path.suffix in IMAGES or path.suffix == ".wav":
                return F.normalize(self._other(path), dim=0)
            return self._text(query)

    def cloud(self, path: Path) -> Tensor:
        """A cloud from a file as the encoder reads it, (1, points, 6).

        Raises ValueError where it has no colour and the encoder was trained on coloured clouds.
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
        if self.sizes.get("colour") and cloud.ndim == 2 and cloud.shape[1] == 3:
            raise ValueError(
                f"{path} has no colour, shape {cloud.shape}: this encoder was trained on coloured "
                "clouds, (points, 6) with rgb from 0 to 1"
            )
        return torch.from_numpy(normalised(cloud, path.stem, len(cloud)))[None]

    def _text(self, text: str) -> Tensor:
        from train.anchors import imagebind_text, text_anchor

        if "published" not in self.sizes:
            folder = self.sizes["text_model"]
            return text_anchor(Path(folder) if folder else None)([text])[0]
        return imagebind_text(self._towers(), Path(self.sizes["merges"]))([text])[0]

    def _other(self, path: Path) -> Tensor:
        """An image or a sound in ImageBind's space, as long as its tower makes it."""
        from train.models.imagebind import HUGE, ImageBind
        from train.models.imagebind_inputs import image_pixels, sound_clips

        if "published" not in self.sizes:
            raise ValueError(
                f"{path}: only the published model's space holds images and sounds; this run is "
                "bound to text alone"
            )
        if not path.is_file():
            raise FileNotFoundError(f"no file at {path}")
        modality = "audio" if path.suffix == ".wav" else "vision"
        given = sound_clips(path) if modality == "audio" else image_pixels(path)
        tower = ImageBind({modality: HUGE[modality]}).eval()
        tower.load_published(self._towers())
        return tower(modality, given[None])[0]

    def _towers(self) -> dict[str, Tensor]:
        import torch

        from train.models.pointbind import split_published

        path = self.sizes["weights"]
        return split_published(torch.load(path, "cpu", weights_only=True, mmap=True))[1]


def read_sizes(folder: Path) -> dict[str, Any]:
    """What a run's model is made of."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no model in {folder} (config.json is missing): give --run a folder that "
            "python -m train.pointbind wrote"
        )
    sizes = json.loads(path.read_text())
    if not {"published", "sizes"} & sizes.keys():
        raise ValueError(f"{path} is not of a model that python -m train.pointbind wrote")
    return sizes


def read_model(folder: Path, sizes: dict[str, Any]) -> PointBind:
    """The model of a run, in eval mode."""
    from train.checkpoint import read_tensors
    from train.config import ModelConfig
    from train.models.pointbert import check_names
    from train.pointbind import new_model, published_model

    if "published" in sizes:
        model = published_model(sizes["published"])
    else:
        model = new_model(ModelConfig(**sizes["sizes"]), sizes["output"], 0.0)
    tensors = read_tensors(folder / "model.safetensors")
    check_names(f"{folder}", model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return model.eval()


def draw(
    path: Path, gallery: Gallery, rows: Sequence[int], scores: Sequence[float], title: str
) -> None:
    """Pictures of the clouds found, best first, with their names and cosines."""
    from matplotlib.figure import Figure

    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * lines + 0.4), layout="constrained")
    for place, (at, score) in enumerate(zip(rows, scores, strict=True), start=1):
        axes: Any = figure.add_subplot(lines, columns, place, projection="3d")
        x, y, z, *colour = gallery.points[at].T
        shown = gallery.points[at, :, 3:].clip(0, 1) if any(c.any() for c in colour) else z
        axes.scatter(x, y, z, c=shown, s=2)
        axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
        axes.set_box_aspect((1, 1, 1), zoom=1.4)
        axes.set_axis_off()
        axes.set_title(f"{gallery.ids[at]}\ncosine {score:.2f}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run(main, read_config({"nano": RetrieveConfig()}))
