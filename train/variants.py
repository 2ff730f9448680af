"""The models that a run of stage 2 captures: one in memory, which is each of them in turn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from train.alignment import Stage2Objective
from train.checkpoint import read_tensors, write_tensors
from train.config import TRAINED, ModelConfig, Stage2Config
from train.loop import trained_tensors
from train.models.llm import add_lora, build_llm, hold_in, set_attention
from train.models.minigpt3d import MiniGPT3D
from train.objectives import language_parameters

UNTRAINED_SEED = 1_000_000
"""Added to the seed for the weights of the untrained LLM, which no training has seen."""


class Variants:
    """The model before stage 2, whose weights become those of `config.VARIANTS` and back."""

    def __init__(self, model: MiniGPT3D, config: Stage2Config, sizes: ModelConfig):
        """model : as the run begins with it"""
        self.model, self.config, self.sizes = model, config, sizes
        learning = language_parameters(model.llm)
        self.beginning = {
            f"llm.{name}": tensor.detach().clone()
            for name, tensor in model.llm.named_parameters()
            if name in learning
        }

    def begin(self) -> None:
        """The weights of the start, for the next model to train from."""
        self._put(self.beginning)

    @contextmanager
    def captured(self, variant: str) -> Iterator[MiniGPT3D]:
        """The model that is captured under this name, inside the `with`."""
        if variant == "untrained":
            trained, self.model.llm = self.model.llm, self._untrained()
            try:
                yield self.model
            finally:
                self.model.llm = trained
            return
        self.begin()
        if variant in TRAINED:
            tensors = read_tensors(checkpoint_of(self.config.folder, variant) / WEIGHTS)
            own = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
            self._put({name.removeprefix("model."): tensor for name, tensor in own.items()})
        yield self.model

    def _untrained(self) -> nn.Module:
        """A language model of the same sizes and precision that has never seen anything."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(UNTRAINED_SEED + self.config.seed)
            fresh = build_llm(self.sizes, branch_scale=self.sizes.llm_branch_scale)
            adapted = add_lora(fresh, self.sizes)
        hold_in(adapted, self.model.held_in())
        set_attention(adapted, self.config.attention)
        return adapted

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy these over the model's own, by name."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)


WEIGHTS = "model.safetensors"


def checkpoint_of(run: Path, variant: str) -> Path:
    """Folder of what a run trained under this name."""
    return run / "checkpoints" / variant


def keep(objective: Stage2Objective, folder: Path) -> None:
    """Write what was trained, and the adapter in the form that stock peft loads."""
    tensors = {name: tensor.cpu() for name, tensor in trained_tensors(objective).items()}
    write_tensors(folder / WEIGHTS, tensors)
    llm = objective.model.llm
    assert isinstance(llm, PeftModel)
    llm.save_pretrained(str(folder / "adapter"))
    path = folder / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["target_modules"].sort()  # a set in peft: another order in each process
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
