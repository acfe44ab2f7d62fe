"""The common ground: files that are whole, manifests that are strict, questions that are words."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tilesight import files, manifest, questions
from tilesight.cli import ROOMS, Room, build
from tilesight.errors import BundleError, ManifestError, QuestionError
from tilesight.manifest import AnswerHead, Manifest

HASH = "0" * 64
GRAPH_BYTES = b"a graph stands here; the manifest only knows its hash"
VOCABULARY = ["<pad>", "<unk>", "are", "there", "trees", "the", "house's", "roof"]

HEADS: dict[str, dict[str, Any]] = {
    "labels": {"task": "labels", "labels": ["trees", "water"], "thresholds": [0.5, 0.25]},
    "caption": {
        "task": "caption",
        "vocabulary": ["<pad>", "<bos>", "<eos>", "<unk>", "trees"],
        "attributes": ["trees"],
        "max_length": 20,
        "max_beams": 5,
        "default_beams": 3,
    },
    "encoding": {"task": "encoding", "land_use": ["forest"]},
    "vqa": {
        "task": "vqa",
        "encoder": "spatialnet_vit_encoder",
        "vocabulary": VOCABULARY,
        "max_tokens": 6,
        "answers": ["yes", "no"],
        "answer_types": ["presence", "presence"],
    },
}


# Where a manifest has records of known fields; "" is the manifest itself.
RECORDS = ["", "input", "inputs.0", "outputs.0", "head", "metrics", "lineage", "graph", "golden"]


def fields(task: str = "labels") -> dict[str, Any]:
    """A complete manifest as plain JSON values."""
    return {
        "format_version": 2,
        "name": "signa",
        "version": 1,
        "title": "Land-cover labels",
        "input": {
            "height": 224,
            "width": 224,
            "bands": ["red", "green", "blue"],
            "gsd_m": [0.2, 0.5],
            "golden_sha256": HASH,
        },
        "inputs": [{"name": "tiles", "dtype": "uint8", "shape": [-1, 224, 224, 3]}],
        "outputs": [{"name": "scores", "dtype": "float32", "shape": [-1, 2]}],
        "head": HEADS[task],
        "metrics": {
            "dataset": "ucm",
            "split": "test",
            "split_sha256": HASH,
            "tiles": 420,
            "seed": 0,
            "values": {"f1_samples": 0.9},
        },
        "lineage": {
            "commit": "abc",
            "config_sha256": HASH,
            "checkpoint_sha256": HASH,
            "data_sha256": {"multilabels.tsv": HASH},
            "base_weights_sha256": None,
        },
        "graph": {
            "precision": "float32",
            "opset": 20,
            "ir_version": 10,
            "minimum_onnxruntime": "1.20",
        },
        "golden": {"outputs": {"scores": [0.5, 0.25]}, "tolerance": 1e-3},
        "files": {"model.onnx": hashlib.sha256(GRAPH_BYTES).hexdigest()},
    }


def changed(path: str, value: object, task: str = "labels") -> dict[str, Any]:
    """The complete manifest with the field at the dotted path set to the value."""
    whole = json.loads(json.dumps(fields(task)))
    *parents, last = path.split(".")
    node = whole
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node[parent]
    node[last] = value
    return whole


def read_text(content: dict[str, Any]) -> Manifest:
    return manifest.parse(json.dumps(content), "here")


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    (folder / manifest.MANIFEST_NAME).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A version folder whose hashes match."""
    (tmp_path / "model.onnx").write_bytes(GRAPH_BYTES)
    write_manifest(tmp_path, fields())
    return tmp_path


class TestFiles:
    @given(content=st.binary(max_size=4096))
    def test_sha256_is_that_of_the_bytes(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes
    ) -> None:
        path = tmp_path_factory.mktemp("bytes") / "file"
        path.write_bytes(content)
        assert files.sha256(path) == hashlib.sha256(content).hexdigest()

    def test_what_is_written_whole_takes_its_place_at_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "folder" / "file"
        with files.written_whole(path) as temporary:
            temporary.write_bytes(b"half")
            assert not path.exists()
            temporary.write_bytes(b"whole")
        assert path.read_bytes() == b"whole"
        assert path.stat().st_mode & 0o777 == 0o644
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("before", [None, b"old"])
    @pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
    def test_a_failed_block_leaves_nothing_half_written(
        self, tmp_path: Path, before: bytes | None, failure: BaseException
    ) -> None:
        path = tmp_path / "file"
        if before is not None:
            path.write_bytes(before)
        with pytest.raises(type(failure)), files.written_whole(path) as temporary:
            temporary.write_bytes(b"half")
            raise failure
        assert [file.read_bytes() for file in tmp_path.iterdir()] == [before] * (before is not None)

    def test_text_is_utf8(self, tmp_path: Path) -> None:
        files.write_text(tmp_path / "text", "Bäume\n")
        assert (tmp_path / "text").read_bytes() == b"B\xc3\xa4ume\n"


class TestManifest:
    @pytest.mark.parametrize("task", HEADS)
    def test_reads_what_it_writes(self, task: str) -> None:
        read = read_text(fields(task))
        assert read.head.task == task
        assert manifest.parse(read.model_dump_json(), "here") == read

    def test_is_frozen(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            read_text(fields()).version = 2

    def test_digest_is_the_hash_of_the_graph(self) -> None:
        expected = hashlib.sha256(GRAPH_BYTES).hexdigest()
        assert read_text(fields()).digest == f"sha256:{expected}"

    @pytest.mark.parametrize("parent", RECORDS)
    def test_an_unknown_field_is_named(self, parent: str) -> None:
        path = f"{parent}.surplus".lstrip(".")
        with pytest.raises(
            ManifestError, match=r"surplus: Extra inputs are not permitted"
        ) as error:
            read_text(changed(path, 1))
        assert str(error.value).startswith("here: " + path.split(".")[0])

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("version", "1"),
            ("version", 1.5),
            ("version", True),
            ("name", 7),
            ("input.height", "224"),
            ("input.bands", "red"),
            ("inputs.0.shape", [1.5]),
            ("inputs.0.dtype", "float64"),
            ("head.thresholds", ["0.5", 0.5]),
            ("metrics.seed", None),
            ("metrics.values", {"f1": "0.9"}),
            ("lineage.base_weights_sha256", "short"),
            ("graph.opset", "20"),
            ("files", ["model.onnx"]),
        ],
    )
    def test_a_wrong_type_is_named(self, path: str, value: object) -> None:
        # pydantic puts the kind of head between the names: head.labels.thresholds
        named = r"here: " + r"\.(?:labels\.)?".join(map(re.escape, path.split("."))) + r"[:.]"
        with pytest.raises(ManifestError, match=named):
            read_text(changed(path, value))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("name", "../signa"),
            ("version", 0),
            ("input.width", 0),
            ("head.thresholds", [0.5, 1.5]),
            ("head.thresholds", [0.5, float("nan")]),
            ("head.thresholds", [0.5]),
            ("head.task", "scores"),
            ("graph.precision", "float8"),
            ("files", {"model.onnx": HASH.upper() + "A"}),
        ],
    )
    def test_a_value_out_of_range_is_refused(self, path: str, value: object) -> None:
        with pytest.raises(ManifestError, match=rf"here: {path.split('.')[0]}\b"):
            read_text(changed(path, value))

    def test_every_answer_has_a_type(self) -> None:
        with pytest.raises(ManifestError, match="answer_types: 1 values for 2 answers"):
            read_text(changed("head.answer_types", ["presence"], task="vqa"))

    @pytest.mark.parametrize("path", [*fields(), "input.golden_sha256", "lineage.commit"])
    def test_a_missing_field_is_named(self, path: str) -> None:
        whole = fields()
        *parents, last = path.split(".")
        del (whole[parents[0]] if parents else whole)[last]
        with pytest.raises(ManifestError, match=rf"here: {re.escape(path)}\b"):
            read_text(whole)

    @pytest.mark.parametrize("version", [0, 1, 99, "1", None])
    def test_another_format_version_is_refused_before_its_fields(self, version: object) -> None:
        with pytest.raises(ManifestError, match=f"format_version is {version!r}, .* reads 2"):
            manifest.parse(json.dumps({"format_version": version, "surplus": 1}), "here")

    @pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", '{"format_version": 2'])
    def test_what_is_no_json_object_is_refused(self, text: str) -> None:
        with pytest.raises(ManifestError, match="here: not a JSON object"):
            manifest.parse(text, "here")


class TestBundle:
    def test_a_whole_bundle_is_read(self, bundle: Path) -> None:
        assert manifest.read(bundle) == read_text(fields())

    @given(
        position=st.integers(0, len(GRAPH_BYTES) - 1),
        flip=st.integers(1, 255),
    )
    def test_a_changed_byte_is_found(
        self, tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
    ) -> None:
        folder = tmp_path_factory.mktemp("bundle")
        write_manifest(folder, fields())
        damaged = bytearray(GRAPH_BYTES)
        damaged[position] ^= flip
        (folder / "model.onnx").write_bytes(damaged)
        with pytest.raises(BundleError, match=r"model\.onnx: sha256 is .* the manifest says"):
            manifest.read(folder)

    @pytest.mark.parametrize("content", [b"", GRAPH_BYTES[:-1], GRAPH_BYTES + b"\0"])
    def test_a_cut_or_grown_file_is_found(self, bundle: Path, content: bytes) -> None:
        (bundle / "model.onnx").write_bytes(content)
        with pytest.raises(BundleError, match="the manifest says"):
            manifest.read(bundle)

    def test_a_missing_manifest_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"manifest\.json: missing"):
            manifest.read(tmp_path)

    def test_a_manifest_of_other_bytes_is_refused(self, bundle: Path) -> None:
        (bundle / "manifest.json").write_bytes(b"\xff\xfe{}")
        with pytest.raises(ManifestError, match=r"manifest\.json"):
            manifest.read(bundle)

    def test_a_missing_file_is_named(self, bundle: Path) -> None:
        write_manifest(bundle, changed("files", {**fields()["files"], "weights.bin": HASH}))
        with pytest.raises(BundleError, match=r"weights\.bin: missing"):
            manifest.read(bundle)

    def test_the_graph_must_be_listed(self, bundle: Path) -> None:
        write_manifest(bundle, changed("files", {}))
        with pytest.raises(BundleError, match=r"files: model\.onnx is not listed"):
            manifest.read(bundle)

    @pytest.mark.parametrize("name", ["../outside", "folder/inside", "/etc/hostname", "."])
    def test_a_path_is_no_file_name(self, bundle: Path, name: str) -> None:
        write_manifest(bundle, changed("files", {**fields()["files"], name: HASH}))
        with pytest.raises(BundleError, match=f"'{re.escape(name)}' is not a plain file name"):
            manifest.read(bundle)

    def test_a_link_is_refused_even_to_the_right_bytes(self, bundle: Path) -> None:
        (bundle / "model.onnx").rename(bundle / "elsewhere")
        (bundle / "model.onnx").symlink_to(bundle / "elsewhere")
        with pytest.raises(BundleError, match=r"'model\.onnx' is not a plain file name"):
            manifest.read(bundle)


def head(**settings: object) -> AnswerHead:
    return AnswerHead(**{**HEADS["vqa"], **settings})


class TestQuestions:
    def test_words_lose_case_and_punctuation(self) -> None:
        assert questions.words("  Are there TREES—or the house's roof?") == [
            "are", "there", "trees", "or", "the", "house's", "roof",
        ]  # fmt: skip

    @given(text=st.text())
    def test_words_of_words_are_the_same(self, text: str) -> None:
        found = questions.words(text)
        assert questions.words(" ".join(found)) == found

    def test_ids_are_padded_and_unknown_words_told(self) -> None:
        ids, unknown = questions.question_ids("Are there any trees?", head())
        assert ids.tolist() == [2, 3, 1, 4, 0, 0]
        assert unknown == ["any"]

    def test_a_special_token_cannot_be_spoken(self) -> None:
        ids, unknown = questions.question_ids("<pad> trees <unk>", head())
        assert ids.tolist() == [1, 4, 1, 0, 0, 0]
        assert unknown == ["pad", "unk"]

    @given(text=st.text(max_size=60) | st.lists(st.sampled_from(VOCABULARY)).map(" ".join))
    def test_every_text_is_ids_or_a_question_error(self, text: str) -> None:
        try:
            ids, unknown = questions.question_ids(text, head())
        except QuestionError:
            return
        assert ids.shape == (6,)
        assert ids.dtype == np.int64
        spoken = questions.words(text)
        expected = [VOCABULARY.index(x) if x in VOCABULARY else 1 for x in spoken]
        assert ids.tolist() == expected + [0] * (6 - len(expected))
        assert unknown == [x for x in spoken if x not in VOCABULARY]

    @pytest.mark.parametrize(
        ("text", "settings", "message"),
        [
            ("", {}, "question: empty"),
            (" \t\n", {}, "question: empty"),
            ("trees " * 4, {"max_characters": 23}, "question: 24 characters, the limit is 23"),
            ("trees " * 7, {}, "question: 7 words, the limit is 6"),
            ("Gibt es Bäume?", {}, r"reads English: .*gibt, es, bäume"),
            ("?!", {}, r"none of its words is known .*: '\?!'"),
            ("trees \ud800", {}, "question: "),
        ],
    )
    def test_what_cannot_be_asked_says_why(
        self, text: str, settings: dict[str, int], message: str
    ) -> None:
        with pytest.raises(QuestionError, match=message):
            questions.question_ids(text, head(**settings))

    def test_the_limits_themselves_are_allowed(self) -> None:
        text = " ".join(["trees"] * 6)
        ids, unknown = questions.question_ids(text, head(max_characters=len(text)))
        assert ids.tolist() == [4] * 6
        assert unknown == []

    def test_the_vocabulary_is_by_count_then_alphabet(self) -> None:
        texts = ["The roof, the trees", "the roof; a boat", "a car"]
        assert questions.vocabulary_of(texts, ["<pad>", "<unk>"], min_count=2) == [
            "<pad>", "<unk>", "the", "a", "roof",
        ]  # fmt: skip

    @given(texts=st.lists(st.text()))
    def test_no_word_of_its_own_texts_is_unknown(self, texts: list[str]) -> None:
        vocabulary = questions.vocabulary_of(texts, ["<pad>", "<unk>"], min_count=1)
        for text in texts:
            ids = questions.encode(text, vocabulary, unk_id=1)
            assert [vocabulary[i] for i in ids] == questions.words(text)

    @pytest.mark.parametrize(
        ("ids", "text"),
        [
            ([4, 5, 2, 6], "Trees near."),
            ([4, 5, 6], "Trees near water."),
            ([2, 4], ""),
            ([], ""),
        ],
    )
    def test_a_sentence_ends_at_its_end_token(self, ids: list[int], text: str) -> None:
        vocabulary = ["<pad>", "<bos>", "<eos>", "<unk>", "trees", "near", "water"]
        assert questions.sentence(ids, vocabulary, eos_id=2) == text


GROUP_ROOM = """
import typer

from tilesight.errors import BundleError

paint = typer.Typer(no_args_is_help=True, help="All about paint.")

@paint.command("list")
def list_() -> None:
    "Show what there is."
    typer.echo("red, green")

@paint.command()
def mix(colour: str) -> None:
    "Mix a colour."
    raise BundleError(f"{colour}: no such colour")

@paint.command()
def dye() -> None:
    "Use what is not installed."
    import no_such_dye
"""


class TestCommandGroups:
    @pytest.fixture
    def rooms(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Room, ...]:
        """A room whose one command has commands of its own."""
        (tmp_path / "room_of_groups.py").write_text(GROUP_ROOM)
        monkeypatch.syspath_prepend(tmp_path)
        return (Room("room_of_groups", ("paint",), "colour"),)

    def test_the_commands_of_a_group_run_under_its_name(self, rooms: tuple[Room, ...]) -> None:
        told = CliRunner().invoke(build(rooms), ["paint", "list"])
        assert (told.exit_code, told.stdout) == (0, "red, green\n")

    def test_a_group_says_what_it_is_for(self, rooms: tuple[Room, ...]) -> None:
        told = CliRunner().invoke(build(rooms), ["paint", "--help"])
        assert told.exit_code == 0
        for words in ("All about paint.", "list", "Show what there is.", "mix", "dye"):
            assert words in told.stdout

    def test_a_failure_names_group_and_command_and_exits_with_two(
        self, rooms: tuple[Room, ...]
    ) -> None:
        told = CliRunner().invoke(build(rooms), ["paint", "mix", "mauve"])
        assert told.exit_code == 2
        assert told.stderr == "tilesight paint mix: mauve: no such colour\n"

    def test_a_missing_package_names_the_extra(self, rooms: tuple[Room, ...]) -> None:
        told = CliRunner().invoke(build(rooms), ["paint", "dye"])
        assert told.exit_code == 2
        assert "paint dye needs the package no_such_dye" in told.stderr
        assert "pip install 'tilesight[colour]'" in told.stderr

    def test_an_absent_room_says_how_to_get_its_groups(self) -> None:
        rooms = (Room("no_such_room", ("paint", "draw"), "colour"),)
        told = CliRunner().invoke(build(rooms), ["paint", "mix", "--with", "water"])
        assert told.exit_code == 2
        assert "pip install 'tilesight[colour]'" in told.stderr

    @pytest.mark.parametrize(
        "command", [name for room in ROOMS for name in room.commands] + ["models promote"]
    )
    def test_every_command_of_the_project_is_there(self, command: str) -> None:
        told = CliRunner().invoke(build(), [*command.split(), "--help"])
        assert told.exit_code == 0, told.output
        assert "pip install" not in told.stdout

    def test_a_failing_command_of_the_models_exits_with_two(self, tmp_path: Path) -> None:
        arguments = ["models", "promote", "signa@1", "--repository", str(tmp_path / "none")]
        told = CliRunner().invoke(build(), arguments)
        assert told.exit_code == 2
        assert told.stderr.startswith("tilesight models promote: ")
