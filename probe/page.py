"""The report of a run: one page that opens anywhere, and the same in Markdown with its pictures.

Every number is read from the run's results when the report is written; none is typed here. What
comes from data (names, captions, settings) is escaped.
"""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from probe import page_parts as parts
from probe import page_words as words
from probe.findings import by_alignment, controls, over_depth
from probe.judged import counted
from probe.page_text import Picture, Section, Table, as_html, as_markdown
from store import Run, StoreError

BESIDE = ("seeds", "reconstruction", "steps", "alignment", "maps", "causal", "lens")
"""Probes kept beside the sweep, in the order of their sections."""
SETTING = ("preset", "data", "seed", "steps", "learning_rate", "batch_size", "precision", "stage1")


def write_report(run: Run, out: Path | None = None) -> list[Path]:
    """Write report.html, report.md and report/*.png; returns the paths of the first two.

    out : the folder to write to; the run's own by default, which must be on a disk. The record
    run.json is that of the run's folder, or of `out` where states and record lie apart.

    Raises ValueError for a run that was not probed, or by a version that measured less.
    """
    if out is None and not isinstance(run.path, Path):
        raise ValueError(f"{run.name} is no folder of this machine: name one with --out")
    folder = Path(run.path if out is None else out)
    try:
        results = run.probes("sweep")
    except StoreError:
        raise ValueError(
            f"{run.name} has no sweep to report: python -m probe {run.name} makes it"
        ) from None
    try:
        sections = _sections(run, results, _record(run, folder))
    except (KeyError, AttributeError) as error:  # so xarray says that a variable is not there
        what = str(error.args[0]).partition(". ")[0]
        raise ValueError(
            f"{run.name}: what is kept of it lacks what the report shows, as another version kept "
            f"it ({what}): python -m probe {run.name} makes the sweep anew, with --probes NAME "
            "what lies beside it"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    page, text = folder / "report.html", folder / "report.md"
    page.write_text(as_html(results.attrs["run"], sections), encoding="utf-8")
    for picture in (part for s in sections for part in s.parts if isinstance(part, Picture)):
        (folder / "report").mkdir(exist_ok=True)
        (folder / "report" / f"{picture.name}.png").write_bytes(picture.png)
    text.write_text(as_markdown(results.attrs["run"], sections), encoding="utf-8")
    return [page, text]


def _sections(run: Run, results: xr.Dataset, record: dict[str, Any]) -> list[Section]:
    config = record.get("config", {})
    others = {name: run.probes(name) for name in BESIDE if _has(run, name)}
    question = [words.QUESTION, *words.comparison(config, run.variants), _asked(results)]
    glossary = Table(
        "Words", ["word", "meaning"], words.words(run.variants, run.attrs["provenance"])
    )
    found = [
        Section("Question", question, [glossary]),
        Section("What was found", over_depth(results), parts.verdicts(results)),
        Section("What alignment changes", by_alignment(results), []),
        parts.over_seeds(others.get("seeds"), _over_seeds_beside(run)),
        Section("Depth", [], parts.depth(results)),
        *parts.more(results),
    ]
    if "reconstruction" in others:
        found.append(parts.rebuilt(others["reconstruction"]))
    if "causal" in others or "lens" in others:
        found.append(parts.looking(others.get("causal"), others.get("lens")))
    if "steps" in others:
        found.append(parts.training(others["steps"]))
    if "alignment" in others:
        found.append(parts.through_alignment(others["alignment"]))
    if "maps" in others:
        found.append(parts.maps(others["maps"]))
    found += [
        Section("Controls", controls(results), []),
        Section("How it was measured", words.methods(results, others), []),
        Section("Limits", words.limits(config, others), []),
        Section("Provenance", [], [_provenance(run, results, record)]),
        _reproduce(run, results, record, others),
    ]
    return [section for section in found if section.sentences or section.parts]


def _over_seeds_beside(run: Run) -> dict[str, xr.Dataset]:
    """By probe, what is put together of several runs beside their sweeps."""
    from probe.seeds_beside import KEPT

    return {name: run.probes(f"seeds_{name}") for name in KEPT if _has(run, f"seeds_{name}")}


def _asked(results: xr.Dataset) -> str:
    about = results.attrs
    return (
        f"Measured on {about['query_objects']} query objects against {about['gallery_objects']} "
        f"gallery objects of {about['classes']} classes{counted(results)}, with "
        f"{about['level']:.0%} intervals over the query objects; differences are paired by object."
    )


def _provenance(run: Run, results: xr.Dataset, record: dict[str, Any]) -> Table:
    config = record.get("config", {})
    rows = [["run", str(results.attrs["run"])]]
    rows += [[key, str(record[key])] for key in ("status", "commit") if key in record]
    rows += [[key.replace("_", " "), str(config[key])] for key in SETTING if config.get(key)]
    rows += [[key.replace("_", " "), str(config[key])] for key in config if key[:6] == "align_"]
    rows += [
        ["models", ", ".join(run.variants)],
        ["layers probed", ", ".join(map(str, results.layer.values))],
        ["seed of the probes", str(results.attrs["seed"])],
    ]
    if "seconds" in record:
        rows.append(["time of the job", f"{record['seconds']:.0f} s"])
    for name, proofs in record.get("proofs", {}).items():
        rows.append([f"capture of {name}", f"{len(proofs)} checks passed before it was stored"])
    versions = record.get("versions", {})
    rows.append(["versions", ", ".join(f"{name} {v}" for name, v in versions.items())])
    rows += [[f"hash of {name}", str(v)] for name, v in record.get("hashes", {}).items()]
    return Table("Setting and provenance", ["what", "value"], [row for row in rows if row[1]])


def _reproduce(
    run: Run, results: xr.Dataset, record: dict[str, Any], others: dict[str, xr.Dataset]
) -> Section:
    """The commands, in order; the run is named as it was made, or by its folder."""
    where = Path(record.get("config", {}).get("out") or results.attrs["run"])
    named = where if where.name == results.attrs["run"] else results.attrs["run"]
    name = shlex.quote(str(record.get("config", {}).get("store") or named))
    commands = [str(record["command"])] if "command" in record else []
    asked = _by_name(results)
    commands.append(f"python -m probe {name}{asked}{_settings(results, run)}")
    for key, found in others.items():
        if key == "seeds":
            beside = [shlex.quote(str(where.parent / one)) for one in found.run.values.astype(str)]
            own = _by_name(found) or asked
            commands.append(f"python -m probe {' '.join(beside)}{own}{_settings(found, run)}")
        elif key in ("causal", "lens"):
            commands.append(f"python -m train.explain {name} --probes {key}")
        else:
            commands.append(f"python -m probe {name} --probes {key}{_settings(found, run)}")
    for key, found in _over_seeds_beside(run).items() if "seeds" not in others else ():
        if "run" in found.coords:
            beside = [shlex.quote(str(where.parent / one)) for one in found.run.values.astype(str)]
            commands.append(f"python -m probe {' '.join(beside)} --probes {key}")
    commands.append(f"python -m probe report {name}")
    return Section(
        "Commands",
        ["These make the run, its results and this report again."],
        [Table("", ["command"], [[command] for command in commands])],
    )


def _by_name(results: xr.Dataset) -> str:
    """The flag that asks for the probes of these results."""
    probes = ",".join(np.atleast_1d(results.attrs.get("probes", [])))
    return f" --probes {probes}" if probes else ""


def _settings(results: xr.Dataset, run: Run) -> str:
    """The flags for the layers, k and seed of these results, as far as they have them."""
    layers, flags = results.layer.values.tolist(), ""
    if layers != run.layers:
        flags += f" --layers {','.join(map(str, layers))}"
    if "k" in results.coords:
        flags += f" --k {','.join(map(str, results.k.values))}"
    return f"{flags} --seed {results.attrs['seed']}"


def _record(run: Run, folder: Path) -> dict[str, Any]:
    for file in (Path(run.path) / "run.json", folder / "run.json"):
        if file.is_file():
            try:
                return json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file} is damaged: {error}") from error
    return {}


def _has(run: Run, name: str) -> bool:
    try:
        run.probes(name)
    except StoreError:
        return False
    return True
