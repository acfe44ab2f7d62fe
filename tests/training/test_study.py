"""Studies: what a file may say, what is run and what is not run again, and what the table tells."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from scipy import stats

from tests.serving.gateway import wait_for
from tests.training.test_config import tiny_yaml
from tilesight.errors import ConfigError, RunError
from training.comparison import FIGURES, Outcome, permuted, rows
from training.config import SignaRun
from training.cost import costs
from training.datasets.splits import split_sha256
from training.reports import study_report
from training.study import merged, read_study, run_study

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

# What docs/training.md says a study needs of a finished run.
_NEEDED = {"config.yaml", "run.json", "metrics.json", "predictions.npz"}
_STUDIES = sorted((Path(__file__).parents[2] / "training/configs/studies").glob("*.yaml"))


def write_study(folder: Path, **changes: Any) -> Path:  # noqa: ANN401
    base = folder / "base.yaml"
    base.write_text(yaml.safe_dump(tiny_yaml("signa")), encoding="utf-8")
    (folder / "list.yaml").write_text("- model\n", encoding="utf-8")
    content = {
        "title": "Two",
        "against": "plain",
        "seeds": [1, 2],
        "base": "base.yaml",
        "common": {"fit": {"epochs": 1}},
        "variants": {"plain": {"architecture": {"method": "plain"}}, "signa": {}},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", _STUDIES, ids=lambda path: path.stem)
def test_the_committed_studies_can_be_run(path: Path) -> None:
    study = read_study(path)
    assert study.against in study.variants
    configs = [configs[study.seeds[0]] for configs in study.variants.values()]
    assert len({config.model_dump_json() for config in configs}) == len(configs), "two are alike"
    assert {config.fit.epochs for config in configs} == {configs[0].fit.epochs}


def test_all_variants_of_a_seed_come_before_the_next(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    assert [(name, seed) for name, seed, _ in study.runs()] == [
        ("plain", 1), ("signa", 1), ("plain", 2), ("signa", 2),
    ]  # fmt: skip
    assert all(config.seed == seed and config.fit.epochs == 1 for _, seed, config in study.runs())


def test_changes_go_level_by_level() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged(base, {"a": {"c": 4}, "e": 5}) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"against": "nobody"}, "against: nobody, the variants are plain, signa"),
        ({"seeds": [1, 1]}, "one of them twice"),
        ({"seeds": []}, "seeds"),
        ({"colour": "red"}, "colour"),
        (
            {"variants": {"plain": {}, "x": {"architecture": {"stage": "layer5"}}}},
            r"variants\.x: architecture\.stage: .*layer1",
        ),
        ({"variants": {"plain": {}, "x": {"architecture": {"heads": 9}}}}, r"variants\.x: .*heads"),
        ({"base": "absent.yaml"}, r"absent\.yaml: No such file"),
        ({"base": "list.yaml"}, r"list\.yaml: not a configuration"),
        ({"common": {"image_size": 100}}, "common: image_size: .*multiple of 32"),
        (
            {"variants": {"plain": {}, "x": {"dataset": "aid"}}},
            r"variants\.x: dataset: aid, plain has ucm",
        ),
    ],
)
def test_what_is_no_study_is_told(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        read_study(write_study(tmp_path, **changes))


def test_a_study_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_study(tmp_path / "absent.yaml")


def outcome(f1: float, tiles: list[float]) -> Outcome:
    return Outcome(dict.fromkeys(FIGURES, f1), np.array(tiles))


def test_the_table_pairs_seeds_and_tiles() -> None:
    plain = {1: outcome(0.90, [0.5, 0.6, 1]), 2: outcome(0.92, [0.7, 0.6, 1])}
    better = {1: outcome(0.93, [0.9, 0.8, 1]), 2: outcome(0.94, [0.9, 1, 1]), 3: outcome(0.2, [0])}
    first, second = rows({"plain": plain, "better": better}, "plain")
    assert (first.difference, first.p_seeds, first.p_tiles) == (None, None, None)
    assert first.mean["f1_samples"] == pytest.approx(0.91)
    assert first.deviation is not None
    assert first.deviation["map"] == pytest.approx(np.std([0.9, 0.92], ddof=1))
    assert second.seeds == 3
    # The third seed has no partner.
    assert second.difference == pytest.approx(2.5)
    assert second.p_seeds == pytest.approx(stats.ttest_rel([0.93, 0.94], [0.90, 0.92]).pvalue)
    assert second.p_tiles == permuted(np.array([0.3, 0.3, 0]))


def test_one_seed_has_no_deviation_and_no_test_over_seeds() -> None:
    found = rows({"plain": {1: outcome(0.9, [1, 0])}, "other": {1: outcome(0.9, [1, 0])}}, "plain")
    assert [one.deviation for one in found] == [None, None]
    assert (found[1].p_seeds, found[1].p_tiles) == (None, 1.0)


def test_the_permutation_test_sees_a_difference_and_no_other() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 200)
    assert permuted(noise - noise.mean()) > 0.5
    assert permuted(noise - noise.mean() + 0.05) < 0.01


def test_a_study_goes_on_and_runs_nothing_twice(ucm_miniature: Path, tmp_path: Path) -> None:
    study, out = read_study(write_study(tmp_path)), tmp_path / "out"
    said: list[str] = []
    table = run_study(study, ucm_miniature, None, out, say=said.append)
    assert [one.variant for one in table] == ["plain", "signa"]
    assert all(one.seeds == 2 and one.cost for one in table)
    begun = [line for line in said if line.startswith("run ")]
    assert begun[0] == "run 1 of 4: plain, seed 1"
    assert len(begun) == 4
    document = json.loads((out / "study.json").read_text(encoding="utf-8"))
    assert document["runs_left"] == 0
    assert document["rows"][1]["mean"]["map"] == table[1].mean["map"]
    text = (out / "study.md").read_text(encoding="utf-8")
    assert study_report.study_text(document) == text
    assert split_sha256("ucm", "test") in text
    floor = document["floors"]["oracle_scene"]["f1_samples"]
    assert f"| floor: oracle scene | - | {floor:.4f} |" in text
    with Image.open(out / "study.png") as picture:
        assert picture.format == "PNG"

    # A finished study only writes its table again, for which it needs few of its runs' files; of a
    # lost run, that run alone is run.
    for path in (out / "runs").rglob("*"):
        if path.is_file() and path.name not in _NEEDED:
            path.unlink()
    shutil.rmtree(out / "runs/signa/seed-2")
    said.clear()
    again = run_study(study, ucm_miniature, None, out, say=said.append)
    assert [line for line in said if line.startswith("run ")] == ["run 1 of 1: signa, seed 2"]
    assert [one.mean for one in again] == [one.mean for one in table]

    # With another study file the finished runs are others' runs.
    changed = read_study(write_study(tmp_path, common={"image_size": 96, "fit": {"epochs": 1}}))
    with pytest.raises(ConfigError, match="plain/seed-1: finished with another configuration"):
        run_study(changed, ucm_miniature, None, out)


def test_runs_side_by_side_are_all_in_the_table(ucm_miniature: Path, tmp_path: Path) -> None:
    study, out = read_study(write_study(tmp_path, seeds=[1])), tmp_path / "out"
    said: list[str] = []
    table = run_study(study, ucm_miniature, None, out, at_once=2, say=said.append)
    assert [(one.variant, one.seeds) for one in table] == [("plain", 1), ("signa", 1)]
    assert [line.split(":")[0] for line in said] == [
        "run 1 of 2 is finished",
        "run 2 of 2 is finished",
    ]
    folders = [out / "runs" / name / "seed-1" for name in ("plain", "signa")]
    begun = [(folder / "config.yaml").stat().st_mtime_ns for folder in folders]
    ended = [(folder / "metrics.json").stat().st_mtime_ns for folder in folders]
    assert max(begun) < min(ended), "one after the other"


def test_what_fails_beside_others_is_told_and_they_are_finished(
    ucm_miniature: Path, tmp_path: Path
) -> None:
    study, out = read_study(write_study(tmp_path, seeds=[1])), tmp_path / "out"
    (out / "runs/plain").mkdir(parents=True)
    (out / "runs/plain/seed-1").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="plain/seed-1: not a folder"):
        run_study(study, ucm_miniature, None, out, at_once=2)
    assert (out / "runs/signa/seed-1/metrics.json").is_file()


def test_workers_end_with_a_study_that_is_killed(ucm_miniature: Path, tmp_path: Path) -> None:
    grid = write_study(tmp_path, seeds=[1], common={"fit": {"epochs": 200}})
    words = ["study", "signa", str(grid), "--data", str(ucm_miniature), "--jobs", "2"]
    study = psutil.Popen(
        [sys.executable, "-m", "tilesight.cli", *words, "--out", str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    begun = [tmp_path / "out/runs" / name / "seed-1/config.yaml" for name in ("plain", "signa")]
    try:
        wait_for(lambda: all(path.is_file() for path in begun), 120)
        workers = study.children(recursive=True)
        assert len(workers) >= 2
    finally:
        study.kill()
        study.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert not (begun[0].parent / "metrics.json").exists()


def test_the_picture_has_a_point_for_each_seed_and_a_line_for_each_mean() -> None:
    plain = {1: outcome(0.90, [0.5, 1]), 2: outcome(0.92, [0.7, 1])}
    table = rows({"plain": plain, "signa": {1: outcome(0.95, [1, 1])}}, "plain")
    facts = {"title": "Two", "rows": [asdict(one) for one in table]}
    for axes in study_report.study_figure(facts).axes:
        assert [line.get_xdata().tolist() for line in axes.lines] == [[0.90, 0.92], [0.95]]
        means = [lines.get_segments()[0][0][0] for lines in axes.collections]
        assert means == pytest.approx([0.91, 0.95])
    # The panels share one axis, whose names stand at the first.
    names = [
        label.get_text() for label in study_report.study_figure(facts).axes[0].get_yticklabels()
    ]
    assert names == ["plain", "signa"]


def test_what_a_network_costs_is_counted_without_its_label_branch() -> None:
    content = tiny_yaml("signa") | {"image_size": 32}
    configs = {
        method: SignaRun.model_validate(
            content | {"architecture": {"method": method, "heads": 2, "label_vector_width": 8}}
        )
        for method in ("plain", "signa", "ml_gcn")
    }
    found = costs(configs, labels=5)
    # Two heads after 32 channels: merging 64 -> 32, 2 x (5 + 5 + 1 + 1), and a constant 2 x 5 x 32.
    added = 64 * 32 + 32 + 2 * 12 + 2 * 5 * 32
    assert found["signa"].parameters - found["plain"].parameters == added
    assert found["ml_gcn"].parameters == found["plain"].parameters - 5  # no bias
    assert found["signa"].macs > found["plain"].macs > 1e6
    assert all(cost.ms > 0 for cost in found.values())
