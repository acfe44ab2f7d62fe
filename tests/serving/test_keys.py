"""Keys, their file, the ring of a running gateway, and `tilesight keys`."""

import errno
import hashlib
import json
import logging
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from serving import keyring, keys_file
from serving.keyring import Keyring
from serving.keys import KeyList, Scope, digest, is_token, new_token
from tests.serving import api_keys
from tests.serving.gateway import settings_for
from tilesight.cli import build
from tilesight.errors import ConfigError

PAST = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(build(), ["keys", *map(str, arguments)], input=stdin)


def new(file: Path, name: str, *more: str) -> str:
    """The token of a key that the command has made."""
    answer = run("new", "--file", file, "--name", name, *(more or ("--scope", "tiles")))
    assert answer.exit_code == 0, answer.output
    return answer.stdout.strip()


# --- Tokens and lists of keys


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(is_token(token) and token.startswith("tsk_") for token in tokens)
    # 43 characters of 6 bits: 256 bits, no less.
    assert {len(token) for token in tokens} == {47}
    assert not is_token(f"{new_token()}\n")


def test_a_digest_is_the_sha256_of_what_is_as_long_as_a_token() -> None:
    token = new_token()
    assert digest(token.encode()) == hashlib.sha256(token.encode()).hexdigest()
    assert digest(b"") is None
    assert digest(token.encode() + b"x") is None
    assert digest(b"x" * 60_000) is None


def test_a_list_comes_back_as_it_went() -> None:
    expires = datetime(2030, 1, 1, tzinfo=UTC)
    _, one = api_keys.made("a", Scope.TILES, Scope.BACKFILL, expires=expires, revoked=True)
    _, two = api_keys.made("b", Scope.OPERATIONS)
    text = api_keys.document(one, two)
    assert json.loads(text)["keys"][0]["scopes"] == ["tiles", "backfill"]
    assert KeyList.parse(text, "x").keys == (one, two)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "a b"}, "keys.0.name"),
        ({"name": "a\n"}, "keys.0.name"),
        ({"name": ""}, "keys.0.name"),
        ({"sha256": "0" * 63}, "keys.0.sha256"),
        ({"sha256": "A" * 64}, "keys.0.sha256"),
        ({"scopes": []}, "keys.0.scopes"),
        ({"scopes": ["tiles", "all"]}, "keys.0.scopes.1"),
        ({"created": "2026-01-01T00:00:00"}, "keys.0.created"),
        ({"expires": "tomorrow"}, "keys.0.expires"),
        ({"revoked": "no"}, "keys.0.revoked"),
        ({"revokd": True}, "keys.0.revokd"),
    ],
)
def test_a_wrong_field_is_named_with_the_file(
    file: Path, changes: dict[str, object], field: str
) -> None:
    _, key = api_keys.made("a")
    whole = json.loads(api_keys.document(key))
    whole["keys"][0] |= changes
    file.write_text(json.dumps(whole))
    with pytest.raises(ConfigError) as failure:
        keys_file.read(file)
    assert str(failure.value).startswith(f"{file}: ")
    assert f"{field}: " in str(failure.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"keys": {}}', '{"format": 2}', '{"key": []}', "[" * 10_000]
)
def test_what_is_no_list_names_the_file(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"keys\.json: "):
        keys_file.read(file)


@pytest.mark.parametrize("content", [b"\xff\xfe", b'{"keys": ["\xff"]}'])
def test_bytes_that_are_no_text_name_the_file(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"keys\.json: "):
        keys_file.read(file)


def test_a_token_in_the_wrong_place_is_not_repeated(file: Path) -> None:
    token, key = api_keys.made("a")
    for field in ("name", "sha256", "created", "scopes"):
        whole = json.loads(api_keys.document(key))
        whole["keys"][0][field] = f"{token} " if field == "name" else token
        file.write_text(json.dumps(whole))
        with pytest.raises(ConfigError) as failure:
            keys_file.read(file)
        assert token not in str(failure.value), field


def test_two_keys_with_one_name_or_one_token_are_refused() -> None:
    _, one = api_keys.made("a")
    _, other = api_keys.made("a")
    with pytest.raises(ConfigError, match=r"x: .*two keys have the name a"):
        KeyList.parse(_unchecked(one, other), "x")
    twin = one.model_copy(update={"name": "b"})
    with pytest.raises(ConfigError, match=r"x: .*two keys have the sha256"):
        KeyList.parse(_unchecked(one, twin), "x")


def _unchecked(*keys: object) -> str:
    return KeyList.model_construct(keys=keys).model_dump_json()


def test_a_key_expires_at_its_moment() -> None:
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    assert not api_keys.made("a")[1].expired()
    assert not api_keys.made("a", expires=now + hour)[1].expired()
    assert api_keys.made("a", expires=now - timedelta(microseconds=1))[1].expired()


# --- The file


def test_a_new_file_is_its_owners_alone(file: Path) -> None:
    new(file, "a")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_changed_file_keeps_its_mode_and_leaves_nothing_behind(file: Path) -> None:
    new(file, "a")
    file.chmod(0o640)
    new(file, "b")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(one.name for one in file.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_change_that_fails_changes_nothing(file: Path) -> None:
    new(file, "a")
    before = file.read_bytes()

    def fail(keys: KeyList) -> KeyList:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        keys_file.change(file, fail)
    assert file.read_bytes() == before


def test_a_full_disk_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new(file, "a")
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("serving.keys_file.os.fsync", full)
    answer = run("new", "--file", file, "--name", "b", "--scope", "tiles")
    assert answer.exit_code == 2
    assert f"{file}: No space left" in answer.stderr
    # No key was made, so no token is given out.
    assert not answer.stdout
    assert file.read_bytes() == before
    assert sorted(one.name for one in file.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_broken_file_is_not_written_over(file: Path) -> None:
    file.write_text("{")
    answer = run("new", "--file", file, "--name", "a", "--scope", "tiles")
    assert answer.exit_code == 2
    assert f"{file}: " in answer.stderr
    assert file.read_text() == "{"


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    """Else a key would be revoked in a file that the gateway does not read."""
    link = tmp_path / "other" / "link.json"
    link.parent.mkdir()
    new(file, "a")
    link.symlink_to(file)
    assert run("revoke", "--file", link, "a").exit_code == 0
    assert link.is_symlink()
    assert keys_file.read(file).keys[0].revoked


def test_changes_at_the_same_time_are_all_kept(file: Path) -> None:
    def add(number: int) -> None:
        _, key = api_keys.made(f"key{number}")
        keys_file.change(file, lambda keys: KeyList(keys=(*keys.keys, key)))

    threads = [threading.Thread(target=add, args=[number]) for number in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert {key.name for key in keys_file.read(file).keys} == {f"key{n}" for n in range(12)}


# --- The command


def test_a_token_is_shown_once_and_not_kept(file: Path) -> None:
    answer = run("new", "--file", file, "--name", "gis", "--scope", "tiles", "--scope", "backfill")
    token = answer.stdout.strip()
    # Alone on standard output, so that it can be sent to where it belongs.
    assert is_token(token)
    assert token not in answer.stderr
    assert stored(file) == [("gis", ["tiles", "backfill"])]
    for command in (["list"], ["list", "--json"]):
        assert token not in run(*command, "--file", file).output
    for one in file.parent.iterdir():
        assert token.encode() not in one.read_bytes(), one.name
    assert keys_file.read(file).keys[0].sha256 == hashlib.sha256(token.encode()).hexdigest()


def stored(file: Path) -> list[tuple[str, list[str]]]:
    return [(key["name"], key["scopes"]) for key in json.loads(file.read_text())["keys"]]


def test_the_file_can_come_from_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILESIGHT_API_KEYS_FILE", str(file))
    assert run("new", "--name", "a", "--scope", "tiles").exit_code == 0
    assert stored(file) == [("a", ["tiles"])]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--name", "a b", "--scope", "tiles"], "name: "),
        (["--name", "taken", "--scope", "tiles"], "two keys have the name taken"),
        (["--name", "a", "--scope", "tiles", "--expires", "2026-01-01"], "--expires: "),
        (["--name", "a", "--scope", "all"], "--scope"),
        (["--name", "a"], "--scope"),
    ],
)
def test_a_key_that_cannot_be_made(file: Path, options: list[str], says: str) -> None:
    new(file, "taken")
    before = file.read_bytes()
    answer = run("new", "--file", file, *options)
    assert answer.exit_code == 2
    assert says in answer.stderr
    assert not answer.stdout
    assert file.read_bytes() == before


def test_keys_are_listed_with_their_state(file: Path) -> None:
    new(file, "open")
    new(file, "gone", "--scope", "operations", "--expires", "2999-12-31")
    assert run("revoke", "--file", file, "gone").stdout == "gone: revoked\n"
    _, old = api_keys.made("old", expires=PAST)
    keys_file.change(file, lambda keys: KeyList(keys=(*keys.keys, old)))
    lines = run("list", "--file", file).stdout.splitlines()
    states = {
        words[0]: [state for state in ("valid", "revoked", "expired") if state in words]
        for words in (line.split() for line in lines)
        if words and words[0] in ("open", "gone", "old")
    }
    assert states == {"open": ["valid"], "gone": ["revoked"], "old": ["expired"]}
    told = json.loads(run("list", "--file", file, "--json").stdout)["keys"]
    assert [(key["name"], key["revoked"]) for key in told] == [
        ("open", False),
        ("gone", True),
        ("old", False),
    ]
    assert told[1]["expires"] == "2999-12-31T00:00:00Z"


def test_an_unknown_key_is_not_revoked_and_neither_are_the_others(file: Path) -> None:
    new(file, "a")
    answer = run("revoke", "--file", file, "a", "b")
    assert answer.exit_code == 2
    assert f"{file}: no key b; there are a" in answer.stderr
    assert not keys_file.read(file).keys[0].revoked


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    answer = run("list", "--file", file)
    assert answer.exit_code == 2
    assert f"{file}: No such file" in answer.stderr


def test_a_token_finds_its_entry(file: Path) -> None:
    token = new(file, "a")
    found = run("hash", stdin=f"{token}\n").stdout.strip()
    assert found == keys_file.read(file).keys[0].sha256
    other = run("hash", stdin="my-password\n")
    assert other.exit_code == 2
    assert "my-password" not in other.output


# --- The ring of a running gateway


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at for each request."""
    monkeypatch.setattr(keyring, "_LOOK_S", 0.0)


def test_without_keys_there_is_no_ring(shared_repository: Path) -> None:
    assert Keyring.of(settings_for(shared_repository)) is None


def test_an_empty_variable_is_no_open_gateway(shared_repository: Path) -> None:
    settings = settings_for(shared_repository, api_keys=SecretStr(""))
    with pytest.raises(ConfigError, match="TILESIGHT_API_KEYS: empty"):
        Keyring.of(settings)


def test_an_empty_list_lets_nobody_in(file: Path) -> None:
    ring = Keyring(api_keys.write(file), None)
    assert ring.find(new_token().encode()) is None


def test_keys_of_the_file_and_of_the_environment(shared_repository: Path, file: Path) -> None:
    (one, first), (other, second) = api_keys.made("a"), api_keys.made("b")
    settings = settings_for(
        shared_repository,
        api_keys_file=api_keys.write(file, first),
        api_keys=SecretStr(api_keys.document(second)),
    )
    ring = Keyring.of(settings)
    assert ring is not None
    assert ring.find(one.encode()) == first
    assert ring.find(other.encode()) == second
    for wrong in (new_token(), one[:-1], f"{one}=", "", first.sha256):
        assert ring.find(wrong.encode()) is None
    with pytest.raises(ConfigError, match=r"and TILESIGHT_API_KEYS: .*two keys have the name a"):
        Keyring(file, api_keys.document(api_keys.made("a")[1]))


def test_a_gateway_does_not_start_with_keys_that_it_cannot_read(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys\.json: No such file"):
        Keyring(file, None)
    with pytest.raises(ConfigError, match=r"^TILESIGHT_API_KEYS: "):
        Keyring(None, "{")


@pytest.mark.usefixtures("impatient")
def test_the_file_is_followed(file: Path) -> None:
    (one, first), (other, second) = api_keys.made("a"), api_keys.made("b")
    ring = Keyring(api_keys.write(file, first), None)
    assert ring.find(other.encode()) is None
    api_keys.write(file, first.model_copy(update={"revoked": True}), second)
    found = ring.find(one.encode())
    assert found is not None and found.revoked
    assert ring.find(other.encode()) == second


@pytest.mark.usefixtures("impatient")
def test_a_broken_file_keeps_the_keys_before_and_is_complained_of_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (one, first), (other, second) = api_keys.made("a"), api_keys.made("b")
    ring = Keyring(api_keys.write(file, first), None)
    with caplog.at_level(logging.INFO, "tilesight.keys"):
        file.write_text('{"keys": [{"name": 1}]}')
        for _ in range(5):
            assert ring.find(one.encode()) == first
        (complaint,) = caplog.records
        assert complaint.levelname == "ERROR"
        assert str(file) in complaint.reason  # type: ignore[attr-defined]
        assert "keys.0.name" in complaint.reason  # type: ignore[attr-defined]
        file.unlink()
        assert ring.find(one.encode()) == first
        api_keys.write(file, second)
        assert ring.find(one.encode()) is None
        assert ring.find(other.encode()) == second


def test_the_file_is_not_looked_at_for_each_request(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, key = api_keys.made("a")
    looks: list[Path | None] = []
    seen = keyring._signature

    def looking(path: Path | None) -> tuple[int, ...] | None:
        looks.append(path)
        return seen(path)

    monkeypatch.setattr(keyring, "_signature", looking)
    monkeypatch.setattr(keyring, "_LOOK_S", 3600.0)
    ring = Keyring(api_keys.write(file, key), None)
    for _ in range(100):
        ring.find(token.encode())
    assert looks == [file]
