"""A GPU that is not there: what runs on one, on tensors without numbers, and what it holds at most.

torch's FakeTensorMode carries out operations on shapes, dtypes and devices alone, and refuses those
whose tensors are on two devices; its MemTracker adds up what is alive, as the allocator of a GPU
rounds it. So a step of a model of any size runs here in seconds, and what would stop it on a GPU
(a tensor left on the CPU, two dtypes in a product) stops it here. It says nothing of speed, of
numbers, of memory lost between blocks, and of what has no fake: see `gpu`.
"""

from __future__ import annotations

import ctypes
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

if __name__ == "__main__":  # torch looks once, as it is imported, for who speaks for a GPU
    ctypes.CDLL(sys.argv[1])

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

aten = torch.ops.aten
GPU = torch.device("cuda", 0)
SOURCE = Path(__file__).with_suffix(".cpp")
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
ATTENTION = aten._scaled_dot_product_efficient_attention.default
PRODUCTS = (
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default),
    *(aten.convolution.default, ATTENTION),
)
"""What takes one dtype alone; their shapes are worked out for any."""
SCALER = {
    aten._amp_foreach_non_finite_check_and_unscale_.default: lambda *_: None,
    aten._amp_update_scale_.default: lambda scale, *_: scale,
}
"""What the scaler of half precision asks of a GPU alone: nothing overflowed, the scale stays."""


def unavailable() -> str:
    """Why there can be no such GPU here, or nothing."""
    if torch.backends.cuda.is_built():
        return "this torch is built for CUDA; a simulated GPU needs one that is not"
    if sys.platform != "linux" or not compiler():
        return "a simulated GPU needs Linux and a C++ compiler"
    return ""


def compiler() -> str | None:
    return shutil.which("c++") or shutil.which("g++")


def peaks(steps: list[dict[str, Any]]) -> list[int]:
    """Bytes at most of each `bench_stage2.measured_peak(**step)`, in a process of its own.

    Raises RuntimeError with what stopped it.
    """
    if why := unavailable():
        raise RuntimeError(why)
    torch_folder = Path(torch.__file__).parent
    libraries = torch_folder / "lib"
    with TemporaryDirectory() as folder:
        library, asked, found = (Path(folder) / name for name in ("gpu.so", "asked", "found"))
        command = [str(compiler()), "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder}/include"]
        command += [str(SOURCE), "-o", str(library), f"-L{libraries}", "-ltorch_cpu", "-lc10"]
        subprocess.run([*command, f"-Wl,-rpath,{libraries}"], check=True)
        asked.write_bytes(pickle.dumps(steps))
        run = [sys.executable, "-m", "tests.benchmarks.fake_gpu"]
        done = subprocess.run(
            [*run, *map(str, (library, asked, found))],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"on the simulated GPU: {done.stderr.strip()}")
        return pickle.loads(found.read_bytes())


@contextmanager
def gpu() -> Iterator[Tracker]:
    """Inside, tensors are fake, one GPU is there, and its memory is that of the tracker.

    Unlike on a real one, attention is always torch's memory-efficient kernel, which takes a mask
    and keeps what the flash one keeps; a module is where it was made, `.to` moves none; nothing is
    written, since there are no numbers. What copies to the CPU for numpy (the cache of the front,
    the capture) doesn't run.
    """
    tracker = Tracker()
    as_there = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.set_device": lambda *_: None,
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.max_memory_allocated": lambda *_: tracker.peak,
        "torch.cuda.reset_peak_memory_stats": lambda *_: tracker.forget(),
        "torch.nn.Module.to": _stay,
        "torch.nn.functional.scaled_dot_product_attention": _attend,
        "torch.optim.adam._default_to_fused_or_foreach": lambda *_, **__: (False, True),
        "torch._subclasses.fake_tensor.FakeTensorMode.avoid_device_init": True,
        "train.loop.save_trainer": lambda *_: None,
    }
    with ExitStack() as stack:
        for name, value in as_there.items():
            stack.enter_context(mock.patch(name, value))
        for mode in (FakeTensorMode(), tracker, WholeNumbers()):
            stack.enter_context(mode)
        yield tracker


def on_gpu(module: nn.Module) -> nn.Module:
    """A module of the meta device with fake parameters and buffers on the GPU in their place."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)

    return module._apply(lambda tensor: made.setdefault(id(tensor), fake(tensor)))


class Tracker(MemTracker):
    """Bytes of the GPU; of its kinds and modules nothing, whose hooks take no frozen parameter."""

    def _pre_fw_hook(self, *_):
        pass

    _post_fw_hook = _pre_bw_hook = _post_bw_hook = _pre_fw_hook

    @property
    def peak(self) -> int:
        return self._peak_mem.get(GPU, 0)

    def forget(self) -> None:
        self._peak_mem.clear()


class WholeNumbers(TorchDispatchMode):
    """Whole numbers and truth values are computed beside the fake ones, on the CPU.

    How many tokens are labelled, say, decides shapes. A fraction that is asked for is 0, and a
    truth value that hangs on fractions (are all points finite?) is True.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in SCALER:
            return SCALER[func](*args)
        if func is aten._local_scalar_dense.default:
            return _number(args[0])
        if func in PRODUCTS:
            dtypes = {each.dtype for each in tree_leaves(args) if isinstance(each, Tensor)}
            if len(dtypes) > 1:
                raise RuntimeError(f"{func} of {' and '.join(sorted(map(str, dtypes)))}")
        if func in INDEXED:
            places = [each for index in args[1] for each in _places(index)]
            args = (args[0], places, *args[2:])
        result = func(*args, **kwargs)
        made = [each for each in tree_leaves(result) if isinstance(each, FakeTensor)]
        flat, form = tree_flatten((args, kwargs))
        if any(each.numel() > 1 and each.is_floating_point() for each in made) or any(
            isinstance(each, FakeTensor) and not hasattr(each, "number") for each in flat
        ):
            for each in made:  # one of them may be an argument that was written to
                vars(each).pop("number", None)
            return result
        args, kwargs = tree_unflatten([_real(each) for each in flat], form)
        with _disable_current_modes():
            real = tree_leaves(func(*args, **kwargs))
        for each, number in zip(
            made, (one for one in real if isinstance(one, Tensor)), strict=True
        ):
            each.number = number
        return result


def _number(tensor: Tensor) -> float | bool:
    if not hasattr(tensor, "number"):
        return tensor.dtype == torch.bool or 0.0
    with _disable_current_modes():
        return tensor.number.item()


def _real(value: Any) -> Any:
    if isinstance(value, FakeTensor):
        return value.number
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _places(index: Tensor | None) -> list[Tensor | None]:
    """The index, or of a mask where it is true: a fake mask alone can't say how often."""
    if index is None or index.dtype != torch.bool:
        return [index]
    with _disable_current_modes():
        count = int(index.number.sum())
    return [torch.empty(count, dtype=torch.long, device=index.device) for _ in index.shape]


def _stay(module: nn.Module, *_: Any, **__: Any) -> nn.Module:
    return module


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """The memory-efficient kernel, as torch calls it on a GPU, in autocast too."""
    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        query, key, value = (each.to(half) for each in (query, key, value))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            seen = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = seen.masked_fill_(~attn_mask, -torch.inf)
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    keep = torch.is_grad_enabled()
    return ATTENTION(query, key, value, attn_mask, keep, dropout_p, is_causal, scale=scale)[0]


def main(asked: Path, found: Path) -> None:
    from accelerate.state import AcceleratorState

    with mock.patch("torch.cuda.is_available", lambda: True):
        from tests.benchmarks import bench_stage2

    def there(make):
        def made(*args):
            args = ["meta" if isinstance(each, torch.device) else each for each in args]
            with _disable_current_modes():
                objective = make(*args)
            objective, model = on_gpu(objective), objective.model
            if model.experts is not None:
                model.experts.share_queries(model.qformer.query_tokens)
            return objective

        return made

    results = []
    makers = {name: there(getattr(bench_stage2, name)) for name in ("stage1", "stage2")}
    for step in pickle.loads(asked.read_bytes()):
        AcceleratorState._reset_state(reset_partial_state=True)
        with gpu(), mock.patch.multiple(bench_stage2, **makers):
            results.append(bench_stage2.measured_peak(**step))
    found.write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[2]), Path(sys.argv[3]))
