import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import miniature
from tilesight.errors import DataError
from tilesight.imaging import prepare
from training.datasets import multilabel, splits, ucm
from training.datasets.multilabel import AID_COLUMNS, DFC15_LABELS, UCM_LABELS, open_set

SIZES = {
    "ucm": (1470, 210, 420),
    "ucm_aitlas": (1285, 395, 420),
    "aid": (1917, 483, 600),
    "dfc15": (2045, 628, 669),
    "ucm+aid": (3387, 693, 1020),
}
AID_MINIATURE = {
    "train": ("airport_1", "storagetanks_1"),
    "val": ("airport_10", "storagetanks_10"),
    "test": ("airport_81", "storagetanks_81"),
}
AID_SHOWN = {"airport": {"airplane", "pavement"}, "storagetanks": {"tanks", "bare-soil"}}
DFC15_MINIATURE = {"train": ("10", "1001"), "val": ("1", "1000"), "test": ("3", "17")}
Row = tuple[str, set[str]]


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    lines = [["IMAGE\\LABEL", *columns]]
    lines += [[stem, *(str(int(column in shown)) for column in columns)] for stem, shown in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def draw_tile(path: Path, seed: int, side: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def draw_aid(folder: Path, columns: Sequence[str] = tuple(AID_COLUMNS)) -> Path:
    for part, stems in AID_MINIATURE.items():
        rows = [(stem, AID_SHOWN[stem.partition("_")[0]]) for stem in stems]
        write_table(folder / f"multilabel_{part}.tsv", columns, rows)
        for seed, stem in enumerate(stems):
            scene = {"airport": "Airport", "storagetanks": "StorageTanks"}[stem.partition("_")[0]]
            draw_tile(folder / "images" / scene / f"{stem}.jpg", seed)
    return folder


def draw_dfc15(folder: Path) -> Path:
    for part, stems in DFC15_MINIATURE.items():
        rows = [(stem, {"impervious", "car"}) for stem in stems]
        write_table(folder / f"multilabel_{part}.tsv", DFC15_LABELS, rows)
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `ucm+aid`, whose two folders are those of the sets alone."""
    folder = tmp_path_factory.mktemp("both")
    miniature.draw(folder / "ucm")
    draw_aid(folder / "aid")
    return folder


@pytest.fixture
def aid(tmp_path: Path) -> Path:
    """A folder of its own, for a test that breaks it."""
    return draw_aid(tmp_path)


# Names, parts and hashes: the committed lists, without any data


def test_an_unknown_set_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'aids', there are ucm, ucm_aitlas, aid, dfc15, ucm\+aid"):
        open_set("aids", tmp_path)
    assert tuple(SIZES) == multilabel.NAMES


@pytest.mark.parametrize("name", SIZES)
def test_an_unknown_part_names_those_there_are(name: str, tmp_path: Path) -> None:
    known = open_set(name, tmp_path)
    for ask in (known.part_stems, known.split_sha256):
        with pytest.raises(DataError, match="no part 'trial', there are train, val, test"):
            ask("trial")


@pytest.mark.parametrize("name", SIZES)
def test_parts_have_their_sizes_and_share_no_tile(name: str, tmp_path: Path) -> None:
    opened = open_set(name, tmp_path)
    parts = [opened.part_stems(part) for part in splits.PARTS]
    assert tuple(map(len, parts)) == SIZES[name]
    assert len({stem for stems in parts for stem in stems}) == sum(SIZES[name])


def test_both_splits_of_uc_merced_cut_the_same_tiles(tmp_path: Path) -> None:
    one, other = (
        [stem for part in splits.PARTS for stem in open_set(name, tmp_path).part_stems(part)]
        for name in ("ucm", "ucm_aitlas")
    )
    assert sorted(one) == sorted(other)


@pytest.mark.parametrize("part", splits.PARTS)
@pytest.mark.parametrize("name", ["ucm", "ucm_aitlas", "aid", "dfc15"])
def test_the_hash_of_a_part_is_that_of_its_committed_list(
    name: str, part: str, tmp_path: Path
) -> None:
    digest = open_set(name, tmp_path).split_sha256(part)
    file = Path(splits.__file__).parent / "splits" / f"{name}_{part}.txt"
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest == splits.split_sha256(name, part)


def test_the_union_is_uc_merced_and_then_aid_under_a_prefix(tmp_path: Path) -> None:
    alone, aid, union = (open_set(name, tmp_path) for name in ("ucm", "aid", "ucm+aid"))
    for part in splits.PARTS:
        prefixed = [f"aid/{stem}" for stem in aid.part_stems(part)]
        assert union.part_stems(part) == alone.part_stems(part) + prefixed
        lines = "".join(f"{stem}\n" for stem in union.part_stems(part))
        assert union.split_sha256(part) == hashlib.sha256(lines.encode()).hexdigest()


def test_scenes_cover_every_stem_and_the_union_keeps_them_apart(tmp_path: Path) -> None:
    union = open_set("ucm+aid", tmp_path)
    every = [stem for part in splits.PARTS for stem in union.part_stems(part)]
    groups = union.by_scene(every)
    assert {len(stems) for stems in groups.values()} == {100}
    assert len(groups) == len(ucm.SCENES) + len(multilabel.AID_SCENES)
    assert union.scene_of("forest07") == "forest"
    assert union.scene_of("aid/forest_7") == "aid/Forest"
    assert open_set("aid", tmp_path).scene_of("baseballfield_12") == "BaseballField"


def test_only_tiles_in_the_public_domain_may_be_passed_on(tmp_path: Path) -> None:
    union = open_set("ucm+aid", tmp_path)
    assert union.public_domain("forest07")
    assert not union.public_domain("aid/forest_7")
    assert open_set("ucm_aitlas", tmp_path).public_domain("forest07")
    assert not open_set("aid", tmp_path).public_domain("forest_7")
    assert not open_set("dfc15", tmp_path).public_domain("10")


def test_a_set_without_scenes_says_so(tmp_path: Path) -> None:
    dfc15 = open_set("dfc15", tmp_path)
    assert dfc15.scene_of("10") is None
    with pytest.raises(DataError, match="dfc15: it has no scenes to group by"):
        dfc15.by_scene(["10"])


@pytest.mark.parametrize(
    ("name", "stem"), [("ucm", "volcano07"), ("aid", "volcano_7"), ("ucm+aid", "aid/volcano_7")]
)
def test_a_stem_of_no_scene_is_an_error(name: str, stem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=stem.removeprefix("aid/")):
        open_set(name, tmp_path).scene_of(stem)


def test_the_recipe_takes_the_scenes_of_any_set(tmp_path: Path) -> None:
    aid = open_set("aid", tmp_path)
    every = [stem for part in splits.PARTS for stem in aid.part_stems(part)]
    made = splits.make_ucm_split(aid.by_scene(every))
    assert [len(made[part]) for part in splits.PARTS] == [2100, 300, 600]
    of_ucm = open_set("ucm", tmp_path)
    tiles = [stem for part in splits.PARTS for stem in of_ucm.part_stems(part)]
    again = splits.make_ucm_split(of_ucm.by_scene(tiles))
    assert again == {part: of_ucm.part_stems(part) for part in splits.PARTS}


# Labels


def test_the_labels_of_aid_are_uc_merceds_in_its_order(both: Path) -> None:
    assert tuple(AID_COLUMNS.values()) == UCM_LABELS
    assert tuple(miniature.LABELS) == UCM_LABELS
    for name, folder in (("ucm", "ucm"), ("aid", "aid"), ("ucm+aid", ".")):
        assert open_set(name, both / folder).labels == list(UCM_LABELS)


def test_labels_come_in_order_whatever_the_order_of_the_columns(tmp_path: Path) -> None:
    draw_aid(tmp_path, tuple(reversed(AID_COLUMNS)))
    matrix = open_set("aid", tmp_path).matrix(["storagetanks_81", "airport_1"])
    assert matrix.shape == (2, 17)
    assert matrix.dtype == np.float32
    shown = [{UCM_LABELS[index] for index in row.nonzero()[0]} for row in matrix]
    assert shown == [AID_SHOWN["storagetanks"], AID_SHOWN["airport"]]


def test_a_mapping_renames_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    write_table(path, ["lawn", "vehicles"], [("a", {"vehicles"}), ("b", {"lawn"})])
    table = ucm.read_table([path], {"vehicles": "cars", "cars": "cars", "lawn": "grass"})
    assert table.labels == ["cars", "grass"]
    assert table.matrix(["a", "b"]).tolist() == [[1, 0], [0, 1]]


def test_the_union_reads_the_labels_of_both(both: Path) -> None:
    union = open_set("ucm+aid", both)
    forest = miniature.chosen_stems("forest", 1)[0]
    matrix = union.matrix(["aid/airport_10", forest, "aid/storagetanks_1"])
    alone, aid = (open_set(name, both / name) for name in ("ucm", "aid"))
    np.testing.assert_array_equal(matrix[[1]], alone.matrix([forest]))
    np.testing.assert_array_equal(matrix[[0, 2]], aid.matrix(["airport_10", "storagetanks_1"]))


def test_both_splits_of_uc_merced_read_one_table(both: Path) -> None:
    stems = miniature.chosen_stems("harbor", 3)
    one, other = (open_set(name, both / "ucm") for name in ("ucm", "ucm_aitlas"))
    np.testing.assert_array_equal(one.matrix(stems), other.matrix(stems))


def test_no_stems_are_no_rows_and_no_tiles(both: Path) -> None:
    aid = open_set("aid", both / "aid")
    assert aid.matrix([]).shape == (0, 17)
    assert aid.tiles([], 8).shape == (0, 8, 8, 3)


def test_missing_rows_are_counted_and_five_are_named(both: Path) -> None:
    absent = [f"aid/river_{index}" for index in range(1, 8)]
    with pytest.raises(DataError, match=r"7 stems: aid/river_1, .*aid/river_5, \.\.\.$"):
        open_set("ucm+aid", both).matrix(["aid/airport_1", *absent])
    with pytest.raises(DataError, match=r"1 stems: airport_99$"):
        open_set("aid", both / "aid").matrix(["airport_99"])


MARKS = "\t".join("0" * 17)
HEADER = "\t".join(["IMAGE\\LABEL", *AID_COLUMNS])


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            [f"{HEADER}\tvolcano"],
            r"train\.tsv:1: unknown column volcano; known are airplane, bare-soil, .*water$",
        ),
        ([HEADER.replace("bare-soil", "bare soil")], ":1: unknown column bare soil; known are"),
        ([HEADER.replace("\tdock", "").replace("\tsea", "")], ":1: no column for dock, sea$"),
        ([f"{HEADER}\tsea"], ":1: two columns for sea$"),
        (
            [HEADER, f"airport_1\t{MARKS}", f"airport_1\t{MARKS}"],
            r":3: a second row for airport_1, the first is .*train\.tsv:2$",
        ),
        (
            [HEADER, "", f"airport_1\t{MARKS}\t0"],
            ":3: expected a stem and 17 times 0 or 1, airport_1 has 18$",
        ),
        ([HEADER, "airport_1"], ":2: expected a stem and 17 times 0 or 1, airport_1 has 0$"),
        ([HEADER, f"\t{MARKS}"], ":2: expected a stem and 17 times 0 or 1, there is no stem$"),
        (
            [HEADER, f"airport_1\t{MARKS[:-1]}2"],
            ":2: expected a stem and 17 times 0 or 1, airport_1 has '2' for water$",
        ),
        (
            [HEADER, f"airport_1\t{MARKS[1:]}"],
            ":2: expected a stem and 17 times 0 or 1, airport_1 has '' for airplane$",
        ),
        ([], r"multilabel_train\.tsv: empty$"),
    ],
)
def test_a_broken_table_names_file_line_and_column(
    aid: Path, lines: list[str], reason: str
) -> None:
    (aid / "multilabel_train.tsv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=reason):
        open_set("aid", aid).matrix(["airport_81"])


def test_a_tile_in_two_parts_of_a_table_is_an_error(aid: Path) -> None:
    with (aid / "multilabel_test.tsv").open("a", encoding="utf-8") as table:
        table.write(f"airport_1\t{MARKS}\n")
    second = r"test\.tsv:4: a second row for airport_1, the first is .*train\.tsv:2"
    with pytest.raises(DataError, match=second):
        open_set("aid", aid).matrix(["airport_81"])


def test_a_table_that_is_missing_or_not_text_is_named(aid: Path) -> None:
    (aid / "multilabel_val.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"multilabel_val\.tsv: not UTF-8"):
        open_set("aid", aid).matrix(["airport_81"])
    (aid / "multilabel_val.tsv").unlink()
    with pytest.raises(DataError, match=r"multilabel_val\.tsv: no such file"):
        open_set("aid", aid).matrix(["airport_81"])


def test_uc_merceds_own_table_is_held_to_its_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "multilabels.tsv", ["cars", "trees"], [("river00", {"trees"})])
    with pytest.raises(DataError, match=r"multilabels\.tsv:1: no column for airplane, bare-soil"):
        open_set("ucm", tmp_path).matrix(["river00"])


# Tiles


def test_tiles_come_in_order_through_the_pixel_pipeline(both: Path) -> None:
    forest = miniature.chosen_stems("forest", 1)[0]
    files = {
        "aid/storagetanks_81": both / "aid/images/StorageTanks/storagetanks_81.jpg",
        forest: both / f"ucm/images/forest/{forest}.jpg",
        "aid/airport_1": both / "aid/images/Airport/airport_1.jpg",
    }
    tiles = open_set("ucm+aid", both).tiles(list(files), 24)
    assert tiles.shape == (3, 24, 24, 3)
    assert tiles.dtype == np.uint8
    for tile, file in zip(tiles, files.values(), strict=True):
        np.testing.assert_array_equal(tile, prepare(file.read_bytes(), 24, 24))


def test_only_the_tiles_that_are_there_are_present(both: Path) -> None:
    aid = open_set("aid", both / "aid")
    for part, stems in AID_MINIATURE.items():
        assert aid.present(aid.part_stems(part)) == list(stems)
    union = open_set("ucm+aid", both)
    drawn = union.present(union.part_stems("test"))
    assert drawn[-2:] == ["aid/airport_81", "aid/storagetanks_81"]
    assert set(drawn[:-2]) == set(open_set("ucm", both / "ucm").present(drawn[:-2]))


def test_missing_tiles_are_counted_and_five_are_named(both: Path) -> None:
    absent = [f"aid/river_{index}" for index in range(1, 8)]
    with pytest.raises(DataError, match=r"7 stems: aid/river_1, .*aid/river_5, \.\.\.$"):
        open_set("ucm+aid", both).tiles(["aid/airport_1", *absent], 8)


def test_a_tile_that_cannot_be_read_names_its_path(aid: Path) -> None:
    path = aid / "images" / "Airport" / "airport_1.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"images/Airport/airport_1\.jpg"):
        open_set("aid", aid).tiles(["airport_10", "airport_1"], 8)


def test_a_tile_that_the_system_refuses_names_its_path(
    aid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"airport_1\.jpg.*Permission denied"):
        open_set("aid", aid).tiles(["airport_1"], 8)


def test_dfc15_gives_labels_without_tiles_and_names_their_folder(tmp_path: Path) -> None:
    dfc15 = open_set("dfc15", draw_dfc15(tmp_path))
    assert dfc15.labels == list(DFC15_LABELS)
    assert dfc15.matrix(["3", "10"]).tolist() == [[1, 0, 0, 0, 0, 0, 0, 1]] * 2
    assert dfc15.present(["3", "10"]) == []
    with pytest.raises(DataError, match=rf"{tmp_path}/images: no such folder; .* dfc15"):
        dfc15.tiles(["3"], 8)


def test_dfc15_reads_tiles_where_a_user_has_them(tmp_path: Path) -> None:
    dfc15 = open_set("dfc15", draw_dfc15(tmp_path))
    draw_tile(tmp_path / "images" / "3.png", seed=3)
    assert dfc15.tiles(["3"], 8).shape == (1, 8, 8, 3)
    assert dfc15.present(["3", "10"]) == ["3"]
    with pytest.raises(DataError, match=r"no tile for 1 stems: 10$"):
        dfc15.tiles(["3", "10"], 8)


# Real data


def part_lists(folder: Path, pattern: str) -> dict[str, list[str]]:
    return {
        part: list(ucm.read_table([folder / pattern.format(part)]).rows) for part in splits.PARTS
    }


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("ucm_aitlas", "ucm/splits/aitlas_{}.tsv"),
        ("aid", "aid/multilabel_{}.tsv"),
        ("dfc15", "dfc15/multilabel_{}.tsv"),
    ],
)
def test_the_committed_lists_are_those_of_the_published_tables(
    data: Path, name: str, pattern: str
) -> None:
    for part, stems in part_lists(data, pattern).items():
        lines = "".join(f"{stem}\n" for stem in stems)
        assert hashlib.sha256(lines.encode()).hexdigest() == splits.split_sha256(name, part)


@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [
        ("ucm", "ucm", {"airplane": 100, "buildings": 691, "trees": 1009, "pavement": 1300}),
        ("ucm_aitlas", "ucm", {"airplane": 100, "buildings": 691, "trees": 1009, "water": 203}),
        ("aid", "aid", {"airplane": 99, "buildings": 2161, "trees": 2407, "mobile-home": 2}),
        ("dfc15", "dfc15", {"impervious": 3133, "tree": 258, "boat": 270, "car": 705}),
        ("ucm+aid", ".", {"airplane": 199, "buildings": 2852, "trees": 3416, "mobile-home": 104}),
    ],
)
def test_the_real_tables_hold_every_stem_and_known_counts(
    data: Path, name: str, folder: str, counts: dict[str, int]
) -> None:
    opened = open_set(name, data / folder)
    every = [stem for part in splits.PARTS for stem in opened.part_stems(part)]
    matrix = opened.matrix(every)
    assert matrix.shape == (sum(SIZES[name]), len(opened.labels))
    sums = dict(zip(opened.labels, matrix.sum(axis=0).astype(int).tolist(), strict=True))
    assert {label: sums[label] for label in counts} == counts
    assert matrix.any(axis=1).all()


def test_aitlas_has_the_rows_of_the_table_of_uc_merced(ucm_real: Path) -> None:
    ours = ucm.read_labels(ucm_real)
    paths = [ucm_real / "splits" / f"aitlas_{part}.tsv" for part in splits.PARTS]
    theirs = ucm.read_table(paths)
    assert theirs.labels == ours.labels
    np.testing.assert_array_equal(theirs.matrix(list(ours.rows)), ours.matrix(list(ours.rows)))


@pytest.mark.parametrize(("name", "folder"), [("aid", "aid"), ("ucm+aid", ".")])
def test_the_real_tiles_are_all_there(data: Path, name: str, folder: str) -> None:
    opened = open_set(name, data / folder)
    for part in splits.PARTS:
        stems = opened.part_stems(part)
        assert opened.present(stems) == stems
    ends = [stems[0], stems[-1]]
    assert opened.tiles(ends, 32).shape == (2, 32, 32, 3)


def test_this_copy_of_aid_is_scaled_down(data: Path) -> None:
    with Image.open(data / "aid" / "images" / "Airport" / "airport_1.jpg") as tile:
        assert tile.size == (150, 150)


def test_the_real_dfc15_has_no_tiles(data: Path) -> None:
    with pytest.raises(DataError, match="dfc15/images: no such folder"):
        open_set("dfc15", data / "dfc15").tiles(["3"], 8)
