"""Objects of a data set: names, captions and conversations in memory, point clouds on demand."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

KINDS = ("simple_description", "detailed_description", "single_round", "multi_round")


@dataclass(frozen=True)
class Conversation:
    """What is said about one object: question and answer, once or several times."""

    object: int
    """Row of the object in its `Objects`."""
    kind: str
    """One of `KINDS`."""
    turns: tuple[tuple[str, str], ...]
    """(question, answer) pairs; the mark that stands for the points is not in the question."""


@dataclass(frozen=True)
class Objects:
    """One split of a data set. Only names and words are held; `points` reads the clouds."""

    ids: list[str]
    labels: np.ndarray
    """(objects,) int64, index into `class_names`."""
    class_names: list[str]
    captions: list[str]
    """One short caption an object."""
    conversations: list[Conversation]
    read: Callable[[int], np.ndarray]
    """Source row -> (points, 3 or 6), as stored: xyz, then rgb in [0, 1] where there is colour."""
    count: int
    """Points in every cloud."""
    identity: str
    """Digest of the source that the clouds come from."""
    factors: dict[str, np.ndarray] = field(default_factory=dict)
    """Known factors of each object, (objects,) each; may be empty."""
    rows: np.ndarray | None = None
    """(objects,) source rows of a subset; None means that object i is source row i."""

    def __len__(self) -> int:
        return len(self.ids)

    def points(self, rows: int | Iterable[int]) -> np.ndarray:
        """(rows, points, 6) float32: xyz about its mean, largest radius 1; rgb, black if unknown.

        Raises ValueError that names the object when a cloud is broken.
        """
        wanted = np.atleast_1d(np.asarray(rows, dtype=np.int64))
        clouds = np.empty((len(wanted), self.count, 6), np.float32)
        for cloud, row in zip(clouds, wanted, strict=True):
            source = row if self.rows is None else self.rows[row]
            cloud[:] = normalised(self.read(int(source)), self.ids[row], self.count)
        return clouds

    def fingerprint(self) -> str:
        """SHA-256 over the ids, in order, and the identity of the source."""
        digest = hashlib.sha256(self.identity.encode())
        for name in self.ids:
            digest.update(b"\0" + name.encode())
        return digest.hexdigest()

    def take(
        self, rows: Sequence[int] | None = None, *, per_class: int | None = None, seed: int = 0
    ) -> Objects:
        """A subset with its conversations: these rows in this order, or so many of each class.

        rows      : rows of this set, each at most once.
        per_class : objects drawn from each class, seeded; all of a class that has fewer. Their
                    order stays. A larger per_class of one seed contains the smaller.
        """
        if rows is not None and per_class is None:
            chosen = np.asarray(rows, dtype=np.int64)
        elif rows is None and per_class is not None:
            chosen = self._draw(per_class, seed)
        else:
            raise ValueError("take needs either rows or per_class, and not both")
        inside = ((chosen >= 0) & (chosen < len(self))).all()
        if len(np.unique(chosen)) != len(chosen) or not inside:
            raise ValueError(f"rows to take must differ and be 0 to {len(self) - 1}")
        said = defaultdict(list)
        for conversation in self.conversations:
            said[conversation.object].append(conversation)
        return replace(
            self,
            ids=[self.ids[row] for row in chosen],
            labels=self.labels[chosen],
            captions=[self.captions[row] for row in chosen],
            conversations=[
                replace(each, object=new)
                for new, row in enumerate(chosen)
                for each in said[int(row)]
            ],
            factors={name: values[chosen] for name, values in self.factors.items()},
            rows=chosen if self.rows is None else self.rows[chosen],
        )

    def _draw(self, per_class: int, seed: int) -> np.ndarray:
        if per_class < 1:
            raise ValueError(f"per_class={per_class} must be 1 or more")
        chosen = []
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            order = np.random.default_rng([seed, int(label)]).permutation(len(members))
            chosen.append(members[order[:per_class]])
        return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


@dataclass(frozen=True)
class DataSet:
    """The three splits: train on one, look neighbours up in the gallery for each query."""

    name: str
    train: Objects
    gallery: Objects
    query: Objects


def normalised(cloud: np.ndarray, name: str, count: int) -> np.ndarray:
    """(points, 3 or 6) -> (points, 6) float32, xyz centred on the mean with largest radius 1.

    name  : object id, for the errors.
    count : points there must be.
    """
    cloud = np.asarray(cloud)
    if cloud.ndim != 2 or not len(cloud) or cloud.shape[1] not in (3, 6):
        raise ValueError(f"object {name}: its cloud has shape {cloud.shape}, not (points, 3 or 6)")
    if len(cloud) != count:
        raise ValueError(f"object {name}: its cloud has {len(cloud)} points, the set has {count}")
    if not np.isfinite(cloud).all():
        bad = int((~np.isfinite(cloud).all(axis=1)).sum())
        raise ValueError(f"object {name}: {bad} of its {count} points are NaN or infinite")
    result = np.zeros((count, 6), np.float32)
    result[:, 3 : cloud.shape[1]] = cloud[:, 3:]
    if result[:, 3:].min() < 0 or result[:, 3:].max() > 1:
        raise ValueError(f"object {name}: its colours must be in [0, 1]")
    centred = cloud[:, :3].astype(np.float64)
    centred -= centred.mean(axis=0)
    radius = np.sqrt((centred**2).sum(axis=1).max())
    if radius == 0:
        raise ValueError(f"object {name}: its {count} points are all the same point")
    result[:, :3] = centred / radius
    return result
