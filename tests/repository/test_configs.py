"""`config.pbtxt` follows from the repository: written, compared, never taken from."""

from collections.abc import Callable

import pytest

from tests.repository.versions import ENCODER, HEAD, add_version, contents
from tilesight.errors import BundleError, ConfigError
from tilesight.repository import Repository, TritonOptions
from tilesight.triton_config import parse_config


@pytest.fixture
def written(repository: Repository) -> Repository:
    repository.write_configs()
    return repository


def test_all_of_them_are_written(repository: Repository) -> None:
    assert repository.write_configs() == ["jtts", "signa", ENCODER, HEAD]
    assert repository.stale_configs() == {}
    assert not repository.state_path.exists()


def test_what_is_right_is_not_written_again(written: Repository) -> None:
    before = written.config_path("signa").stat()
    written.config_path("jtts").unlink()
    assert written.write_configs() == ["jtts"]
    after = written.config_path("signa").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (
            lambda text: text.replace("max_batch_size: 32", "max_batch_size: 64"),
            "line 7 is 'max_batch_size: 64\\n', generated is 'max_batch_size: 32\\n'",
        ),
        (
            lambda text: text + "# mine\n",
            "line {last} is '# mine\\n', generated is missing",
        ),
        (
            lambda text: text.removesuffix('backend: "onnxruntime"\n'),
            "line {end} is missing, generated is 'backend: \"onnxruntime\"\\n'",
        ),
        (
            lambda text: text.removesuffix("\n"),
            "line {end} is 'backend: \"onnxruntime\"', generated is 'backend: \"onnxruntime\"\\n'",
        ),
        (
            lambda _: "\x00",
            "line 1 is '\\x00', generated is 'name: \"signa\"\\n'",
        ),
    ],
)
def test_the_first_line_that_somebody_edited(
    written: Repository, edit: Callable[[str], str], problem: str
) -> None:
    path = written.config_path("signa")
    text = path.read_text(encoding="utf-8")
    end = len(text.splitlines())
    path.write_text(edit(text), encoding="utf-8")
    expected = problem.replace("{end}", str(end)).replace("{last}", str(end + 1))
    assert written.stale_configs() == {"signa": f"{path}: {expected}"}
    assert written.stale_configs(["jtts"]) == {}


def test_other_line_ends_are_an_edit(written: Repository) -> None:
    path = written.config_path("signa")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert "line 1 is 'name: \"signa\"\\r\\n'" in written.stale_configs()["signa"]


def test_what_is_no_text(written: Repository) -> None:
    written.config_path("signa").write_bytes(b"\xff\xfe")
    assert "line 1 is '\ufffd\ufffd'" in written.stale_configs()["signa"]


def test_a_missing_one(written: Repository) -> None:
    path = written.config_path("signa")
    path.unlink()
    assert written.stale_configs() == {"signa": f"{path}: missing"}


def test_a_new_version_has_to_be_written_in(written: Repository) -> None:
    written.promote({"signa": 2})
    add_version(written.root, "signa", 3)
    assert list(written.stale_configs()) == ["signa"]
    assert written.write_configs() == ["signa"]
    assert "sha256.3" in written.config_path("signa").read_text(encoding="utf-8")


def test_options_reach_every_model(written: Repository) -> None:
    options = written.configure(threads=3, max_queue_size=9)
    assert options == TritonOptions(threads=3, max_queue_size=9)
    for name in written.models():
        config = parse_config(written.config_path(name).read_text(encoding="utf-8"))
        assert config.parameters["intra_op_thread_count"].string_value == "3"
        assert config.dynamic_batching.default_queue_policy.max_queue_size == 9
    assert written.configure(instances=2) == TritonOptions(threads=3, max_queue_size=9, instances=2)
    assert written.stale_configs() == {}


def test_options_and_promotions_do_not_disturb_each_other(written: Repository) -> None:
    written.promote({"signa": 1})
    written.configure(threads=4)
    assert written.current("signa") == 1
    written.promote({"signa": 2})
    written.rollback(["signa"])
    written.remove("signa", 2)
    assert written.state().triton.threads == 4
    assert written.stale_configs() == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threads", 0, "triton: threads: Input should be greater than or equal to 1"),
        ("max_batch_size", 5000, "triton: max_batch_size: Input should be less than or equal"),
        ("max_queue_size", 0, "triton: max_queue_size: "),
        ("thread", 2, "triton: thread: Extra inputs are not permitted"),
    ],
)
def test_options_out_of_range(written: Repository, field: str, value: int, message: str) -> None:
    before = contents(written.root)
    with pytest.raises(ConfigError) as caught:
        written.configure(**{field: value})
    assert str(caught.value).startswith(message)
    assert contents(written.root) == before


def test_nothing_is_written_where_one_model_has_no_manifest(written: Repository) -> None:
    (written.folder("signa", 2) / "manifest.json").unlink()
    before = contents(written.root)
    with pytest.raises(BundleError, match=r"signa/2/manifest\.json: missing"):
        written.configure(threads=7)
    assert contents(written.root) == before
