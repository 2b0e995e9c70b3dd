"""A share of the images held out to evaluate on: determined by the seed, never trained on, kept by a resumed run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from detection_data import thing, write_coco
from resim.cli.main import main
from resim.datasets.coco import read_coco
from resim.datasets.records import DetectionData
from resim.datasets.validation_split import hold_out, recorded_split, restore_held_out, split_line
from resim.errors import UserError
from tiny_detectors import things, write_things

Captured = pytest.CaptureFixture[str]
TINY = [
    "--backbone", "resnet18", "--fpn-width", "16", "--rpn-regions", "16", "--box-regions", "16",
    "--proposals-train", "30", "--proposals-test", "20", "--min-sizes", "64", "--max-size", "128", "--test-size", "64",
    "--steps", "2", "--batch-size", "2", "--drops", "1", "--precise-bn", "0",
    "--device", "cpu", "--precision", "float32", "--workers", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> DetectionData:
    """Ten images; the last has no object."""
    path = write_coco(
        tmp_path_factory.mktemp("ten"), [thing(n, n, 7, (10, 10, 50, 60)) for n in range(1, 10)], num_images=10
    )
    return read_coco(path)


def ids(data: DetectionData) -> list[int | str]:
    return [record.image_id for record in data.records]


@pytest.mark.parametrize(("fraction", "count"), [(0.2, 2), (0.25, 2), (0.01, 1), (0.5, 5), (0.999, 9)])
def test_every_image_is_in_one_part(ten: DetectionData, fraction: float, count: int) -> None:
    for seed in range(5):
        train, val = hold_out(ten, fraction, seed)
        assert len(val) == count
        assert sorted([*ids(train), *ids(val)]) == list(range(1, 11))
        assert ids(val) == sorted(ids(val))
        assert ids(hold_out(ten, fraction, seed)[1]) == ids(val)
    assert len({tuple(ids(hold_out(ten, 0.3, seed)[1])) for seed in range(8)}) > 1


def test_the_held_out_part_records_its_origin(ten: DetectionData) -> None:
    train, val = hold_out(ten, 0.3, 4)
    assert (train.source, train.held_out) == (ten.source, None)
    assert val.source == f"{ten.source} (held out by --val-fraction 0.3, seed 4)"
    objects = sum(image != 10 for image in ids(val))
    assert split_line(val) == (
        f"held out to evaluate on: 3 of 10 images with {objects} objects, sampled by --val-fraction 0.3 and "
        "seed 4; never trained on; no object of cat is among them"
    )


def test_copies_of_an_image_stay_together(ten: DetectionData, tmp_path: Path) -> None:
    names = [
        "a_jpg.rf.1f.jpg",
        "a_jpg.rf.2e.jpg",
        "b.jpg",
        "b.jpg",
        "c.jpg",
        "link.jpg",
        "d.rf",
        "e.rf",
        ".rf.x",
        ".rf.y",
    ]
    (tmp_path / "c.jpg").touch()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "c.jpg")
    records = tuple(
        dataclasses.replace(record, image=str(tmp_path / name)) for record, name in zip(ten.records, names, strict=True)
    )
    copies = dataclasses.replace(ten, records=records)
    sizes = set()
    for seed in range(12):
        held_out = set(ids(hold_out(copies, 0.1, seed)[1]))
        sizes.add(len(held_out))
        for pair in ({1, 2}, {3, 4}, {5, 6}):
            assert not held_out & pair or pair <= held_out
    assert sizes == {1, 2}


def test_a_split_is_restored_even_if_images_were_removed(ten: DetectionData) -> None:
    train, val = hold_out(ten, 0.4, 1)
    assert val.held_out is not None
    stored = json.loads(json.dumps(val.held_out.to_json()))
    for gone in (ids(train)[0], ids(val)[0]):
        fewer = dataclasses.replace(ten, records=tuple(r for r in ten.records if r.image_id != gone))
        rest, again = restore_held_out(fewer, stored)
        assert ids(rest) == [image for image in ids(train) if image != gone]
        assert ids(again) == [image for image in ids(val) if image != gone]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 1.5, float("nan")])
def test_shares_that_leave_a_part_empty_are_refused(ten: DetectionData, fraction: float) -> None:
    with pytest.raises(UserError, match=r"--val-fraction .*: must be above 0 and below 1"):
        hold_out(ten, fraction, 0)


def test_one_image_cannot_be_split(ten: DetectionData) -> None:
    with pytest.raises(UserError, match="has 1 image, but needs at least two"):
        hold_out(dataclasses.replace(ten, records=ten.records[:1]), 0.5, 0)


# -- the commands


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_things(tmp_path_factory.mktemp("coco"), 6)


def refusal(capsys: Captured, verb: str, *words: str | Path) -> str:
    capsys.readouterr()
    assert main([*verb.split(), *map(str, words)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message.rstrip("\n")


@pytest.mark.slow
def test_a_run_keeps_its_split(capsys: Captured, coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin = ["detect", "train", str(coco), *TINY, "--seed", "3", "--out", str(out)]
    assert main([*begin, "--val-fraction", "0.34", "--stop-after", "1"]) == 0
    assert "held out to evaluate on: 2 of 6 images with 4 objects, sampled by --val-fraction 0.34 and seed 3" in (
        " ".join(capsys.readouterr().out.split())
    )
    data = json.loads((out / "config.json").read_text())["data"]
    _, val = hold_out(read_coco(coco), 0.34, 3)
    assert data["split"] == {"val_fraction": 0.34, "seed": 3, "val_images": ids(val)}
    assert data["images"] == 4
    go_on = ["detect", "train", str(coco), "--out", str(out), "--resume"]
    message = refusal(capsys, "detect train", *go_on[2:], "--val-fraction", "0.5")
    assert message.endswith(
        "--val-fraction 0.5: the run holds out a share of 0.34 to evaluate on: leave the option out to go on with it, "
        "or name another --out"
    )
    message = refusal(capsys, "detect train", *go_on[2:], "--val", str(coco))
    assert f"--val {coco}: the run holds out a share of 0.34 to evaluate on: leave the option out" in message
    assert main(go_on) == 0
    scores = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [line["images"] for line in scores] == [2]
    results = json.loads((out / "results.json").read_text())
    assert {result["image_id"] for result in results} <= set(ids(val))
    capsys.readouterr()
    # the run's own data are scored where it was not trained, unless all are named
    score = [
        "detect",
        "eval",
        str(out),
        str(coco),
        "--device",
        "cpu",
        "--workers",
        "0",
        "--out",
        str(tmp_path / "eval"),
    ]
    for words, number in ([], 2), (["--all-images"], 6):
        assert main([*score, *words]) == 0
        message = capsys.readouterr().out
        assert ("scored: held out to evaluate on: 2 of 6 images" in message) == (number == 2)
        assert json.loads((tmp_path / "eval" / "scores.jsonl").read_text().splitlines()[-1])["images"] == number
    other = write_things(tmp_path / "other", 5)
    assert main([*score[:3], str(other), *score[4:]]) == 0
    assert "held out" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_comparison_has_one_split_for_all_its_runs(capsys: Captured, coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    words = ["compare", str(coco), "--init", "random", "other=random", "--seeds", "1", "2", *TINY, "--replicates", "3"]
    assert "--val is needed" in refusal(capsys, "compare", *words[1:], "--out", out)
    words += ["--val-fraction", "0.5", "--steps", "1", "--out", str(out)]
    assert main(words) == 0
    splits = [json.loads(path.read_text())["data"]["split"] for path in sorted(out.glob("*/config.json"))]
    assert len(splits) == 4
    assert all(split == splits[0] for split in splits)
    assert len(splits[0]["val_images"]) == 3
    verdict = capsys.readouterr().out.splitlines()[-3:]
    assert verdict == json.loads((out / "compare.json").read_text())["verdict"]
    assert "the networks are all untrained" in verdict[0]
    assert recorded_split([tmp_path / "none", *sorted(out.glob("*"))]) == splits[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--val-fraction", "0.2", "--val", "val"],
            "--val-fraction 0.2 with --val val: the one holds images of DATA out",
        ),
        (["--val-fraction", "0.2", "--val-split", "val"], "--val-fraction 0.2 with --val-split val: "),
        (["--val-fraction", "0.2", "--val-images-in", "a", "b"], "--val-fraction 0.2 with --val-images-in a b: "),
        (["--val-fraction", "0"], "--val-fraction 0: must be above 0 and below 1"),
        (["--val-fraction", "20"], "--val-fraction 20: must be above 0 and below 1, such as 0.2"),
        (["--val-fraction", "x"], "--val-fraction"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    capsys: Captured, coco: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert message in refusal(capsys, "detect train", coco, *TINY, *words, "--out", out)
    assert message in refusal(capsys, "compare", coco, *TINY, "--init", "random", "--out", out, *words)
    assert not out.exists()


@pytest.mark.slow
def test_a_run_with_a_validation_file_cannot_take_a_split(capsys: Captured, tmp_path: Path, coco: Path) -> None:
    out = tmp_path / "run"
    words: list[Any] = [coco, "--val", str(coco), *TINY, "--out", out]
    assert main(["detect", "train", *map(str, words), "--stop-after", "1"]) == 0
    assert main(["detect", "eval", str(out), str(coco), "--device", "cpu", "--workers", "0"]) == 0
    assert "warning: the detector was trained on these very images" in capsys.readouterr().out
    message = refusal(capsys, "detect train", coco, "--val-fraction", "0.5", *TINY, "--out", out, "--resume")
    assert f"--val-fraction 0.5: the run in {out} holds no share out: leave the option out" in message
    assert things(tmp_path / "few", 2).held_out is None
