"""Captions against references: BLEU, ROUGE-L and METEOR of well-kept libraries, and embeddings.

As in PointLLM's evaluator: a score an object, averaged over objects. Its authors advise against
the first three, which favour short captions; PointAlign's Table 2 has the embeddings and a judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from train.results import Answers

NOTHING = "##"
"""Stands for an empty caption, as published, so that it scores about 0."""


class _NoSynonyms:
    """In the place of WordNet, which nltk does not carry: no word has synonyms."""

    def synsets(self, word: str, pos: str | None = None) -> list:
        return []


def caption_scores(
    said: Sequence[str],
    references: Sequence[str],
    sentences: Path | None = None,
    simcse: Path | None = None,
) -> dict[str, np.ndarray]:
    """Name of the metric -> (objects,), 0 to 1 (a cosine may be below), higher is better.

    sentences, simcse : folders of the embedding models; the packaged one serves where no
        `sentences` is named, SimCSE is left out without its folder. The name says which model.

    Raises ValueError where a library is missing.
    """
    from train.sentences import Sentences, SimCSE

    said = [text.strip() or NOTHING for text in said]
    found = overlap(said, references)
    models: dict[str, Any] = {"sbert_similarity": Sentences(sentences)}
    if simcse:
        models["simcse_similarity"] = SimCSE(simcse)
    for name, model in models.items():
        pairs = model.embed(said) * model.embed(references)
        found[f"{name} ({model.name})"] = pairs.sum(axis=1)
    return found


def check_packages() -> None:
    """Raise ValueError where a library of these metrics is missing."""
    if missing := [name for name in ("nltk", "rouge_score") if find_spec(name) is None]:
        raise ValueError(
            f"caption metrics need packages more ({', '.join(missing)} is missing): "
            "pip install nltk rouge-score"
        )


def overlap(said: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """BLEU-1 to -4, ROUGE-L and METEOR of each pair, (objects,) from 0 to 1.

    BLEU and METEOR are nltk's on words split at spaces, as published: BLEU minds the case, smooths
    by its method 1 (Chen & Cherry 2014). METEOR without WordNet's data knows exact words and equal
    stems only, and its name says so. ROUGE-L is Google's F1 with stemming off; the published one
    is of an abandoned package and counts sentence by sentence.
    """
    check_packages()
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from nltk.translate.meteor_score import single_meteor_score
    from rouge_score.rouge_scorer import RougeScorer

    smooth, rouge = SmoothingFunction().method1, RougeScorer(["rougeL"])
    words = [
        (text.split(), reference.split()) for text, reference in zip(said, references, strict=True)
    ]
    found = {
        f"bleu-{n}": [
            sentence_bleu([true], text, weights=(1 / n,) * n, smoothing_function=smooth)
            for text, true in words
        ]
        for n in (1, 2, 3, 4)
    }
    pairs = zip(said, references, strict=True)
    found["rouge-l"] = [rouge.score(true, text)["rougeL"].fmeasure for text, true in pairs]
    net, name = _wordnet()
    found[name] = [single_meteor_score(true, text, wordnet=net) for text, true in words]
    return {name: np.array(values, np.float64) for name, values in found.items()}


def _wordnet() -> tuple[Any, str]:
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
        return wordnet, "meteor"
    except LookupError:
        return _NoSynonyms(), "meteor (no synonyms)"


def traditional(answers: Answers, scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The published evaluators' file of these metrics, times 100, with four decimals."""
    results = [
        {
            "object_id": name,
            "ground_truth": answers.references[at],
            "model_output": answers.said[at],
            "scores": {metric: round(100 * float(v[at]), 4) for metric, v in scores.items()},
        }
        for at, name in enumerate(answers.ids)
    ]
    overall = {metric: f"{100 * values.mean():.4f}" for metric, values in scores.items()}
    return {
        "inference_prompt": answers.prompt,
        "overall_scores": overall,
        "results": results,
        "made_by": dict(answers.made_by),
    }
