"""The verdict of three lines: what is better, than which, and what is noise, by numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resim.detection.comparison_verdict import comparison_verdict
from resim.probes.accuracy import Accuracy
from resim.probes.suite import Score
from resim.probes.tables import to_json
from resim.probes.verdict import probe_verdict, verdicts
from resim.report.run_files import read_runs
from resim.report.verdict_section import verdict_parts
from resim.scores.verdict import Change, Wording, points, verdict

WORDS = Wording(measures="probes", over="test images", no_untrained="add random", no_other="add it")
NOISE = "Intervals are of 95 %, over test images."


def change(first: str, second: str, measure: str, low: float, high: float) -> Change:
    return Change(first=first, second=second, measure=measure, value=(low + high) / 2, low=low, high=high)


def test_a_swapped_change_is_the_negative() -> None:
    one = change("a", "b", "kNN", -0.1, 0.3)
    assert one.swapped() == change("b", "a", "kNN", -0.3, 0.1)
    assert str(one.swapped()) == "b minus a -10.0 points (-30.0 to +10.0)"
    assert not one.is_better
    assert change("a", "b", "kNN", 0.01, 0.3).swapped().is_worse


def test_one_network_and_the_untrained_one() -> None:
    changes = [
        change("mine", "random", "kNN on C5", 0.05, 0.15), change("mine", "random", "regions (both) on P4", 0.2, 0.3),
        change("mine", "random", "linear on C5", -0.02, 0.04),
    ]  # fmt: skip
    assert verdict(changes, ["mine"], "random", WORDS) == (
        "1. Better than untrained (random)? mine: yes, by 2 of 3 probes, most by regions (both) on P4: mine minus "
        "random +25.0 points (+20.0 to +30.0).",
        "2. Better than another? not measured: add it.",
        f"3. Within noise: mine minus random: linear on C5 +1.0 points (-2.0 to +4.0). {NOISE}",
    )


def test_a_network_that_is_better_and_worse_and_one_that_is_worse() -> None:
    changes = [
        change("random", "a", "kNN", 0.1, 0.3), change("a", "random", "regions", 0.2, 0.4),
        change("b", "random", "kNN", -0.5, -0.3), change("b", "random", "regions", -0.2, -0.1),
        change("b", "a", "kNN", -0.02, 0.02), change("b", "a", "regions", -0.1, 0.3),
    ]  # fmt: skip
    first, second, third = verdict(changes, ["a", "b"], "random", WORDS)
    assert first == (
        "1. Better than untrained (random)? a: in part, by 1 of 2 probes, most by regions: a minus random +30.0 points "
        "(+20.0 to +40.0), worse by 1, most by kNN: a minus random -20.0 points (-30.0 to -10.0); "
        "b: no, worse by 2 of 2 probes, most by kNN: b minus random -40.0 points (-50.0 to -30.0)."
    )
    assert second == "2. Better than another? a than b: not shown, all 2 probes are within noise."
    assert "a minus b: kNN +0.0 points (-2.0 to +2.0), regions -10.0 points (-30.0 to +10.0)." in third


def test_a_missing_measurement_is_reported_with_the_remedy() -> None:
    assert verdict([], ["mine"], None, WORDS) == (
        "1. Better than untrained? not measured: add random.",
        "2. Better than another? not measured: add it.",
        f"3. Within noise: nothing was compared. {NOISE}",
    )
    assert "the networks are all untrained" in verdict([], [], "random", WORDS)[0]
    sure = [change("mine", "random", "kNN", 0.1, 0.3), change("mine", "random", "linear", 0.1, 0.3)]
    assert verdict(sure, ["mine"], "random", WORDS)[2] == f"3. Within noise: none of 2 differences. {NOISE}"


# -- probes


def answers(right: int, of: int = 200) -> Score:
    top1 = np.arange(of) < right
    return Score(value=Accuracy(top1, top1, 0.5), details={})


def content(*names: str, reference: str | None = "random") -> dict[str, Any]:
    """kNN on two levels: 40 and 60 % of the untrained network, 90 and 50 % of "a", 60 and 52 % of "b"."""
    results = {
        "random": {("knn", "C4"): answers(80), ("knn", "C5"): answers(120)},
        "a": {("knn", "C4"): answers(180), ("knn", "C5"): answers(100)},
        "b": {("knn", "C4"): answers(120), ("knn", "C5"): answers(104)},
    }
    about = {name: {"kind": f"untrained {name}" if name == "random" else f"run {name}"} for name in names}
    networks = to_json({name: results[name] for name in names}, about, reference)
    return {"networks": networks} | ({} if reference is None else {"reference": reference})


def test_networks_are_compared_where_the_other_is_best() -> None:
    first, second, third = probe_verdict(content("a", "b", "random"))
    # the untrained network is best on C5, where "a" is worse, though on C4 it is far better; "b" is best on C4
    assert first.startswith(
        "1. Better than untrained (random)? a: no, worse: kNN on C5, a minus random -10.0 points (-14.5 to"
    )
    assert "b: no, worse: kNN on C5, b minus random -8.0 points (" in first
    assert "a than b: yes: kNN on C4, a minus b +30.0 points (" in second
    assert third.startswith("3. Within noise: none of 3 differences.")


@pytest.mark.parametrize("names", [("random", "a", "b"), ("a", "random", "b"), ("a", "b", "random")])
def test_the_order_of_the_networks_changes_no_verdict(names: tuple[str, ...]) -> None:
    assert probe_verdict(content(*names)) == probe_verdict(content("a", "b", "random"))
    assert len(verdicts(content(*names))) == 2


def test_a_demo_that_names_no_reference_has_the_untrained_one() -> None:
    assert probe_verdict(content("random", "a", "b", reference=None)) == probe_verdict(content("a", "b", "random"))


def test_files_of_earlier_versions_have_the_same_verdict() -> None:
    new = content("a", "random")
    old = json.loads(json.dumps(new))
    old["networks"][1]["less_first"] = old["networks"][1].pop("minus")["a"]
    old["networks"][0].pop("minus")
    assert probe_verdict(old) == probe_verdict(new)
    old["networks"][1]["less_first"] = {"knn/C5": {"difference": None, "interval": []}}
    assert "not measured" in probe_verdict(old)[0]


# -- detectors


def comparison(**more: Any) -> dict[str, Any]:
    differences = [
        {"first": "random", "second": "a", "value": -0.031, "low": -0.05, "high": -0.01},
        {"first": "random", "second": "b", "value": 0.02, "low": -0.01, "high": 0.04},
        {"first": "a", "second": "b", "value": 0.05, "low": 0.02, "high": 0.08},
    ]
    return {"scores": {name: {} for name in ("random", "a", "b")}, "seeds": [0], "differences": differences} | more


def test_detectors_are_compared_by_ap() -> None:
    first, second, third = comparison_verdict(comparison())
    assert first == (
        "1. Better than untrained (random)? a: yes: box AP, a minus random +3.10 points (+1.00 to +5.00); "
        "b: not shown, within noise: box AP, b minus random -2.00 points (-4.00 to +1.00)."
    )
    assert second == "2. Better than another? a than b: yes: box AP, a minus b +5.00 points (+2.00 to +8.00)."
    assert third.endswith("one seed, whose spread is not known.")
    assert "b minus random: box AP -2.00 points" in third
    assert comparison_verdict(comparison(seeds=[0, 1]))[2].endswith("over images and seeds of the fine-tuning.")


def test_the_untrained_start_is_recognised_by_its_weights() -> None:
    inits = {"random": "runs/called-random", "a": "random:quick", "b": "runs/b"}
    assert comparison_verdict(comparison(inits=inits))[0].startswith(
        "1. Better than untrained (a)? random: no, worse: "
    )


# -- the head of a report


def test_runs_without_probes_are_reported_with_the_command(tmp_path: Path) -> None:
    run, probed = tmp_path / "mine", tmp_path / "probed"
    for folder in (run, probed):
        folder.mkdir()
    (run / "config.json").write_text(json.dumps({"recipe": {"name": "quick"}}))
    readings = [
        {"step": step, "correspondence/C4": 0.5 + step / 100, "correspondence/P4": 0.25 + step / 25}
        for step in (0, 5, 10)
    ]
    (run / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in readings))
    (probed / "probe.json").write_text(json.dumps(content("a", "random")))
    texts = [getattr(part, "text", "") for part in verdict_parts(read_runs([run, probed]))]
    assert texts[:4] == ["Probes: probed", *probe_verdict(content("a", "random"))]
    assert texts[4] == "Probes: mine"
    assert texts[5] == (
        f"1. Better than untrained? not measured: run resim probe {run} random DATA (without interval: "
        "mine, untrained -> step 10: correspondence on C4 50.0 % -> 60.0 %)."
    )
    assert len(texts) == 8


def test_what_is_probed_or_compared_elsewhere_is_not_missing(tmp_path: Path) -> None:
    for name in ("a", "compared/a-seed0"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "config.json").write_text(json.dumps({"recipe": {"name": "quick"}}))
    tuned = tmp_path / "compared" / "a-seed0"
    (tuned / "config.json").write_text(json.dumps({"kind": "detect", "recipe": {}, "init": "runs/a"}))
    (tuned / "scores.jsonl").write_text(json.dumps({"step": 2, "scores": {"bbox": {"AP": 0.125}}}) + "\n")
    alone = [getattr(part, "text", "") for part in verdict_parts(read_runs([tmp_path / "a", tuned]))]
    assert alone[4] == "Detectors: a-seed0"
    assert "--init runs/a random --out OUT (without interval: a-seed0 bbox AP 12.50)." in alone[5]
    (tmp_path / "probe.json").write_text(json.dumps(content("a", "random")))
    compared = comparison(runs={"a": [str(tuned)]})
    (tmp_path / "compared" / "compare.json").write_text(json.dumps(compared))
    folders = [tmp_path / "a", tuned, tmp_path, tmp_path / "compared"]
    texts = [getattr(part, "text", "") for part in verdict_parts(read_runs(folders))]
    assert texts == [
        f"Probes: {tmp_path.name}", *probe_verdict(content("a", "random")), "Detectors: compared",
        *comparison_verdict(compared),
    ]  # fmt: skip


def test_zero_has_no_minus_sign() -> None:
    assert [points(share) for share in (-0.0, -0.0004, -0.0006, 0.0)] == ["+0.0", "+0.0", "-0.1", "+0.0"]
