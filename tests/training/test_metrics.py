import shutil

import numpy as np
import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from tilesight.errors import DataError
from training import metrics

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime")

TRUTH = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
SCORES = np.array([[0.9, 0.2, 0.6, 0.1], [0.1, 0.8, 0.7, 0.3], [0.1, 0.1, 0.1, 0.1]])
HALF = np.full(4, 0.5)

REFERENCES = {
    "river00": ["A green river with trees .", "There are trees beside the river ."],
    "beach00": ["A white beach .", "Waves slapping a white sand beach ."],
    "forest00": ["A dense forest .", "Lots of dark green trees in the forest ."],
}
OWN = {stem: sentences[1] for stem, sentences in REFERENCES.items()}
OTHER = {stem: "Many cars parked neatly" for stem in REFERENCES}


# Labels


def test_label_figures_follow_their_formulas() -> None:
    values = metrics.label_metrics(TRUTH, SCORES, HALF)
    # Tile 1: P 1/2, R 1/2. Tile 2: P = R = 1. Tile 3: nothing said, nothing there, all 0.
    assert values["precision_samples"] == pytest.approx(0.5)
    assert values["recall_samples"] == pytest.approx(0.5)
    assert values["f1_samples"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert values["f1_micro"] == pytest.approx(2 * 3 / (4 + 4))
    # Classes: F1 1, 2/3, 2/3; the fourth has no positive tile. Average precision 1, 1, 1.
    assert values["f1_macro"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert values["map"] == pytest.approx(1)
    assert values["classes_skipped"] == 1


@pytest.mark.parametrize("beta", [1, 2])
def test_the_papers_f_is_that_of_the_mean_precision_and_recall(beta: int) -> None:
    generator = np.random.default_rng(5)
    truth, scores = generator.random((40, 6)) < 0.4, generator.random((40, 6))
    predicted = scores >= 0.3
    hits = (truth & predicted).sum(axis=1)
    precision = np.mean(hits / np.maximum(predicted.sum(axis=1), 1))
    recall = np.mean(hits / np.maximum(truth.sum(axis=1), 1))
    expected = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
    values = metrics.label_metrics(truth, scores, np.full(6, 0.3))
    assert values[f"f{beta}_paper"] == pytest.approx(expected)
    assert values[f"f{beta}_paper"] > values[f"f{beta}_samples"]


def test_average_precision_falls_with_the_order_alone() -> None:
    truth = np.array([[1, 0], [0, 0], [1, 0], [0, 0]])
    scores = np.array([[0.4, 0], [0.3, 0], [0.2, 0], [0.1, 0]])
    values = metrics.label_metrics(truth, scores, HALF[:2])
    assert values["map"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["f1_macro"] == 0


def test_a_label_is_present_at_its_threshold() -> None:
    truth = np.array([[1, 1]])
    at = metrics.label_metrics(truth, np.array([[0.5, 0.25]]), np.array([0.5, 0.25]))
    below = metrics.label_metrics(truth, np.array([[0.5, 0.25]]), np.array([0.51, 0.25]))
    assert at["f1_samples"] == 1
    assert below["f1_samples"] == pytest.approx(2 / 3)


def test_labels_of_another_shape_or_without_positives_are_an_error() -> None:
    with pytest.raises(DataError, match=r"\(3, 4\)"):
        metrics.label_metrics(TRUTH, SCORES[:2], HALF)
    with pytest.raises(DataError, match=r"thresholds \(3,\)"):
        metrics.label_metrics(TRUTH, SCORES, HALF[:3])
    with pytest.raises(DataError, match=r"truth \(3, 1\)"):
        metrics.label_metrics(TRUTH[:, :1], SCORES[:, :1], HALF[:1])
    with pytest.raises(DataError, match="no class"):
        metrics.label_metrics(np.zeros_like(TRUTH), SCORES, HALF)


# Captions


def test_a_reference_said_again_scores_best() -> None:
    values = metrics.caption_metrics(REFERENCES, OWN, tokenizer="words")
    for key in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"):
        assert values[key] == pytest.approx(1, abs=1e-6), key
    # One of the two references is the sentence itself, whose CIDEr-D is 10.
    assert 5 <= values["cider"] < 10
    only = metrics.caption_metrics({k: [v] for k, v in OWN.items()}, OWN, tokenizer="words")
    assert only["cider"] == pytest.approx(10)


def test_a_sentence_of_other_words_scores_nothing() -> None:
    values = metrics.caption_metrics(REFERENCES, OTHER, tokenizer="words")
    assert values["cider"] == values["rouge_l"] == 0
    assert values["bleu_4"] == pytest.approx(0, abs=1e-6)


def test_the_order_of_the_hypotheses_does_not_matter() -> None:
    backwards = dict(reversed(OWN.items()))
    assert metrics.caption_metrics(REFERENCES, backwards, tokenizer="words") == (
        metrics.caption_metrics(REFERENCES, OWN, tokenizer="words")
    )


def test_bleu_and_rouge_agree_with_a_hand_count() -> None:
    values = metrics.caption_metrics(
        {"river00": ["a green river with trees"]}, {"river00": "a river with trees"}, None, "words"
    )
    brevity = np.exp(1 - 5 / 4)
    assert values["bleu_1"] == pytest.approx(brevity, abs=1e-6)
    assert values["bleu_2"] == pytest.approx(brevity * np.sqrt(2 / 3), abs=1e-6)
    precision, recall, beta = 1, 4 / 5, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert values["rouge_l"] == pytest.approx(expected)


def test_variety_counts_different_and_copied_sentences() -> None:
    said = {"river00": "A green river.", "beach00": "a green river", "forest00": "Trees!"}
    values = metrics.caption_metrics(REFERENCES, said, ["A green  river", "a beach"], "words")
    assert values["distinct"] == 2
    assert values["verbatim_train"] == pytest.approx(2 / 3)
    assert "verbatim_train" not in metrics.caption_metrics(REFERENCES, said, None, "words")


def test_without_java_meteor_is_left_out_and_the_tokenizer_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    assert metrics.tokenizer_name() == "words"
    values = metrics.caption_metrics(REFERENCES, OWN)
    assert "cider" in values
    assert not {"meteor", "sm"} & values.keys()


def test_captions_of_other_tiles_are_an_error() -> None:
    with pytest.raises(DataError, match="hypotheses of 1, 1 in common"):
        metrics.caption_metrics(REFERENCES, {"river00": "a river"})
    with pytest.raises(DataError, match="references of 0"):
        metrics.caption_metrics({}, {})


@needs_java
@pytest.mark.java
def test_the_ptb_tokens_are_those_of_pycocoevalcap(capfd: pytest.CaptureFixture[str]) -> None:
    spoken = {
        "river00": ["A greenish-blue river , it's Green .", '(some) "trees"; cars...'],
        "beach00": ["Can't see 2 boats - or 1,5 ?"],
    }
    ours = metrics.tokenize(spoken, "ptb")
    assert capfd.readouterr() == ("", "")
    theirs = PTBTokenizer().tokenize(
        {stem: [{"caption": text} for text in texts] for stem, texts in spoken.items()}
    )
    assert ours == theirs
    assert ours["river00"][0] == "a greenish-blue river it 's green"


@needs_java
@pytest.mark.java
@pytest.mark.slow
def test_meteor_and_sm_come_with_java_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    own = metrics.caption_metrics(REFERENCES, OWN)
    other = metrics.caption_metrics(REFERENCES, OTHER | {"river00": ""})
    assert capfd.readouterr() == ("", "")
    assert own["meteor"] == pytest.approx(1)
    assert own["sm"] == pytest.approx((1 + 1 + 1 + own["cider"]) / 4, abs=1e-6)
    assert other["meteor"] < 0.1
    assert metrics.tokenizer_name() == "ptb"


# Answers


def test_the_average_weighs_every_kind_alike() -> None:
    kinds = ["presence", "presence", "presence", "count"]
    values = metrics.answer_metrics(kinds, ["yes", "no", "no", "two"], ["yes", "no", "yes", "two"])
    assert values == {
        "overall": pytest.approx(3 / 4),
        "presence": pytest.approx(2 / 3),
        "count": 1,
        "average": pytest.approx((2 / 3 + 1) / 2),
    }


def test_answers_of_different_lengths_are_an_error() -> None:
    with pytest.raises(DataError, match="2 true answers, 1 predicted"):
        metrics.answer_metrics(["count", "count"], ["one", "two"], ["one"])
    with pytest.raises(DataError, match="0 kinds"):
        metrics.answer_metrics([], [], [])
