"""Steps, attention, dtypes, what is not finite, and many writers: the store keeps them exactly."""

import threading
import time
import warnings

import numpy as np
import pytest
import xarray as xr
import zarr

import store
from store import shards
from store.lock import lock
from store.place import Place
from store.shards import BITS, Encoder, convert, decode, has_nonfinite
from tests.test_store import DIM, LAYERS, SAMPLES, TOKENS, contents, fill, plan, states, targets

STEPS = [10, 20]


def spans(writer):
    return [slice(a, min(a + writer.chunk, SAMPLES)) for a in range(0, SAMPLES, writer.chunk)]


def test_a_variant_with_steps_has_a_leading_dimension(tmp_path):
    writer = store.create_run(tmp_path / "run", **plan(steps={"aligned": STEPS}))
    for rows in writer.pending("target"):
        writer.append_target(rows, targets()[rows])
    for rows in writer.pending("stage1"):
        writer.append("stage1", rows, states()[:, rows])
    for number, step in enumerate(STEPS):
        assert writer.done("aligned") == 0
        for rows in writer.pending("aligned", step=step):
            writer.append("aligned", rows, states("aligned")[:, rows] + number, step=step)
        assert writer.done("aligned", step) == SAMPLES
    writer.finish()
    run = store.open_run(tmp_path / "run")
    hidden = run.hidden("aligned")
    assert hidden.dims == ("step", "layer", "sample", "token", "dim")
    assert run.steps("aligned") == STEPS and run.steps("stage1") == []
    later = hidden.sel(step=20, layer=4)
    np.testing.assert_array_equal(later, states("aligned")[1] + np.float16(1))
    assert run.hidden("stage1").dims == ("layer", "sample", "token", "dim")
    with xr.open_datatree(run.store, engine="zarr", chunks={}) as tree:
        stock = tree["/aligned"].ds.hidden
        np.testing.assert_array_equal(stock, hidden)
        assert stock.step.values.tolist() == STEPS and stock.chunks is not None
    assert store.verify_run(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("variant", "step", "message"),
    [
        ("aligned", None, r"aligned has steps 10, 20, and step=None was given"),
        ("aligned", 30, r"aligned has steps 10, 20, and step=30 was given"),
        ("stage1", 10, r"stage1 has no steps, and step=10 was given"),
    ],
)
def test_a_step_that_is_not_planned_is_refused(tmp_path, variant, step, message):
    writer = store.create_run(tmp_path / "run", **plan(steps={"aligned": STEPS}))
    with pytest.raises(ValueError, match=message):
        writer.append(variant, slice(0, 128), states()[:, :128], step=step)


def test_attention_comes_back_with_its_patches(tmp_path):
    rng = np.random.default_rng(1)
    weights = rng.random((SAMPLES, TOKENS, 16)).astype(np.float16)
    centres = rng.normal(size=(SAMPLES, 16, 3)).astype(np.float32)
    writer = store.create_run(tmp_path / "run", **plan(patches=16))
    for rows in writer.pending("attention"):
        writer.append_attention(rows, weights[rows], centres[rows])
    fill(writer)
    run = store.open_run(tmp_path / "run")
    attention = run.attention()
    assert attention.weights.dims == ("sample", "token", "patch")
    assert attention.centres.dims == ("sample", "patch", "xyz")
    np.testing.assert_array_equal(attention.weights, weights)
    np.testing.assert_array_equal(attention.centres.sel(sample="object-0250"), centres[250])
    assert store.verify_run(tmp_path / "run") == []


def test_a_run_without_attention_says_so(tmp_path):
    writer = store.create_run(tmp_path / "run", **plan())
    with pytest.raises(store.StoreError, match="captured without attention"):
        store.open_run(tmp_path / "run").attention()
    with pytest.raises(ValueError, match="no variant 'attention'"):
        writer.append_attention(slice(0, 128), np.zeros((128, 4, 2)), np.zeros((128, 2, 3)))


def test_the_encoders_output_comes_back_and_a_run_without_it_says_so(tmp_path):
    pooled = np.random.default_rng(1).normal(size=(SAMPLES, 6)).astype(np.float16)
    writer = store.create_run(tmp_path / "run", **plan(encoder_dim=6))
    with pytest.raises(ValueError, match="a value is not finite"):
        writer.append_encoder(slice(0, 128), np.full((128, 6), np.nan))
    for rows in writer.pending("encoder"):
        writer.append_encoder(rows, pooled[rows])
    fill(writer)
    run = store.open_run(tmp_path / "run")
    assert run.encoder().dims == ("sample", "encoder_dim")
    np.testing.assert_array_equal(run.encoder(), pooled)
    np.testing.assert_array_equal(run.encoder().sel(sample="object-0250"), pooled[250])
    assert store.verify_run(tmp_path / "run") == []
    folder = tmp_path / "run" / "activations.zarr/encoder/pooled"
    shard = next(folder.glob("c.*"))
    shard.write_bytes(shard.read_bytes()[:-9] + b"123456789")
    assert any(said.startswith("encoder") for said in store.verify_run(tmp_path / "run"))
    store.create_run(tmp_path / "without", **plan()).close()
    with pytest.raises(store.StoreError, match="captured without the output of its encoder"):
        store.open_run(tmp_path / "without").encoder()


def test_bfloat16_is_kept_bit_for_bit(tmp_path):
    import torch

    tensors = torch.from_numpy(states().astype(np.float32)).to(torch.bfloat16) * 1e30
    bits = tensors.view(torch.uint16).numpy()
    floats = tensors.float().numpy()
    np.testing.assert_array_equal(convert(bits, "float32"), floats)
    runs = []
    for name, given in (("bits", bits), ("floats", floats)):
        writer = store.create_run(
            tmp_path / name, **plan(dtype="bfloat16", variants=["stage1"], points=None)
        )
        for rows in writer.pending("stage1"):
            writer.append("stage1", rows, given[:, rows])
        for rows in writer.pending("target"):
            writer.append_target(rows, targets()[rows])
        writer.finish()
        runs.append(store.open_run(tmp_path / name))
    hidden = runs[0].hidden("stage1")
    assert hidden.dtype == np.float32
    np.testing.assert_array_equal(hidden, floats)
    assert contents(tmp_path / "bits") == contents(tmp_path / "floats")
    raw = zarr.open_array(runs[0].store, path="stage1/hidden", mode="r")
    assert raw.attrs["dtype"] == "bfloat16"
    np.testing.assert_array_equal(raw[:], bits)


def test_rounding_to_bfloat16_is_that_of_torch():
    import torch

    rng = np.random.default_rng(2)
    values = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    values = values[np.abs(values) < 3e38]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(convert(values, "bfloat16"), expected)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32)
    back = decode(convert(special, "bfloat16"), "bfloat16")
    np.testing.assert_array_equal(back, special)


@pytest.mark.parametrize("dtype", BITS)
def test_the_bits_tell_what_is_not_finite(dtype):
    bits = np.arange(2**16, dtype=np.uint32)
    patterns = bits.astype(np.uint16) if BITS[dtype][1] == "u2" else bits << 16
    values = patterns if dtype == "bfloat16" else patterns.view(dtype)
    finite = np.isfinite(decode(values, dtype))
    found = [not has_nonfinite(value, dtype) for value in values.reshape(-1, 1)]
    np.testing.assert_array_equal(found, finite)


def test_what_is_not_finite_is_kept_counted_and_told(tmp_path):
    path = tmp_path / "run"
    writer = store.create_run(path, **plan())
    fill_but = states("aligned")
    fill_but[1, 5, 2, 3] = np.nan
    fill_but[1, 299, 0, :2] = -np.inf
    for rows in spans(writer):
        writer.append_target(rows, targets()[rows])
        writer.append("stage1", rows, states()[:, rows])
        writer.append("aligned", rows, fill_but[:, rows].astype(np.float32))
    with pytest.warns(store.NonFiniteWarning, match="layer 4: 1 NaN and 2 infinite values"):
        writer.finish()
    run = store.open_run(path)
    assert run.nonfinite() == {"aligned": {"4": {"nan": 1, "inf": 2}}}
    np.testing.assert_array_equal(run.hidden("aligned"), fill_but)
    assert store.verify_run(path) == []
    with xr.open_datatree(run.store, engine="zarr") as tree:
        counts = tree["/aligned"].ds.nonfinite.sel(layer=4)
        assert counts[5].values.tolist() == [1, 0] and counts[299].values.tolist() == [0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.open_run(path).nonfinite()["aligned"]["4"]["inf"] == 2


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("samples", [1, 5, 8])
def test_zarr_reads_what_the_encoder_writes(tmp_path, dtype, samples):
    """Stock zarr is the independent reader of the shards that are made by hand here."""
    rng = np.random.default_rng(samples)
    given = rng.normal(size=(3, samples, TOKENS, DIM)).astype(np.float32)
    stored = convert(given, dtype)
    array = zarr.create_array(
        tmp_path / "a",
        shape=given.shape,
        shards=(3, 8, TOKENS, DIM),
        chunks=(1, 2, TOKENS, DIM),
        dtype=stored.dtype,
        serializer=zarr.codecs.BytesCodec(),
        compressors=[zarr.codecs.Crc32cCodec()],
    )
    encoder = Encoder(given, dtype, inner=2, capacity=8)
    Place(tmp_path / "a").write("c/0/0/0/0", encoder.pieces())
    np.testing.assert_array_equal(array[:], stored)


def test_every_way_of_indexing_gives_what_numpy_gives(tmp_path):
    fill(store.create_run(tmp_path / "run", **plan()))
    hidden, expected = store.open_run(tmp_path / "run").hidden("aligned"), states("aligned")
    rows = np.array([299, 3, 3, 128, 127, 0])
    for key in [
        (1,),
        (slice(None), rows),
        (slice(None, None, 2), slice(250, 20, -7)),
        (2, 131, 3, 5),
        (slice(None), 7, slice(1, 3), slice(None, None, -1)),
        (slice(None), slice(5, 5)),
    ]:
        np.testing.assert_array_equal(hidden[key].values, expected[key])
    picked = hidden.isel(layer=[2, 0], sample=rows, token=[1, 3], dim=[7, 0])
    np.testing.assert_array_equal(picked, expected[np.ix_([2, 0], rows, [1, 3], [7, 0])])
    np.testing.assert_array_equal(
        hidden.chunk(sample=100).mean("sample").compute().shape, (3, 4, 8)
    )


def test_processes_in_any_order_write_the_bytes_of_one(tmp_path):
    fill(store.create_run(tmp_path / "one", **plan()))
    writers = [store.create_run(tmp_path / "many", **plan())]
    writers += [store.resume_run(tmp_path / "many", **plan(), process=p) for p in (1, 2)]
    for name in ("aligned", "stage1"):
        for number in (2, 0, 1):
            for rows in writers[number].pending(name, number, 3):
                writers[number].append(name, rows, states(name)[:, rows])
    for number, writer in enumerate(writers):
        for rows in writer.pending("target", number, 3):
            writer.append_target(rows, targets()[rows])
    writers[0].finish()
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert len(LAYERS) == 3


def test_a_closed_writer_appends_no_more(tmp_path):
    writer = store.create_run(tmp_path / "run", **plan())
    writer.close()
    with pytest.raises(ValueError, match="its writer is closed"):
        writer.append("stage1", slice(0, 128), states()[:, :128])
    lock(Place(tmp_path / "run"), 0).release()


def test_chunks_are_encoded_by_threads_a_few_ahead_of_the_writer(monkeypatch):
    given = np.random.default_rng(0).normal(size=(9, 12, TOKENS, DIM)).astype(np.float32)
    half, begun, encode = given.astype(np.float16), [], shards.Encoder._chunk

    def chunk(encoder, states, layer, start):
        begun.append((layer, start, threading.current_thread().name[:7]))
        return encode(encoder, states, layer, start)

    monkeypatch.setattr(shards.Encoder, "_chunk", chunk)
    pieces = Encoder(given, "float16", inner=1, capacity=12).pieces()
    first = next(pieces)
    time.sleep(0.05)
    assert {name for *_, name in begun} == {"encoder"} and len(begun) <= shards.AHEAD + 1
    rest = list(pieces)
    plain = list(Encoder(half, "float16", inner=1, capacity=12).pieces())
    assert b"".join([first, *rest]) == b"".join(plain)
    assert [at for *at, _ in begun[108:]] == [[n // 12, n % 12] for n in range(108)]
    assert "encoder" not in {name for *_, name in begun[108:]}
    given[0, 3, 0, 0] = np.inf  # layers of one kind behind those of another stay behind them
    mixed = Encoder(iter([*given[:2], *half[2:5], *given[5:]]), "float16", inner=1, capacity=12)
    half[0, 3, 0, 0] = np.inf
    again = Encoder(half, "float16", inner=1, capacity=12)
    assert b"".join(mixed.pieces()) == b"".join(again.pieces()) and mixed.crc == again.crc
    assert [n.sum() for n in mixed.nonfinite] == [1, *[0] * 8]


@pytest.mark.parametrize("count", [2, 4])
def test_layers_one_by_one_must_be_as_many_as_the_store_takes(tmp_path, count):
    writer = store.create_run(tmp_path / "run", **plan())
    some = states()[:, :128]
    with pytest.raises(ValueError, match=f"stage1 rows 0-128: {count} layers, the store takes 3"):
        writer.append("stage1", slice(0, 128), iter([some[0]] * count))
    with pytest.raises(ValueError, match=r"\(127, 4, 8\) hidden, .* \(128, 4, 8\) \(sample, token"):
        writer.append("stage1", slice(0, 128), iter([some[0], some[1, :127]]))
    assert writer.done("stage1") == 0 and not list(tmp_path.rglob("stage1/hidden/c*"))


def test_encoders_that_fail_or_are_left_leave_no_thread_and_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    writer = store.create_run(tmp_path / "run", **plan())
    hidden = states().astype(np.float32)[:, :128]
    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr("store.place._start_writing", full)
        patch.setattr("store.place.LARGE", 0)
        with pytest.raises(OSError, match="No space left"):
            writer.append("stage1", slice(0, 128), hidden)
    hidden[2, 7, 0, 0] = 1e6
    with pytest.raises(ValueError, match="stage1, layer 8, sample object-0007: 1000000"):
        writer.append("stage1", slice(0, 128), hidden)
    assert threading.active_count() == before and writer.done("stage1") == 0
    assert not list(tmp_path.rglob("hidden/c*"))
