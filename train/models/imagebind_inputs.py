"""What ImageBind's towers read, made from text, image files and sound as in its release."""

from __future__ import annotations

import gzip
import html
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from train.models.imagebind import CONTEXT, VOCABULARY

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
IMAGE = 224
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
RATE, WINDOW = 16_000, 400
CLIPS, CLIP_SECONDS = 3, 2
BANDS, FRAMES = 128, 204
SOUND_MEAN, SOUND_STD = -4.268, 9.138


def clip_tokenizer(merges: Path) -> Tokenizer:
    """CLIP's byte-pair tokenizer from its file of merges, `bpe_simple_vocab_16e6.txt[.gz]`.

    Raises FileNotFoundError, and ValueError where the file has too few merges.
    """
    merges = Path(merges)
    raw = gzip.decompress(merges.read_bytes()) if merges.suffix == ".gz" else merges.read_bytes()
    wanted = VOCABULARY - 2 - 512
    lines = [line.split() for line in raw.decode().split("\n")[1 : 1 + wanted]]
    pairs = [(line[0], line[1]) for line in lines if len(line) == 2]
    if len(pairs) != wanted:
        raise ValueError(f"{merges} holds {len(pairs)} merges, CLIP's vocabulary has {wanted}")
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += ["".join(pair) for pair in pairs]
    words += [START, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _byte_letters() -> list[str]:
    """A printable letter for each byte, in the order of CLIP's vocabulary (GPT-2's mapping)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + place) for place in range(len(hidden))]


def text_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids (texts, 77): start, words, end, zeros. Raises ValueError for an empty text.

    As Point-Bind's copy of ImageBind: a text too long for 77 tokens loses its end token, and is
    then read off at its start token. Broken characters are not repaired (the release runs ftfy).
    """
    ids = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        clean = re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()
        if not clean:
            raise ValueError("an empty text has no embedding")
        found = [VOCABULARY - 2, *tokenizer.encode(clean).ids, VOCABULARY - 1][:CONTEXT]
        row[: len(found)] = torch.tensor(found)
    return ids


def image_pixels(path: Path) -> Tensor:
    """An image file as the vision tower reads it, (3, 224, 224)."""
    return pixels(image_array(path))


def image_array(path: Path) -> np.ndarray:
    """The pixels of an image file, (height, width, 3) uint8. Raises ValueError for another file."""
    from PIL import Image, UnidentifiedImageError

    try:
        return np.array(Image.open(path).convert("RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {path}") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is no image: {error}") from None


def pixels(picture: np.ndarray) -> Tensor:
    """An image (height, width, 3) uint8 as ImageBind reads it: shorter side 224, centre cut."""
    from PIL import Image

    image = Image.fromarray(picture)
    factor = IMAGE / min(image.size)
    size = [max(IMAGE, int(side * factor)) for side in image.size]
    image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, top = (round((side - IMAGE) / 2) for side in size)
    image = image.crop((left, top, left + IMAGE, top + IMAGE))
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return (values - torch.tensor(IMAGE_MEAN)[:, None, None]) / torch.tensor(IMAGE_STD)[
        :, None, None
    ]


def sound_clips(path: Path) -> Tensor:
    """A 16 kHz wav file as the audio tower reads it, (3, 1, 128, 204): three clips of 2 seconds.

    The clips are evenly spaced; a file shorter than one is padded. Log-mel energies are Kaldi's,
    computed by transformers. Raises ValueError for a file of another rate: resample it first; and
    for one that is shorter than a window of 25 ms. FileNotFoundError where there is none.
    """
    from scipy.io import wavfile

    if not path.is_file():
        raise FileNotFoundError(f"no sound at {path}")
    try:
        rate, wave = wavfile.read(path)
    except ValueError as error:
        raise ValueError(f"{path} is no wav file: {error}") from None
    if rate != RATE:
        raise ValueError(
            f"{path} has {rate} samples a second, the audio tower reads {RATE}: resample it first"
        )
    if len(wave) < WINDOW:
        raise ValueError(f"{path} holds {len(wave)} samples, one window of it takes {WINDOW}")
    if wave.dtype.kind == "i":
        wave = wave / np.iinfo(wave.dtype).max
    if wave.dtype.kind == "u":  # 8 bits are written from 0 to 255
        wave = (wave - 128.0) / 128
    if wave.ndim == 2:
        wave = wave[:, 0]
    length = CLIP_SECONDS * RATE
    starts = np.linspace(0, max(0, len(wave) - length), CLIPS)
    clips = [_mel(wave[int(start) : int(start) + length]) for start in starts]
    return torch.stack(clips)[:, None]


def _mel(wave: np.ndarray) -> Tensor:
    """Log-mel energies (128, 204) of one clip, normed."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    with warnings.catch_warnings():
        # The lowest of 128 bands fall between two frequencies of a 25 ms window, in Kaldi too.
        warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
        filters = mel_filter_bank(
            num_frequency_bins=257,
            num_mel_filters=BANDS,
            min_frequency=20,
            max_frequency=RATE // 2,
            sampling_rate=RATE,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
    energies = spectrogram(
        wave - wave.mean(),
        window_function(WINDOW, "hann", periodic=False),
        frame_length=WINDOW,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    )
    found = torch.zeros(BANDS, FRAMES)
    frames = min(FRAMES, energies.shape[1])
    found[:, :frames] = torch.from_numpy(energies[:, :frames])
    return (found - SOUND_MEAN) / SOUND_STD
