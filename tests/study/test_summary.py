"""The figures at the head of a report: right numbers, in words that can be read, with a reason where one is missing."""

import dataclasses

import pytest

from cueva.config import PRESETS
from cueva.study.records import RunRecords
from cueva.study.summary import (
    ABSENT,
    cache_bytes,
    counted,
    duration,
    expanded_cache_bytes,
    shape_sentence,
    share,
    sized,
    summarise,
)


@pytest.mark.parametrize(
    ("preset", "latent", "expanded"),
    [("v3-671b", 70_272, 4_997_120), ("v2-lite-16b", 31_104, 276_480), ("moonlight-16b", 31_104, 276_480)],
)
def test_cache_bytes_are_the_published_ones(preset: str, latent: int, expanded: int) -> None:
    assert cache_bytes(PRESETS[preset]) == latent
    assert expanded_cache_bytes(PRESETS[preset]) == expanded


def figures(records: RunRecords, preset: str | None = "v3-671b") -> dict[str, tuple[str, str]]:
    config = PRESETS[preset] if preset else None
    return {figure.key: (figure.value, figure.meaning) for figure in summarise(records, config)}


def test_a_run_without_anything_gives_every_figure_a_reason() -> None:
    for preset in ("tiny", None):
        found = figures(RunRecords(), preset)
        assert len(found) == 8
        for key in ("held_out", "acceptance", "max_vio", "time", "tokens"):
            assert found[key][0] == ABSENT
            assert found[key][1].endswith(("Not measured yet.", "Not logged yet.", "No step is logged yet."))
    assert figures(RunRecords(), None)["cache"] == (ABSENT, "The run holds no model yet, so its shape is not known.")


def test_the_figures_of_the_published_model() -> None:
    found = figures(RunRecords())
    assert found["parameters"][0] == "671B"
    assert "671,026,404,352" in found["parameters"][1]
    assert found["active"][0] == "37.6B"
    assert found["active"][1] == (
        "Weights that work on any one token: 5.6% of all. Of 256 experts in a layer a token meets 8 and the 1 shared."
    )
    assert found["cache"][0] == "68.6 KiB"
    assert "71.1 times as much" in found["cache"][1]


def test_the_last_measurement_counts_and_the_best_is_named() -> None:
    evals = [
        {"step": 10, "bits_per_byte": 2.0},
        {"step": 20, "bits_per_byte": 2.5},
        {"step": 30, "bits_per_byte": None},
    ]
    value, meaning = figures(RunRecords(evals=evals))["held_out"]
    assert value == "2.500"
    assert "Best so far: 2.000 at step 10." in meaning


def test_acceptance_is_that_of_the_last_measurement_that_has_one() -> None:
    evals = [{"step": 1, "acceptance": [0.5, 0.25]}, {"step": 2, "acceptance": []}, {"step": 3}]
    value, meaning = figures(RunRecords(evals=evals))["acceptance"]
    assert value == "50.0%"
    assert "up to 1.50 tokens per pass" in meaning
    assert "depth 2 25.0%" in meaning


def test_worst_max_vio_looks_at_the_last_fifty_steps_and_names_its_gate() -> None:
    steps = [{"step": i, "max_vio": [9.0, 9.0]} for i in range(10)]
    steps += [{"step": 10 + i, "max_vio": [0.1, 0.4 if i == 7 else 0.2]} for i in range(50)]
    loads = [{"step": 20, "gates": ["layer 1", "mtp 1"], "load": []}]
    value, meaning = figures(RunRecords(steps=steps, loads=loads))["max_vio"]
    assert value == "0.40"
    assert "in mtp 1, was once 40.0% above" in meaning
    assert "mean over these steps: 0.20" in meaning


def test_skipped_steps_are_mentioned() -> None:
    steps = [{"step": 1, "tokens": 2048, "seconds": 70.0, "skipped": True}, {"step": 2, "tokens": 4096, "seconds": 75}]
    found = figures(RunRecords(steps=steps))
    assert found["tokens"] == (
        "4.1k",
        "4,096 tokens of training text in 2 steps; 1 step skipped because a number was not finite.",
    )
    assert found["time"][0] == "1 min 15 s"


def test_a_dense_model_without_mtp_says_so() -> None:
    dense = dataclasses.replace(PRESETS["tiny"], n_routed_experts=None, num_nextn_predict_layers=0)
    found = {figure.key: figure.meaning for figure in summarise(RunRecords(), dense)}
    assert found["max_vio"].endswith("This model has no expert layers.")
    assert found["acceptance"].endswith("This model has no MTP modules, so it drafts nothing.")
    assert shape_sentence(dense) == "3 layers · width 32 · 2 heads over a latent of 16 · no MTP · vocabulary 320"
    assert "3 layers (1 dense, 2 with experts)" in shape_sentence(PRESETS["tiny"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (counted(0), "0"),
        (counted(999), "999"),
        (counted(999.7), "1.0k"),
        (counted(99_960), "100k"),
        (counted(12_345_678), "12.3M"),
        (counted(14.8e12), "14.8T"),
        (sized(0), "0 B"),
        (sized(1023), "1,023 B"),
        (sized(1024), "1.0 KiB"),
        (sized(70_272), "68.6 KiB"),
        (sized(5 << 40), "5.0 TiB"),
        (share(0.7142), "71.4%"),
        (share(25.3), "2,530%"),
        (duration(0.04), "0.0 s"),
        (duration(59.96), "1 min 00 s"),
        (duration(3599.6), "1 h 00 min"),
        (duration(200_000), "2 d 7 h"),
    ],
)
def test_numbers_in_words(words: str, expected: str) -> None:
    assert words == expected
