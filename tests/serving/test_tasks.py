import base64
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.serving import bundles
from tests.serving.gateway import rounded, tile

PNG = {"Content-Type": "image/png"}


def ask(client: TestClient, path: str, colour: str = "blue") -> dict[str, Any]:
    answer = client.post(path, content=tile(colour), headers=PNG)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_labels_are_all_there_best_first(client: TestClient) -> None:
    answer = ask(client, "/labels")
    scores = [one["score"] for one in answer["labels"]]
    assert scores == sorted(scores, reverse=True)
    assert {one["name"] for one in answer["labels"]} == set(bundles.LABELS)
    assert answer["labels"][0]["name"] == "water"
    assert answer["tile"] == {"width": 256, "height": 256, "format": "PNG"}
    assert answer["warnings"] == []


def test_every_answer_names_its_model(client: TestClient) -> None:
    model = ask(client, "/labels")["model"]
    assert model.keys() == {"name", "version", "digest", "precision", "backend"}
    assert (model["name"], model["version"], model["precision"]) == ("signa", 1, "float32")
    assert model["digest"].startswith("sha256:")
    assert model["backend"] == "onnxruntime-cpu"


def test_the_manifest_decides_what_is_present(client: TestClient) -> None:
    # Buildings score 0.5 on pure blue; their own threshold is 0.9.
    present = {one["name"]: one["present"] for one in ask(client, "/labels")["labels"]}
    assert present == {"water": True, "buildings": False, "trees": False, "sand": False}


def test_a_threshold_takes_the_manifests_place(client: TestClient) -> None:
    labels = ask(client, "/labels?threshold=0.4")["labels"]
    assert [one["name"] for one in labels if one["present"]] == ["water", "buildings"]
    assert all(one["present"] for one in ask(client, "/labels?threshold=0")["labels"])


def test_top_k_keeps_the_best(client: TestClient) -> None:
    assert len(ask(client, "/labels?top_k=2")["labels"]) == 2


def test_explain_shows_where_the_present_labels_are(client: TestClient) -> None:
    water, *others = ask(client, "/labels?explain=true")["labels"]
    assert [len(row) for row in water["evidence"]] == [7] * 7
    assert all("evidence" not in one for one in others)
    assert all("evidence" not in one for one in ask(client, "/labels")["labels"])


def test_caption_comes_with_its_candidates(client: TestClient) -> None:
    answer = ask(client, "/caption", "white")
    assert answer["caption"] == "A bright place."
    assert [one["text"] for one in answer["candidates"]] == ["A bright place.", "Bright place."]
    assert [one["log_prob"] for one in answer["candidates"]] == [-0.5, -1.0]


def test_beams_and_candidates_say_how_many(client: TestClient) -> None:
    assert len(ask(client, "/caption?beams=3")["candidates"]) == 3
    assert len(ask(client, "/caption?beams=1")["candidates"]) == 1
    assert len(ask(client, "/caption?beams=3&candidates=2")["candidates"]) == 2


def test_more_candidates_than_beams_is_refused(client: TestClient) -> None:
    answer = client.post("/caption?beams=1&candidates=2", content=tile("blue"), headers=PNG)
    assert answer.status_code == 422
    assert answer.json()["maximum"] == 1
    assert "at most beams = 1" in answer.json()["detail"]


def test_caption_lists_the_sampled_attributes_or_all(client: TestClient) -> None:
    sampled = ask(client, "/caption")["attributes"]
    assert [one["name"] for one in sampled] == ["blue", "many"]
    assert all(one["sampled"] for one in sampled)
    explained = ask(client, "/caption?explain=true")["attributes"]
    assert [one["name"] for one in explained] == ["blue", "many", "green"]


def test_vqa_answers_in_the_order_of_the_questions(client: TestClient) -> None:
    answer = ask(client, "/vqa?question=What is this?&question=Are there trees?", "lime")
    what, trees = answer["answers"]
    assert (what["question"], what["answer"], what["type"]) == ("What is this?", "forest", "theme")
    assert (trees["answer"], trees["type"]) == ("yes", "presence")
    confidences = [trees["confidence"], *(one["confidence"] for one in trees["alternatives"])]
    assert len(confidences) == 4
    assert confidences == sorted(confidences, reverse=True)


def test_vqa_looks_at_the_tile(client: TestClient) -> None:
    assert ask(client, "/vqa?question=Are there trees?", "lime")["answers"][0]["answer"] == "yes"
    assert ask(client, "/vqa?question=Are there trees?", "blue")["answers"][0]["answer"] == "no"


def test_vqa_warns_of_words_that_the_model_does_not_know(client: TestClient) -> None:
    answer = ask(client, "/vqa?question=Are there trees?&question=Are there zebra trees?")
    assert answer["warnings"] == ["question 2: the model does not know the word zebra"]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "none was asked"),
        ("?question=", "empty"),
        ("?question=Are there trees?&question=%20", "question 2 of 2"),
        ("?question=zebra", "none of its words is known"),
        ("?question=" + "trees " * 13, "the limit is 12"),
        ("?" + "&".join(["question=Are there trees?"] * 6), "6 were asked, the limit is 5"),
    ],
)
def test_questions_that_cannot_be_asked(client: TestClient, query: str, says: str) -> None:
    answer = client.post(f"/vqa{query}", content=tile("blue"), headers=PNG)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/labels", "/caption", "/vqa?question=Are there trees?"])
def test_several_tiles_are_answered_in_the_order_sent(client: TestClient, path: str) -> None:
    colours = ["blue", "lime", "white"]
    files = [("image", (colour, tile(colour))) for colour in colours]
    together = client.post(path, files=files).json()["results"]
    for colour, one in zip(colours, together, strict=True):
        assert rounded(one) == rounded(ask(client, path, colour))


def test_a_batch_larger_than_a_run_is_split(client: TestClient) -> None:
    encoded = [base64.b64encode(tile(colour)).decode() for colour in ("blue", "lime", "blue")]
    questions = ["Are there trees?", "What is this?", "Are there trees?"]
    answer = client.post("/vqa", json={"images": encoded, "questions": questions})
    said = [[one["answer"] for one in tile["answers"]] for tile in answer.json()["results"]]
    assert said == [["no", "harbor", "no"], ["yes", "forest", "yes"], ["no", "harbor", "no"]]
