import base64
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.serving.gateway import settings_for, started, tile

QUESTION = "Are there trees?"


def b64(colour: str) -> str:
    return base64.b64encode(tile(colour)).decode()


def parts(count: int, name: str = "image") -> list[tuple[str, Any]]:
    return [(name, (f"{index}.png", tile("blue", size=16))) for index in range(count)]


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("WEBP", "image/webp"),
        ("TIFF", "image/tiff"),
        ("PNG", "IMAGE/PNG; charset=binary"),
    ],
)
def test_a_raw_body_is_a_tile(client: TestClient, kind: str, media_type: str) -> None:
    body = tile("blue", kind)
    answer = client.post("/labels", content=body, headers={"Content-Type": media_type})
    assert answer.status_code == 200
    assert answer.json()["tile"]["format"].upper() == kind


def test_the_three_forms_give_the_same_answer(client: TestClient) -> None:
    query = {"question": QUESTION}
    raw = client.post(
        "/vqa", params=query, content=tile("blue"), headers={"Content-Type": "image/png"}
    )
    multipart = client.post("/vqa", files={"image": ("a.png", tile("blue"))}, data=query)
    as_json = client.post("/vqa", json={"image": b64("blue"), "question": QUESTION})
    assert raw.status_code == 200
    assert raw.json() == multipart.json() == as_json.json()


def test_base64_may_have_line_breaks(client: TestClient) -> None:
    body = {"image": base64.encodebytes(tile("blue")).decode()}
    assert client.post("/labels", json=body).status_code == 200


def test_a_list_of_one_image_gives_the_plain_answer(client: TestClient) -> None:
    assert "labels" in client.post("/labels", json={"images": [b64("blue")]}).json()


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 422, "image: missing"),
        ({"images": []}, 422, "image: missing"),
        ({"image": "@@@"}, 400, "not base64"),
        ({"image": ""}, 400, "empty"),
        ({"image": 7}, 422, "image: Input should be a valid string"),
        ({"image": "aGk=", "images": ["aGk="]}, 422, "give one of the two"),
        ({"image": "aGk=", "url": "x"}, 422, "url: Extra inputs"),
        ({"image": "aGk=", "question": QUESTION}, 422, "question: Extra inputs"),
        ([], 422, "body: Input should be"),
    ],
)
def test_json_that_says_nothing(client: TestClient, body: object, status: int, says: str) -> None:
    answer = client.post("/labels", json=body)
    assert answer.status_code == status
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b'{"image": "\xff"}', b"[" * 100_000])
def test_broken_json(client: TestClient, body: bytes) -> None:
    answer = client.post("/labels", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["type"] == "/problems/malformed-body"


def test_the_limit_of_images_holds_in_json_and_multipart(client: TestClient) -> None:
    images = [base64.b64encode(tile("blue", size=16)).decode()] * 5
    too_many = client.post("/labels", json={"images": images})
    assert (too_many.status_code, too_many.json()["limit"]) == (422, 4)
    assert client.post("/labels", files=parts(4)).status_code == 200
    too_many = client.post("/labels", files=parts(5))
    assert too_many.status_code == 422
    assert "Maximum number of files is 4" in too_many.json()["detail"]


def test_ten_thousand_parts_are_a_clean_refusal(client: TestClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="question"\r\n\r\ntrees\r\n'
    answer = client.post(
        "/vqa",
        content=part * 10_000 + b"--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 422
    assert "Maximum number of fields is 5" in answer.json()["detail"]


def test_a_question_of_many_kilobytes_is_refused(client: TestClient) -> None:
    answer = client.post("/vqa", files=parts(1), data={"question": "trees " * 10_000})
    assert answer.status_code == 422
    assert "16KB" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "sent", "says"),
    [
        ("/labels", {"files": parts(1, "picture")}, "picture: unknown part; the parts are image"),
        ("/labels", {"files": parts(1), "data": {"question": QUESTION}}, "question: unknown part"),
        ("/vqa", {"files": [*parts(1), *parts(1, "question")]}, "question: sent as a file"),
        ("/vqa", {"files": [("image", (None, "x"))]}, "image: sent as text"),
    ],
)
def test_parts_that_do_not_belong(
    client: TestClient, path: str, sent: dict[str, Any], says: str
) -> None:
    answer = client.post(path, **sent)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]


@pytest.mark.parametrize(
    ("media_type", "body"),
    [("multipart/form-data", b"x"), ("multipart/form-data; boundary=x", b"no boundary at all")],
)
def test_broken_multipart(client: TestClient, media_type: str, body: bytes) -> None:
    answer = client.post("/labels", content=body, headers={"Content-Type": media_type})
    assert answer.status_code == 400
    assert answer.json()["type"] == "/problems/malformed-body"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "image/svg+xml"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "image/png", "Content-Encoding": "gzip"},
    ],
)
def test_bodies_that_are_not_read(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post("/labels", content=b"<svg/>", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["type"] == "/problems/unsupported-media-type"


def test_a_bad_tile_among_several_is_named(client: TestClient) -> None:
    files = [("image", tile("blue")), ("image", b"no tile"), ("image", tile("red"))]
    answer = client.post("/labels", files=files)
    assert answer.status_code in (400, 415)
    assert answer.json()["detail"].startswith("image 2 of 3: ")


def test_the_limit_of_pixels_is_the_operators(shared_repository: Path) -> None:
    with started(settings_for(shared_repository, max_pixels=100 * 100)) as small:
        body = tile("blue", size=101)
        answer = small.post("/labels", content=body, headers={"Content-Type": "image/png"})
    assert answer.status_code == 413
    document = answer.json()
    assert document["type"] == "/problems/image-too-large"
    assert (document["limit"], document["unit"]) == (100 * 100, "pixels")


def test_a_tile_or_a_question_beyond_a_bound_is_told_the_bound(client: TestClient) -> None:
    small = client.post(
        "/labels", content=tile("blue", size=7), headers={"Content-Type": "image/png"}
    ).json()
    assert (small["type"], small["limit"]) == ("/problems/image-too-small", 8)
    long = client.post("/vqa", json={"image": b64("blue"), "question": "trees " * 1000}).json()
    assert (long["type"], long["unit"]) == ("/problems/bad-question", "characters")
    assert long["limit"] > 0


def test_json_is_read_as_utf8(client: TestClient) -> None:
    body = {"image": b64("blue"), "question": "Are there trees, café?"}
    answer = client.post(
        "/vqa",
        content=json.dumps(body, ensure_ascii=False).encode(),
        headers={"Content-Type": "application/json"},
    )
    assert answer.json()["answers"][0]["question"] == "Are there trees, café?"
