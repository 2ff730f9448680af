"""What the store costs beside plain files of the same bytes; prints ratios.

    python tests/benchmarks/bench_store.py [--folder DIR] [--samples 384] [--layers 9] [--rounds 5]
        [--sweep]

With --sweep it tries sizes of files and of chunks instead, which `store.schema` chose from. Sizes
are those of the published model: 32 tokens of 2560 numbers in float16, 9 layers. Ours and the plain
way take turns in one process, each after its pages were dropped from the cache where that is said;
a ratio is that of the medians. All of it goes to the disk of --folder.

A plain file verifies nothing. Ours searches what it writes for NaN, infinity and values that don't
fit, and gives every chunk a checksum; it holds a chunk against it the first time an opened run
reads it ("from disk", "first"), and not again while the file stays what it was ("again").

On a virtual machine with 2 cores, least to most of twelve runs of 384 samples, one after the other
with nothing else on the machine, goals 0.80 and 1.50: writing 0.82 to 1.11 of a raw write. One
layer of all samples takes, from disk, 0.93 to 1.03 times those of a plain file; from the page cache
1.16 to 1.42 times at first, 0.96 to 1.03 again. One sample at all layers takes 0.03 to 0.04, 1.30
to 1.39 and 1.31 to 1.42, of which xarray's own indexing of the labels is a quarter. Stock xarray,
with zarr's own reader, takes 4.2 to 4.3 times from disk and 11 to 14 times from the page cache; a
sample 0.1 and 7 to 12 times. Once of 1,280 samples: a layer from disk 1.23, from the page cache
1.2 to 1.3 and 1.0. Times vary with how the plain file came into the page cache: read from beginning
to end it lies in larger pages, and takes as little as 5 ms a layer instead of 7. Of all 33 layers
of 128 samples, once and with an older reader: writing 1.03; a layer 0.85, 1.01 and 0.44; a sample
0.02, 0.73 and 0.57.

With as many threads as cores instead of two for each, a layer took 1.08 to 1.21 times from disk and
1.1 to 1.7 at first from the page cache; all through the page cache besides, 1.43 to 1.49 from disk.
The program of schema 2 in turn with schema 3's, twice: writing 0.73 and 0.77, then 0.96 and 0.89.

What made writing faster, in paired runs: no folders for shards and one mark for each append (2 took
1.08 times as long), laying out in memory first and no look for counts of NaN where none are (both
with that: 1.2 times, of 256 samples).

A layer of 16 samples is at another place of each file. The system fetches such pieces into the
page cache in pages of 4 KiB and a sequential file in larger ones: only to have it fetch all of them
takes 1.0 to 1.3 times those of the plain file, however early it is told and by however many
threads. Past the page cache, into memory of large pages, they take 0.6 (of small pages, 1.6), but
what is read again isn't there then; so half of the files are read so.

Half precision out of float32 is written in 0.80 times the time with two threads that encode. All
else took longer with one or two (float16 as it is 1.08 and 1.17, bfloat16 out of float32 1.1 and
1.3), as google_crc32c holds the interpreter's lock and the system writes with the other core. Also
without gain: one `writev` of many chunks (3 times), a layer at a time instead of a chunk (1.0 to
1.2 times), files of 8 MiB a layer instead of 4 (1.03 times
to write, 1.05 a layer from disk) and of 16 (1.1 and 1.5).

Writing takes 161 to 162 MiB of memory for 1,000 small samples and 206 to 208 MiB for 100,000.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[2]))

import store
from store import schema

TOKENS, DIM, LAYERS = 32, 2560, [0, 4, 8, 12, 16, 20, 24, 28, 32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--samples", type=int, default=384)
    parser.add_argument("--layers", type=int, default=len(LAYERS), help="33 are all of Phi-2's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--grow", type=int, default=0, help="only write this many small samples")
    parser.add_argument("--sweep", action="store_true", help="try sizes of files and chunks")
    chosen = parser.parse_args()
    if chosen.grow:
        print(grow(chosen.folder, chosen.grow))
        return
    folder = Path(tempfile.mkdtemp(dir=chosen.folder))
    if chosen.layers != len(LAYERS):
        LAYERS[:] = range(chosen.layers)
    try:
        states = make_states(chosen.samples)
        size = states.nbytes / 2**30
        print(f"{chosen.samples} samples x {len(LAYERS)} layers, {size:.2f} GiB in float16\n")
        if chosen.sweep:
            sweep(folder, states, chosen.rounds)
            return
        writing(folder, states, chosen.rounds)
        reading(folder, states, chosen.rounds)
        memory(folder)
    finally:
        shutil.rmtree(folder)


def make_states(samples: int) -> np.ndarray:
    """(layers, samples, tokens, dim) of random bits that are no NaN; fast, and all different."""
    shape = (len(LAYERS), samples, TOKENS, DIM)
    bits = np.random.default_rng(0).integers(0, 0x7BFF, shape, dtype=np.uint16)
    return bits.view(np.float16)


def writing(folder: Path, states: np.ndarray, rounds: int) -> None:
    """End to end: laying out, every append, finishing; all on the disk when the clock stops.

    Every write begins with no pages of older ones in memory, which it would have to make room for.
    Older stores stay until the end: without a journal ext4 doesn't give the number of a file that
    was deleted in the last minutes to a new one, and looks for another at length.
    """
    times: dict[str, list[float]] = {"store": [], "raw": []}
    for number in range(rounds + 1):
        turn = (("raw", write_raw), ("store", write_store))
        for name, write in turn if number % 2 else turn[::-1]:
            path = folder / (name if name == "raw" or number == rounds else f"{name}-{number}")
            if name == "raw":
                remove(path)
            os.sync()
            drop_pages(folder)
            seconds = clock(lambda: write(path, states))  # noqa: B023
            times[name] += [seconds] if number else []  # the first round warms up
    for number in range(rounds):
        remove(folder / f"store-{number}")
    ratio = median(times["raw"]) / median(times["store"])
    speed = states.nbytes / median(times["store"]) / 1e9
    print(f"write: {ratio:.2f} of a raw sequential write (goal 0.80), {speed:.2f} GB/s")


def write_raw(path: Path, states: np.ndarray) -> None:
    with path.open("wb") as file:
        for layer in states:
            file.write(layer.data)
        file.flush()
        os.fsync(file.fileno())


def write_store(path: Path, states: np.ndarray) -> None:
    writer = create(path, states.shape[1])
    for rows in writer.pending("captured"):
        writer.append("captured", rows, states[:, rows])
    for rows in writer.pending("target"):
        writer.append_target(rows, np.zeros((rows.stop - rows.start, TOKENS, 4), np.float16))
    writer.finish()


class Clouds:
    """Made when rows are asked for, as those of a data set are read."""

    def __init__(self, samples: int):
        self.shape = (samples, 128, 6)

    def __getitem__(self, rows: slice) -> np.ndarray:
        at = np.arange(self.shape[0])[rows, None, None]
        return np.broadcast_to(at % 97 / 97, (len(at), *self.shape[1:]))


def create(
    path: Path, samples: int, tokens: int = TOKENS, dim: int = DIM, points: Clouds | None = None
) -> store.RunWriter:
    number = np.arange(samples)
    table = {
        "id": [f"object-{i}" for i in number],
        "label": number % 7,
        "class_name": ["a thing"] * samples,
        "split": np.where(number % 3, "gallery", "query"),
        "caption": ["A thing."] * samples,
    }
    return store.create_run(
        path,
        samples=table,
        layers=LAYERS,
        variants=["captured"],
        tokens=tokens,
        dim=dim,
        target_dim=4,
        points=points,
    )


def reading(folder: Path, states: np.ndarray, rounds: int) -> None:
    """One layer of all samples; one sample at all layers: against a memory-mapped npy.

    The run is opened anew for each read, so that every chunk is held against its checksum, but for
    those that are "again", of a run that has read everything before. Beside them stock xarray, as
    a user without this program opens the same store, before the clock starts.
    """
    flat = folder / "plain.npy"
    np.save(flat, states)
    os.sync()  # pages that are still to be written can't be dropped
    opened = lambda: store.open_run(folder / "store").hidden("captured")  # noqa: E731
    activations = folder / "store" / schema.STORE
    tree = xr.open_datatree(activations, engine="zarr", chunks=None)
    rng = np.random.default_rng(1)
    reads = {
        "one layer of all samples": lambda array, at: array[at % len(LAYERS)],
        "one sample at all layers": lambda array, at: array[:, at],
    }
    for where in ("from disk", "from cache, again", "from cache, first"):
        if where == "from cache, again":
            for _ in range(8):  # half of what is missing comes into the cache each time
                hidden = opened()
                for layer in range(len(LAYERS)):
                    hidden[layer].values, np.array(np.load(flat, mmap_mode="r")[layer])
        for name, read in reads.items():
            times: dict[str, list[float]] = {"store": [], "plain": [], "stock": []}
            for number in range(4 * rounds + 1):
                at = int(rng.integers(states.shape[1]))
                if where != "from cache, again":
                    hidden = opened()
                turn = ("plain", "store") if number % 2 else ("store", "plain")
                for way in turn if number < 4 * rounds else (*turn, "stock"):
                    if where == "from disk":
                        drop_pages(folder)
                    if way == "plain":
                        seconds = clock(lambda: np.array(read(np.load(flat, mmap_mode="r"), at)))  # noqa: B023
                    else:
                        array = hidden if way == "store" else tree["captured/hidden"]
                        seconds = clock(lambda: read(array, at).values)  # noqa: B023
                    times[way] += [seconds] if number else []
            ours, plain, stock = (median(times[way]) for way in ("store", "plain", "stock"))
            print(
                f"read {name}, {where}: {ours / plain:.2f} x a memory-mapped npy (goal 1.50), "
                f"{ours * 1000:.2f} ms; stock xarray {stock / plain:.2f} x"
            )


def sweep(folder: Path, states: np.ndarray, rounds: int) -> None:
    """Times of writing and of both reads by bytes of a layer in a file, and of a chunk.

    All settings take turns in every round, after the plain file that each is a ratio to.
    """
    settings = [(file, 128) for file in (1, 2, 4, 8, 16)] + [(4, 512), (4, 2048)]
    names = ["write", "layer cold", "sample cold", "layer cached", "sample cached"]
    times: dict = {(*setting, name): [] for setting in [*settings, ("raw", 0)] for name in names}
    for number in range(rounds + 1):
        for file, chunk in (("raw", 0), *np.random.default_rng(number).permutation(settings)):
            remove(folder / "store"), remove(folder / "raw"), os.sync()
            if file == "raw":
                seconds = clock(lambda: write_raw(folder / "raw", states))
                plain = np.memmap(folder / "raw", states.dtype, "r", shape=states.shape)
                read = lambda key: np.array(plain[key])  # noqa: B023, E731
            else:
                schema.CHUNK_BYTES, schema.INNER_BYTES = int(file) * 2**20, int(chunk) * 2**10
                seconds = clock(lambda: write_store(folder / "store", states))
                hidden = store.open_run(folder / "store").hidden("captured")
                read = lambda key: hidden[key].values  # noqa: B023, E731
            found = {"write": [seconds], **{name: [] for name in names[1:]}}
            for at in np.random.default_rng(number).integers(len(LAYERS), size=5):
                for what, key in (("layer", (at,)), ("sample", (slice(None), at))):
                    drop_pages(folder)
                    found[f"{what} cold"].append(clock(lambda: read(key)))  # noqa: B023
                    found[f"{what} cached"].append(clock(lambda: read(key)))  # noqa: B023
            for name, values in found.items() if number else ():  # the first round warms up
                times[file, chunk, name].append(median(values))
    print(f"{'MiB a layer in a file, KiB a chunk':36}", *(f"{name:>14}" for name in names))
    for file, chunk in settings:
        ratios = (median(times[file, chunk, n]) / median(times["raw", 0, n]) for n in names)
        print(f"{f'{file}, {chunk}':36}", *(f"{ratio:14.2f}" for ratio in ratios))


def drop_pages(folder: Path) -> None:
    """Let the system forget the files, so that the next read comes from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory(folder: Path) -> None:
    """Peak memory of a process that writes few samples, and of one that writes many."""
    peaks = {}
    for samples in (1_000, 100_000):
        command = [sys.executable, __file__, "--folder", str(folder), "--grow", str(samples)]
        peaks[samples] = int(subprocess.run(command, capture_output=True, check=True).stdout)
    few, many = (peak / 1024 for peak in peaks.values())
    clouds = 100_000 * np.prod(Clouds(1).shape) * 4 / 2**20
    print(
        f"memory: {few:.0f} MiB for 1,000 samples, {many:.0f} MiB for 100,000 (their names "
        f"included; their clouds are {clouds:.0f} MiB)"
    )


def grow(folder: Path, samples: int) -> int:
    """Peak memory in KiB of writing `samples` small samples and reading a layer's first ones."""
    path = folder / f"grow-{samples}"
    writer = create(path, samples, tokens=4, dim=64, points=Clouds(samples))
    rng = np.random.default_rng(0)
    for rows in writer.pending("captured"):
        count = rows.stop - rows.start
        writer.append("captured", rows, rng.random((len(LAYERS), count, 4, 64), np.float32))
        writer.append_target(rows, np.zeros((count, 4, 4), np.float16))
    writer.finish()
    store.open_run(path).hidden("captured")[0, :100].values.mean()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def clock(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
