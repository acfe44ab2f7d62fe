import pytest

from serving import wishes
from serving.errors import WishError
from serving.settings import Settings

SETTINGS = Settings(deadline_s=20, max_deadline_s=60)


def read(*headers: tuple[bytes, bytes]) -> wishes.Wishes:
    return wishes.read([(b"host", b"x"), *headers], SETTINGS)


def test_nothing_wished_is_what_the_operator_set() -> None:
    assert read() == ("interactive", 20.0)


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"5", 5.0), (b"0.25", 0.25), (b".5", 0.5), (b"60", 60.0)]
)
def test_a_deadline_is_a_number_of_seconds(value: bytes, seconds: float) -> None:
    assert read((b"tilesight-deadline", value)).deadline_s == seconds


def test_a_lane_is_one_of_two() -> None:
    assert read((b"tilesight-lane", b"backfill")).lane == "backfill"
    assert read((b"tilesight-lane", b"interactive")).lane == "interactive"


@pytest.mark.parametrize(
    "value",
    [b"0", b"0.0", b"-1", b"60.1", b"31536000", b"9" * 1000, b"nan", b"inf", b"1e1", b"1_0", b"."],
)
def test_any_other_deadline_is_refused_with_the_limit(value: bytes) -> None:
    with pytest.raises(WishError, match=r"^Tilesight-Deadline: .* the limit is 60$") as failure:
        read((b"tilesight-deadline", value))
    assert failure.value.extensions == {"header": "Tilesight-Deadline", "limit": 60}
    assert len(str(failure.value)) < 200


def test_any_other_lane_is_refused_with_the_two() -> None:
    with pytest.raises(WishError, match=r"^Tilesight-Lane: 'x{40}\.\.\.' is no lane") as failure:
        read((b"tilesight-lane", b"x" * 1000))
    assert failure.value.extensions["allowed"] == ["interactive", "backfill"]


@pytest.mark.parametrize("name", [b"tilesight-lane", b"tilesight-deadline"])
def test_a_wish_is_sent_once(name: bytes) -> None:
    value = b"5" if name.endswith(b"deadline") else b"backfill"
    with pytest.raises(WishError, match="sent twice"):
        read((name, value), (name, value))
