"""Stage 1: python -m train.stage1 --preset nano. From random weights to a model that sees shapes.

The published MiniGPT-3D starts from four trained models. The nano one has none, so three phases
stand for them (`language` for Phi-2, `encoder` for ULIP-2's PointBERT, `bridge` for BLIP-2's
Q-Former and TinyGPT-V's projector); the recipes I, II and III of MiniGPT-3D follow in their order.
"""

from __future__ import annotations

from train.cli import read_config, run
from train.config import MODELS, STAGE1, ModelConfig, Stage1Config


def main(config: Stage1Config) -> None:
    """Train, measure on unseen objects, write the checkpoint."""
    import torch
    from accelerate import Accelerator

    from train.checkpoint import save_model
    from train.data.shapes import shapes
    from train.evaluate import classify
    from train.frozen import encode_all, target_all
    from train.models.minigpt3d import build
    from train.provenance import provenance

    if config.threads:
        torch.set_num_threads(config.threads)
    accelerator = Accelerator(mixed_precision="no")
    sizes = MODELS[config.preset]
    data = shapes(
        config.data_root,
        seed=config.seed,
        train_per_class=config.train_per_class,
        gallery_per_class=config.query_per_class,
        query_per_class=config.query_per_class,
    )
    tokenizer = train_tokenizer(data.train, sizes.vocabulary, config.out / "tokenizer.json")
    model = build(sizes, seed=config.seed, branch_scale=sizes.llm_branch_scale)
    phases = Phases(config, sizes, model, tokenizer, data.train, accelerator)

    phases.language()
    phases.encoder()
    shown = encode_all(model, data.train, sizes.points, accelerator.device)
    phases.captions("bridge", shown, config.bridge_steps, peak=1e-3)
    phases.captions("I-mlp", shown, config.mlp_steps, peak=3e-4)
    phases.captions("II-brief", shown, config.brief_steps, peak=5e-4)
    phases.captions("III-mixed", shown, config.mixed_steps, peak=5e-4)

    model.half().float().eval()  # what ships is in half precision: that is what is measured
    targets = target_all(model, data.query, sizes.points, accelerator.device)
    result = classify(model, tokenizer, targets, data.query.labels, data.query.class_names)
    print(result.sentence("unseen objects of the embedded shapes"))
    card = provenance(config, {"data": data.train.fingerprint()}) | {"unseen": result.card()}
    save_model(config.out / "checkpoint", model, tokenizer, sizes, card)
    print(f"checkpoint: {config.out / 'checkpoint'}")


class Phases:
    """The phases in order; each trains its own selection and goes on where it was stopped."""

    def __init__(
        self, config: Stage1Config, sizes: ModelConfig, model, tokenizer, data, accelerator
    ):
        self.config, self.sizes, self.model = config, sizes, model
        self.tokenizer, self.data, self.accelerator = tokenizer, data, accelerator
        model.to(accelerator.device)

    def language(self) -> None:
        """The LLM alone, next token, answering from words at the point positions."""
        from train.objectives import LanguageBatches, LanguageObjective

        batches = LanguageBatches(
            self.data.conversations,
            self.tokenizer,
            queries=self.sizes.queries,
            size=self.config.batch_size,
            seed=self.config.seed,
            device=self.accelerator.device,
        )
        self._fit(
            "language",
            LanguageObjective(self.model.llm),
            batches,
            self.config.language_steps,
            peak=2e-3,
            wanted=lambda name: "lora_" not in name,
        )

    def encoder(self) -> None:
        """PointBERT and a bag-of-words tower, contrastively, object against its caption."""
        from train.objectives import ContrastiveObjective, PatchBatches

        batches = PatchBatches(
            self.model.point_encoder,
            self.data,
            self.tokenizer,
            points=self.sizes.points,
            size=2 * self.config.batch_size,
            seed=self.config.seed,
            device=self.accelerator.device,
        )
        objective = ContrastiveObjective(
            self.model.point_encoder, self.sizes.encoder_width, self.sizes.vocabulary
        )
        self._fit(
            "encoder",
            objective,
            batches,
            self.config.encoder_steps,
            peak=2e-3,
            wanted=lambda _: True,
        )

    def captions(self, name: str, shown, steps: int, peak: float) -> None:
        """Next token of the answers, from the encoder's cached tokens (objects, tokens, width)."""
        from train.batches import BRIEF, MIX, Batches
        from train.objectives import CaptionObjective, trained_in

        kinds = {"bridge": BRIEF | MIX, "III-mixed": MIX}
        batches = Batches(
            self.data.conversations,
            shown,
            self.tokenizer,
            weights=kinds.get(name, BRIEF),
            size=self.config.batch_size,
            queries=self.sizes.queries,
            context=self.sizes.llm_context,
            seed=self.config.seed,
            device=self.accelerator.device,
        )
        objective = CaptionObjective(self.model, contrast=name == "bridge")
        self._fit(name, objective, batches, steps, peak=peak, wanted=trained_in(name, self.model))

    def _fit(self, name: str, objective, batches, steps: int, *, peak: float, wanted) -> None:
        from train.checkpoint import train_only
        from train.loop import Schedule, Training, fit

        steps = max(1, round(steps * self.config.speed))
        trained = train_only(objective, wanted)
        print(
            f"{name}: {sum(trained.values()):,} parameters in {len(trained)} tensors, {steps} steps"
        )
        schedule = Schedule(
            steps=steps, warmup=max(1, steps // 20), start=peak / 50, peak=peak, floor=peak / 20
        )
        training = Training(schedule=schedule, seed=self.config.seed, save_every=100)
        folder = self.config.out
        fit(
            name,
            objective,
            batches,
            training,
            self.accelerator,
            folder / "training" / name,
            folder / "metrics.jsonl",
        )


def train_tokenizer(data, vocabulary: int, path):
    """A byte-level BPE on the captions and conversations; the end of a text is token 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if path.is_file():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "###"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    turns = [turn for each in data.conversations for pair in each.turns for turn in pair]
    template = ["[INST] <PC>", "</PC>", "  [/INST]"] * 100
    tokenizer.train_from_iterator(turns + template, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


if __name__ == "__main__":
    run(main, read_config(STAGE1))
