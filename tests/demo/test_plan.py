"""The demo's plan: what fits into its minutes, worked out by hand, on an ordinary, a slow and a fast machine."""

from __future__ import annotations

import pytest

from resim.demo.plan import (
    DETECT,
    MOCO,
    PROBE,
    REPORT,
    RESIM,
    Speeds,
    make_plan,
    plan_rest,
    scenes_that_fit,
    seeds_that_fit,
)

ORDINARY = Speeds(
    start=2, resim_pair=0.02, moco_pair=0.015, probe_image=0.05, detector_step=0.4, detected_image=0.02, report=10
)
SLOW = ORDINARY.scaled(20)
FAST = Speeds(
    start=1, resim_pair=0.0005, moco_pair=0.0004, probe_image=0.002, detector_step=0.03, detected_image=0.002, report=3
)


def test_scenes_take_a_small_share_of_the_minutes() -> None:
    assert scenes_that_fit(10, 0.05, (512, 256)) == (512, 256)  # 38.4 s of the 48 s that drawing may take
    # 4 minutes: 19.2 of 46.08 s, 0.4167 of all: 213 in steps of 32, and 106
    assert scenes_that_fit(4, 0.06, (512, 256)) == (192, 106)
    assert scenes_that_fit(4, 1.0, (512, 256)) == (128, 64)
    assert scenes_that_fit(4, 1.0, (8, 6)) == (8, 6)  # never more than there may be


def test_an_ordinary_machine_fills_its_minutes() -> None:
    plan = make_plan(10, ORDINARY, epoch_pairs=512, used=40, labels=128)
    # 560 s are left; half of them are 280 s, and an epoch of both takes 512 * 0.035 = 17.92 s: 15 epochs
    assert (plan.epochs, plan.pairs) == (15, 7680)
    assert plan.probe_images == 256
    assert plan.seconds[RESIM] == pytest.approx(2 + 7680 * 0.02)
    assert plan.seconds[MOCO] == pytest.approx(2 + 7680 * 0.015)
    assert plan.seconds[PROBE] == pytest.approx(3 * 256 * 0.05)
    # 238.8 s remain; 85 % of them are 67.66 s for each of 3 detectors; 2 s to start, 1.5 * 2 * 128 * 0.02 = 7.68 s to
    # evaluate: 144 steps of 0.4 s
    assert (plan.steps, plan.seeds) == (144, 1)
    assert plan.seconds[DETECT] == pytest.approx(3 * (2 + 144 * 0.4 + 7.68))
    assert list(plan.seconds) == [RESIM, MOCO, PROBE, DETECT, REPORT]
    assert plan.total == pytest.approx(563.04)
    assert plan.notes == ()


def test_more_minutes_bring_more_seeds() -> None:
    plan = make_plan(30, ORDINARY, epoch_pairs=512, used=40, labels=128)
    # 1760 s are left, half of them are 49 epochs (882.08 s with both starts): 829.52 s remain for detectors,
    # 85 % of them are 78.34 s for each of 9, less 9.68 s to start and evaluate: 170 steps, an even number
    assert (plan.epochs, plan.steps, plan.seeds) == (49, 170, 3)
    assert plan.total == pytest.approx(1669.6)


def test_where_time_is_short_the_detectors_go_first() -> None:
    plan = make_plan(2.5, ORDINARY, epoch_pairs=512, used=40, labels=128)
    # the least of all is 40 + 14 + 2 * 17.92 + 9.6 + 3 * (2 + 24 + 7.68) = 200.48 s, more than 150
    assert plan.steps == plan.seeds == 0
    assert DETECT not in plan.seconds
    # a fifth of the 110 s left is 146 images of 0.15 s; 74.1 s remain for pre-training: 4 epochs of 17.92 s
    assert (plan.epochs, plan.probe_images) == (4, 146)
    assert plan.total == pytest.approx(147.58)
    assert plan.notes == ("no time for detectors: a demo with them takes about 4 minutes here",)


def test_a_slow_machine_does_the_least_and_says_how_long_it_takes() -> None:
    plan = make_plan(10, SLOW, epoch_pairs=512, used=100, labels=128)
    assert (plan.pairs, plan.probe_images, plan.steps) == (1024, 64, 0)
    # 100 + 2 * 40 + 1024 * 0.7 + 3 * 64 * 1 + 200 = 1288.8 s, and 3 * (40 + 60 * 8 + 153.6) = 2020.8 s of detectors
    assert plan.total == pytest.approx(1288.8)
    assert plan.notes == (
        "this machine is slow: the least that shows anything takes about 22 minutes",
        "no time for detectors: a demo with them takes about 56 minutes here",
    )


def test_a_fast_machine_ends_early() -> None:
    plan = make_plan(10, FAST, epoch_pairs=512, used=10, labels=128)
    assert (plan.pairs, plan.probe_images, plan.steps, plan.seeds) == (40_960, 256, 300, 3)
    # 10 + 2 * 1 + 40960 * 0.0009 + 3 * 256 * 0.002 + 9 * (1 + 9 + 0.768) + 3 s
    assert plan.total == pytest.approx(150.312)
    assert plan.notes == ("this machine is fast: more than 3 minutes would show little more",)


def test_images_without_labels_have_no_detectors_and_no_note_of_them() -> None:
    plan = make_plan(10, ORDINARY, epoch_pairs=512, used=40)
    assert (plan.steps, list(plan.seconds)) == (0, [RESIM, MOCO, PROBE, REPORT])
    # 560 - 14 - 38.4 = 507.6 s: 28 epochs
    assert (plan.epochs, plan.notes) == (28, ())


def test_pairs_override_the_plan_which_says_what_they_cost() -> None:
    plan = make_plan(10, ORDINARY, epoch_pairs=512, used=40, pairs=2048, labels=128)
    assert (plan.epochs, plan.pairs, plan.notes) == (4, 2048, ())
    # 435.92 s remain for detectors; 85 % of them are 61.76 s for each of 6: 130 steps
    assert (plan.steps, plan.seeds) == (130, 2)
    assert plan.total == pytest.approx(534.16)
    plan = make_plan(10, ORDINARY, epoch_pairs=512, used=40, pairs=51_200, labels=0)
    # 40 + 14 + 100 * 17.92 + 9.6 s
    assert plan.notes == ("--pairs 51200 on this machine takes about 31 minutes, not 10",)
    assert make_plan(10, ORDINARY, epoch_pairs=512, pairs=32).epochs == 1  # whole epochs, one at least


def test_detectors_fill_what_pre_training_left() -> None:
    plan = make_plan(10, ORDINARY, epoch_pairs=512, used=40, labels=128)
    rest = plan_rest(plan, ORDINARY, used=400, probed=False, labels=128)
    # 200 - 10 - 38.4 = 151.6 s; 85 % of them are 42.95 s a detector, less 9.68 s: 82 steps
    assert (rest.probe_images, rest.steps, rest.seeds) == (256, 82, 1)
    assert list(rest.seconds) == [PROBE, DETECT, REPORT]
    assert rest.total == pytest.approx(575.84)
    # the probes took their time: 85 % of 150 - 10 s are 39.67 s a detector: 74 steps
    assert plan_rest(rest, ORDINARY, used=450, probed=True, labels=128).steps == 74


def test_detectors_that_were_promised_may_overrun_a_little_and_no_more() -> None:
    plan = make_plan(10, ORDINARY, epoch_pairs=512, used=40, labels=128)
    least = plan_rest(plan, ORDINARY, used=540, probed=True, labels=128)
    assert (least.steps, least.seeds, least.notes) == (
        60,
        1,
        (),
    )  # 101.04 s where 50 are left, 60 over allowed
    late = plan_rest(plan, ORDINARY, used=570, probed=True, labels=128)
    assert (late.steps, list(late.seconds)) == (0, [REPORT])
    assert late.notes == ("the detectors are left out: the stages before them took longer than planned",)


def test_detectors_return_where_quick_probes_leave_time_for_them() -> None:
    plan = make_plan(10, ORDINARY, epoch_pairs=512, used=40, labels=128)
    # at half the speed the detectors would take 202 s, of 115 s that are left
    slow = plan_rest(plan, ORDINARY.scaled(2), used=485, probed=False, labels=128)
    assert (slow.steps, bool(slow.notes)) == (0, True)
    # 101.04 s where 60 are left, 60 over allowed, for the first plan had detectors
    assert plan_rest(slow, ORDINARY, used=530, probed=True, labels=128).steps == 60
    # the machine's first plan had none: nothing may overrun
    without = make_plan(1, ORDINARY, epoch_pairs=512, used=10, labels=128)
    assert (without.steps, plan_rest(without, ORDINARY, used=20, probed=True, labels=128).steps) == (0, 0)


def test_the_first_detector_tells_how_many_seeds_fit() -> None:
    plan = make_plan(10, ORDINARY, epoch_pairs=512, used=40, labels=128)
    assert seeds_that_fit(plan, run_seconds=20, left=150) == 2  # 7 more runs in 140 s: 8 runs, 2 of each network
    assert seeds_that_fit(plan, run_seconds=20, left=5) == 1
    assert seeds_that_fit(plan, run_seconds=1, left=150) == 3
