"""A model small enough to train in a second, and a data set of three solids."""

import fsspec
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from train.checkpoint import save_model
from train.config import ModelConfig
from train.models.minigpt3d import build

TINY = ModelConfig(
    points=128,
    encoder_width=24,
    encoder_depth=1,
    encoder_heads=2,
    groups=8,
    group_size=8,
    patch_width=16,
    mlp_width=16,
    qformer_input=16,
    qformer_width=16,
    qformer_depth=2,
    qformer_heads=2,
    qformer_ffn=16,
    qformer_lora_rank=2,
    queries=4,
    projector_width=16,
    llm_width=32,
    llm_depth=4,
    llm_heads=2,
    llm_ffn=32,
    llm_rotary=0.5,
    llm_lora_rank=2,
    llm_lora_alpha=2,
    llm_context=256,
    vocabulary=300,
)
CLASSES = ("ball", "stick", "plate")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """Bytes and the two special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY.vocabulary,
        special_tokens=["<|endoftext|>", "###"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["what is this? this is a ball, a stick, a plate."], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_tokenizer):
    """Folder of a stage-1 checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_model(folder, build(TINY, seed=3), tiny_tokenizer, TINY, {"made by": "the tests"})
    return folder


def solids(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 256, 3) points in balls, on sticks and on plates, with their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    shape = np.array([[1, 1, 1], [0.1, 0.1, 1], [1, 1, 0.1]])[labels]
    return rng.standard_normal((count, 256, 3)) * shape[:, None], labels


@pytest.fixture(scope="session")
def solids_folder(tmp_path_factory):
    """Folder with train.npz and test.npz, as `train.data.modelnet` reads it."""
    folder = tmp_path_factory.mktemp("solids")
    for split, count, seed in (("train", 60, 0), ("test", 30, 1)):
        points, labels = solids(count, seed)
        np.savez(
            folder / f"{split}.npz",
            points=points.astype(np.float16),
            labels=labels.astype(np.uint8),
            class_names=np.array(CLASSES),
            ids=np.array(
                [f"{CLASSES[label]}/{split}/{row:04d}" for row, label in enumerate(labels)]
            ),
        )
    return folder


@pytest.fixture(scope="session")
def server():
    """One that speaks the S3 protocol, on this machine; stopped and started, it keeps its files.

    There is one for all files of tests, since fsspec keeps a file system with the address it had.
    """
    pytest.importorskip("s3fs")
    module = pytest.importorskip("moto.server")
    server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("runs")
        yield server
        server.stop()
