"""Sets in the published layout: `8192_npy/<id>_8192.npy` clouds and annotation files in JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.data.objects import KINDS, Conversation, DataSet, Objects

POINTS = 8192
CORRUPT = ("6760e543e1d645d5aaacd3803bcae524", "b91c0711149d460a8004f9c06d3b7f38")
"""Objaverse ids whose published colours are broken."""
TRAIN_FILES = (
    "PointLLM_brief_description_660K_filtered.json",
    "PointLLM_complex_instruction_70K.json",
)
BENCHMARK = "PointLLM_brief_description_val_200_GT.json"
QUERY_FILES = ("PointLLM_brief_description_val_3000_GT.json", BENCHMARK)
UNLABELLED = "object"
NAMED = 20
"""How many missing objects are named."""


@dataclass(frozen=True)
class CloudFiles:
    """Reads row i of a split from its own file."""

    folder: Path
    ids: tuple[str, ...]

    def __call__(self, row: int) -> np.ndarray:
        path = cloud_path(self.folder, self.ids[row])
        try:
            return np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no cloud of object {self.ids[row]} at {path}: unpack the published archive "
                "there, or delete the folder of a set that is made here"
            ) from None
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is not a plain array file: {error}") from error


def cloud_path(folder: Path, name: str) -> Path:
    return folder / "8192_npy" / f"{name}_{POINTS}.npy"


def read_annotations(path: Path) -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
    """The rows of an annotation file: (object id, kind, turns of question and answer).

    A row without a kind is a simple description. The `<point>` mark is taken out of the question.
    """
    path = Path(path)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no annotation file at {path}: download it there") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): download it again") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of conversations, not a {type(rows).__name__}")
    return [_annotation(row, place, path) for place, row in enumerate(rows)]


def _annotation(row: dict, place: int, path: Path) -> tuple[str, str, tuple]:
    try:
        name, entries = str(row["object_id"]), row["conversations"]
        kind = row.get("conversation_type", KINDS[0])
        speakers = [entry["from"] for entry in entries]
        words = [str(entry["value"]) for entry in entries]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: row {place} lacks object_id or conversations of from and value ({error!r})"
        ) from error
    if kind not in KINDS:
        raise ValueError(f"{path}: row {place} is of kind {kind!r}, not one of {', '.join(KINDS)}")
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        raise ValueError(f"{path}: row {place} must alternate human and gpt, it has {speakers}")
    words[0] = words[0].replace("<point>", "").strip()
    return name, kind, tuple(zip(words[::2], words[1::2], strict=True))


def objaverse(
    root: Path, *, seed: int = 0, labels: Path | None = None, partial: bool = False
) -> DataSet:
    """The published Objaverse files under `root`, or any set in their layout.

    root    : holds 8192_npy/ and either the published annotation files (train: the filtered brief
              and the complex file; query: a validation file) or train.json and query.json. The
              gallery is gallery.json, or the training split where there is none.
    seed    : where there are only training files, draws the tenth of their objects to query.
    labels  : JSON of object id -> class name; without it all objects are of one class, "object",
              and nothing about classes can be asked of the set.
    partial : leave out the conversations about objects whose cloud is not there, and say how many
              and which, instead of stopping (`--skip-missing`).
    """
    root = Path(root)
    files = _split_files(root)
    classes = _read_json(labels, "labels") if labels else _class_of(root)
    rows = {
        split: [each for path in paths for each in read_annotations(path)]
        for split, paths in files.items()
    }
    here = _clouds_in(root)
    for split in rows:
        rows[split] = _present(rows[split], here, root, split, partial)
    if "query" not in rows:
        rows["train"], rows["query"] = _held_out(rows["train"], seed)
        print(f"{root}: no validation file, so a tenth of the objects is kept out to query")
    if both := {row[0] for row in rows["train"]} & {row[0] for row in rows["query"]}:
        raise ValueError(
            f"{root}: {len(both)} objects are both trained on and queried, {min(both)} among them; "
            "use the filtered training file"
        )
    return _assemble(root, "objaverse", rows, classes, _identity(root, files, here))


def benchmark(root: Path) -> Objects | None:
    """The objects of the published benchmark, which needs no training files; None without its file.

    root : holds 8192_npy/ with their clouds and the 200 reference captions
    """
    root = Path(root)
    path = root / BENCHMARK
    if not path.is_file():
        return None
    here = _clouds_in(root)
    rows = _present(read_annotations(path), here, root, "benchmark", partial=False)
    identity = _identity(root, {"query": [path]}, here & {row[0] for row in rows})
    return _objects(root, rows, {}, [UNLABELLED], {}, identity)


def read_set(root: Path, name: str) -> DataSet:
    """A whole set in the published layout with its own classes, factors and splits."""
    files = _split_files(root)
    rows = {split: read_annotations(paths[0]) for split, paths in files.items()}
    record = _read_json(root / "recipe.json", "recipe")
    return _assemble(root, name, rows, _class_of(root), record["clouds_sha256"])


def _clouds_in(root: Path) -> set[str]:
    return {path.name.removesuffix(f"_{POINTS}.npy") for path in (root / "8192_npy").glob("*.npy")}


def _split_files(root: Path) -> dict[str, list[Path]]:
    own = {split: [root / f"{split}.json"] for split in ("train", "gallery", "query")}
    if own["train"][0].exists() and own["query"][0].exists():
        return {split: paths for split, paths in own.items() if paths[0].exists()}
    train = [root / name for name in TRAIN_FILES if (root / name).exists()]
    query = [root / name for name in QUERY_FILES if (root / name).exists()][:1]
    if not train or not (root / "8192_npy").is_dir():
        raise FileNotFoundError(
            f"{root} is no Objaverse folder: put 8192_npy/, {' or '.join(TRAIN_FILES)}, and "
            f"{' or '.join(QUERY_FILES)} there; or 8192_npy/, train.json and query.json"
        )
    return {"train": train, "query": query} if query else {"train": train}


def _held_out(rows: list, seed: int) -> tuple[list, list]:
    """Rows of nine tenths of the objects and of one tenth, drawn by object."""
    ids = sorted({row[0] for row in rows})
    if len(ids) < 2:
        raise ValueError("one object can't be both trained on and queried: add a validation file")
    drawn = np.random.default_rng(seed).permutation(len(ids))[: max(1, len(ids) // 10)]
    kept_out = {ids[at] for at in drawn}
    return (
        [row for row in rows if row[0] not in kept_out],
        [row for row in rows if row[0] in kept_out],
    )


def _read_json(path: Path, what: str) -> dict:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file of {what} at {path}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): make the set again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    return values


def _class_of(root: Path) -> dict[str, str]:
    """Class of each object where the set knows it, from its factors; else nothing."""
    if not (root / "factors.json").exists():
        return {}
    return {
        name: each["class"] for name, each in _read_json(root / "factors.json", "factors").items()
    }


def _present(rows, here: set[str], root: Path, split: str, partial: bool) -> list:
    """The rows whose clouds are there and sound; stops when any is missing unless told to skip."""
    rows = [row for row in rows if row[0] not in CORRUPT]
    if not rows:
        raise ValueError(f"{root}: the {split} annotations hold no conversation")
    present = [row for row in rows if row[0] in here]
    if len(present) == len(rows):
        return rows
    missing = sorted({row[0] for row in rows} - here)
    named = ", ".join(missing[:NAMED]) + (
        f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    )
    found = (
        f"{root}: {len(missing)} {split} objects, of {len(rows) - len(present)} conversations, "
        f"have no cloud in 8192_npy: {named}"
    )
    if not partial:
        raise FileNotFoundError(
            f"{found}; unpack the whole archive there, or leave them out with --skip-missing"
        )
    if not present:
        raise FileNotFoundError(f"none of the {split} objects of {root} has a cloud in 8192_npy")
    print(f"{found}; they are left out")
    return present


def _identity(root: Path, files: dict[str, list[Path]], here: set[str]) -> str:
    """Annotations by content and clouds by name and size: 77 GB of clouds are not read for it."""
    digest = hashlib.sha256()
    for paths in files.values():
        for path in paths:
            digest.update(path.read_bytes())
    for name in sorted(here):
        digest.update(f"{name} {cloud_path(root, name).stat().st_size}\n".encode())
    return digest.hexdigest()


def _assemble(root: Path, name: str, rows: dict, classes: dict[str, str], identity: str) -> DataSet:
    listed = root / "classes.txt"
    if listed.exists():
        class_names = listed.read_text(encoding="utf-8").splitlines()
    else:
        class_names = sorted(set(classes.values())) or [UNLABELLED]
    known = root / "factors.json"
    factors = _read_json(known, "factors") if known.exists() else {}
    splits = {
        split: _objects(root, part, classes, class_names, factors, identity)
        for split, part in rows.items()
    }
    return DataSet(name, splits["train"], splits.get("gallery", splits["train"]), splits["query"])


def _objects(root: Path, rows, classes, class_names, factors, identity) -> Objects:
    """One split; an object may have many rows, its place is that of the first."""
    ids = list(dict.fromkeys(row[0] for row in rows))
    place = {name: at for at, name in enumerate(ids)}
    conversations = [Conversation(place[name], kind, turns) for name, kind, turns in rows]
    captions = [""] * len(ids)
    for each in sorted(conversations, key=lambda each: KINDS.index(each.kind)):
        captions[each.object] = captions[each.object] or each.turns[0][1]
    number = {name: label for label, name in enumerate(class_names)}
    if lacking := [name for name in ids if classes and name not in classes]:
        raise ValueError(f"{root}: {len(lacking)} objects have no class, the first is {lacking[0]}")
    return Objects(
        ids=ids,
        labels=np.array([number[classes.get(name, UNLABELLED)] for name in ids], np.int64),
        class_names=class_names,
        captions=captions,
        conversations=conversations,
        read=CloudFiles(root, tuple(ids)),
        count=POINTS,
        identity=identity,
        factors=_factor_arrays([factors[name] for name in ids]) if factors else {},
    )


def _factor_arrays(records: list[dict]) -> dict[str, np.ndarray]:
    """The factors that are one number or word an object, (objects,) each."""
    plain = [key for key, value in records[0].items() if not isinstance(value, dict)]
    return {key: np.array([record[key] for record in records]) for key in plain}
