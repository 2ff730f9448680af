"""The README's commands, typed one after another as a reader would, at sizes that are quick.

    python -m pytest -m slow tests/test_commands_run.py

Left out are those that want the published weights (`tests/test_published.py` has them at a tiny
size), those that CI runs by itself, and the benchmarks, which have tests at a small size.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.commands import ROOT, shown

pytestmark = pytest.mark.slow

OBJECTS = "--train-per-class 2 --gallery-per-class 2 --query-per-class 2"
STEPS = "--steps 4 --warmup-steps 1 --save-every 4"
QUICK = {
    "train.stage1": "--speed 0.001 --train-per-class 2 --query-per-class 2",
    "train.stage2": f"{STEPS} {OBJECTS}",
    "train.sweep": f"{STEPS} {OBJECTS} --capture-layers 16 --out swept",
    "train.capture": "--gallery-per-class 2 --query-per-class 2",
    "train.explain": "--objects 12 --layers 0,32",
    "train.evaluate": "--limit 12",
    "train.pointbind": f"--steps 4 --decoder-steps 4 {OBJECTS}",
    "train.pointllm": "--language-steps 4 --pretrain-steps 4 --finetune-steps 4",
}
"""Flags that make a command quick; those that it has itself stay."""
ELSEWHERE = re.compile(r"--preset minigpt3d|WEIGHTS|pytest|notebooks\.execute|tests\.benchmarks")
SHIPPED = ROOT / "train" / "checkpoints"
MAIN = "python -m train.stage2 --capture-layers 4,8,...,32"
RUN, SECOND, THIRD = (f"runs/nano-shapes-seed{seed}" for seed in range(3))
BOUND, TALKER = "runs/pointbind-shapes-seed0", "runs/pointllm-shapes-seed0"
COMMANDS = [
    one
    for one in dict.fromkeys(shown()["README.md"])
    if one.startswith("python -m ") and one != MAIN and not ELSEWHERE.search(one)
]


def quick(command: str) -> list[str]:
    """The command as words, with the flags that it lacks of those that make it quick."""
    words = shlex.split(command)
    more = QUICK.get(words[2], "").split()
    pairs = [more[at : at + 2] for at in range(0, len(more), 2)]
    return [*words, *(word for pair in pairs if pair[0] not in words for word in pair)]


def filled(command: str, house: Path) -> str:
    """The command with the reader's own folders in it."""
    _, _, module, *_ = command.split()
    command = command.replace("--llm DIR", "--llm llm").replace("train/checkpoints", str(SHIPPED))
    if "--host bindllm" in command:
        command = f"{command.replace('RUN', TALKER)} --pool mean --out told"
    elif module == "train.capture" and "--trained" not in command:
        command = command.replace("RUN", "captured").replace("FOLDER", "llm")
        command += "" if "--out" in command else " --out behind"
    elif module in ("train.retrieve", "train.generate"):
        command = command.replace("RUN", BOUND)
    elif module == "train.talk":
        command = command.replace("RUN", TALKER)
    elif module == "probe.hosts":
        typed(quick("python -m probe told --probes knn,drift"), house)
        command = command.replace("RUN RUN", f"{RUN} told --out depth")
    elif "merge" in command:  # runs of one data set: another training on the same objects
        typed(quick("python -m train.capture --layers 0,4,...,32 --out other"), house)
        command = command.replace("RUN2", "other")
    elif "prune" in command:
        shutil.copytree(house / RUN, house / "pruned")
        command = command.replace("RUN", "pruned")
    elif "s3://bucket" in command:  # a folder stands for it; other tests have a real server
        command = command.replace("s3://bucket", (house / "bucket").as_uri()) + " --out runs/behind"
    command = re.sub(r"\bRUN3\b", THIRD, re.sub(r"\bRUN2\b", SECOND, command))
    command = re.sub(r"\bRUN1?\b", RUN, command).replace("OUT", "merged")
    return command.replace("DIR", "solids").replace("--capture-every 60", "--capture-every 2")


def typed(words: list[str], house: Path) -> str:
    """What a command prints; it must end well."""
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=house,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-800:]}\n{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def house(tmp_path_factory, solids_folder, tiny_tokenizer) -> Path:
    """A reader's folder: the main job done, two more seeds of it, a cloud and a language model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    house = tmp_path_factory.mktemp("house")
    sizes = LlamaConfig(
        vocab_size=tiny_tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=4,
    )
    LlamaForCausalLM(sizes).save_pretrained(house / "llm")
    tiny_tokenizer.save(str(house / "llm" / "tokenizer.json"))
    shutil.copytree(solids_folder, house / "solids")
    np.save(house / "cloud.npy", np.random.default_rng(0).random((512, 6)))
    for seed in range(3):
        typed(quick(f"{MAIN} --seed {seed}"), house)
    return house


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_does_its_work(command, house):
    said = typed(quick(filled(command, house)), house)
    assert said.strip()


def test_the_commands_left_what_they_promise(house):
    left = (
        f"{RUN}/report.html",
        f"{RUN}/evaluation",
        f"{BOUND}/report.md",
        f"{TALKER}/report.md",
        "swept/ablations.md",
        "found.png",
        "chair.ply",
        "depth/depth.png",
        "merged/activations.zarr",
        "part.npz",
    )
    assert [name for name in left if not (house / name).exists()] == []
