"""The colours of the report, measured: contrast on both grounds, and distances for colour-blind readers."""

import itertools
import re
from importlib import resources

import numpy as np
import pytest
from numpy.typing import NDArray

Colour = NDArray[np.float64]

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
SERIES = ["--c1", "--c2", "--c3", "--c4", "--c5"]


def variables() -> dict[str, dict[str, str]]:
    css = (resources.files("cueva.study") / "web" / "report.css").read_text(encoding="utf-8")
    light, dark = css.split("@media screen and (prefers-color-scheme: dark)")
    found = {}
    for name, text in (("light", light), ("dark", dark[: dark.index("* {")])):
        found[name] = dict(re.findall(r"(--[\w-]+): ([^;]+);", text))
    found["dark"] = found["light"] | found["dark"]
    return found


def linear(text: str) -> Colour:
    if text.startswith("#"):
        parts = [int(text[start : start + 2], 16) for start in (1, 3, 5)]
    else:
        parts = [int(part) for part in text.split()]
    value = np.array(parts) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: Colour, other: Colour) -> float:
    """The ratio of WCAG 2."""
    a, b = sorted(float(colour @ [0.2126, 0.7152, 0.0722]) + 0.05 for colour in (one, other))
    return b / a


def lab(colour: Colour) -> Colour:
    """OKLab times 100, in which a distance of 2 is just noticeable."""
    to_cone = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_cone.append([0.0883024619, 0.2817188376, 0.6299787005])
    cone = np.cbrt(np.clip(np.array(to_cone) @ np.clip(colour, 0, 1), 0, None))
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    to_lab.append([0.0259040371, 0.7827717662, -0.8086757660])
    return 100 * (np.array(to_lab) @ cone)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_stand_out_from_their_ground(theme: str) -> None:
    colours = variables()[theme]
    surface, ground = linear(colours["--surface"]), linear(colours["--ground"])
    for name in ("--ink", "--muted"):
        assert contrast(linear(colours[name]), surface) >= 4.5, name
        assert contrast(linear(colours[name]), ground) >= 4.5, name
    for name in [*SERIES, "--ramp-0", "--ramp-1", "--ramp-2", "--ramp-3", "--accent"]:
        assert contrast(linear(colours[name]), surface) >= 3, name


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("eyes", ["all", *BLINDNESS])
def test_curves_that_share_a_chart_differ_for_every_eye(theme: str, eyes: str) -> None:
    """Training and held-out (c1, c2) always share one; depths 1 to 4 (c1, c3, c4, c5) may."""
    colours = variables()[theme]
    see = np.eye(3) if eyes == "all" else np.array(BLINDNESS[eyes])
    seen = {name: lab(see @ linear(colours[name])) for name in SERIES}
    pairs = [("--c1", "--c2"), *itertools.combinations(["--c1", "--c3", "--c4", "--c5"], 2)]
    for one, other in pairs:
        distance = float(np.linalg.norm(seen[one] - seen[other]))
        assert distance >= 11, f"{one} and {other} are {distance:.1f} apart"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("eyes", ["all", *BLINDNESS])
def test_the_two_ends_of_the_heat_map_differ_from_each_other_and_from_the_middle(theme: str, eyes: str) -> None:
    colours = variables()[theme]
    see = np.eye(3) if eyes == "all" else np.array(BLINDNESS[eyes])
    low, middle, high, none = (lab(see @ linear(colours[f"--heat-{name}"])) for name in (0, 2, 4, "none"))
    for one, other in itertools.combinations([low, middle, high], 2):
        assert np.linalg.norm(one - other) >= 12
    assert np.linalg.norm(low - none) >= 8
