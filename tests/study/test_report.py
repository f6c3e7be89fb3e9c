"""The page as a file: self-contained, safe whatever a run wrote, small, and readable without scripts."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cueva.errors import RunError
from cueva.study import write_report
from cueva.study.records import RunRecords, read_records
from cueva.study.report import SCRIPTS, embedded, status, trace_data
from tests.study.synthetic import HOSTILE, make_run, make_trace_of


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, the text of scripts, and all visible text."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_lies_in_the_run_and_names_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "night shift", steps=60, sample_every=20)
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    assert "night shift" in page.text
    assert "Finished: 60 steps in 25.2 s." in page.text
    assert len(page.data["series"]["loss"]["mean"]) == 60
    assert [sample["step"] for sample in page.data["samples"]] == [20, 40, 60]


def test_nothing_is_asked_of_the_network(tmp_path: Path) -> None:
    """The content policy forbids it; and no element and no style would."""
    page = Page(write_report(make_run(tmp_path / "run", steps=20), trace=make_trace_of()))
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    for tag, attributes in page.elements:
        assert tag not in {"iframe", "object", "embed", "form", "base", "img"}
        assert "src" not in attributes
        assert "style" not in attributes, "the policy forbids style attributes"
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")


def test_the_policy_admits_exactly_this_script_and_this_style(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "run", steps=5))
    text = path.read_text(encoding="utf-8")
    script = text.rsplit("<script>", 1)[1].split("</script>")[0]
    style = text.split("<style>", 1)[1].split("</style>")[0]
    for part in (script, style):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in text


def test_what_a_model_or_a_person_wrote_cannot_leave_its_place(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<img onerror=x>", steps=20, sample_every=10, sample_text=HOSTILE)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": "event", "step": 20, "text": HOSTILE}) + "\n")
    (run / "config.toml").write_text(f"# {HOSTILE.replace(chr(0xD800), '')}", encoding="utf-8")
    page = Page(write_report(run, trace=make_trace_of(HOSTILE)))
    assert len(page.scripts) == 2, "the data and the script, nothing else"
    assert page.data["samples"][0]["items"][0]["text"] == HOSTILE
    assert "".join(token["text"] for token in page.data["trace"]["tokens"]) == HOSTILE
    assert page.all("img") == []
    assert page.all("b") == []
    assert page.text.count("window.broken = 1") == 2, "once as an event, once in the settings: as text"


def test_embedded_json_holds_no_character_that_html_reads() -> None:
    value = {"</script><!--": [HOSTILE, "\u2028", "é", None, 1.5]}
    text = embedded(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")
    assert text.isascii()
    with pytest.raises(ValueError, match="Out of range float"):
        embedded([float("nan")])


def test_assets_do_not_close_their_own_element() -> None:
    from importlib import resources

    folder = resources.files("cueva.study") / "web"
    for name in SCRIPTS:
        text = (folder / name).read_text(encoding="utf-8")
        assert "</script" not in text.lower()
        assert "<!--" not in text
    assert "</style" not in (folder / "report.css").read_text(encoding="utf-8").lower()


def test_figures_and_measurements_are_readable_without_scripts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=100, eval_every=50)
    page = Page(write_report(run))
    last = read_records(run).evals[-1]
    for shown in (f"{last['bits_per_byte']:.3f}", f"{last['bits_per_byte']:.4f}", "bits per byte", "MaxVio", "10.6M"):
        assert shown in page.text
    assert len(page.all("noscript")) == 1
    assert "scripts are switched off" in page.text
    assert {"open": None} in page.all("details")


@pytest.mark.parametrize(
    ("changes", "key", "sentence"),
    [
        ({"depths": 0, "gates": 4}, "mtp", "no MTP modules"),
        ({"gates": 0, "depths": 0}, "loads", "no expert layers"),
        ({"gates": 0, "depths": 0}, "max_vio", "no expert layers"),
        ({"load_every": 0}, "loads", "not logged yet"),
        ({"sample_every": 0}, "samples", "has not written a sample"),
        ({"steps": 0, "model": False}, "steps", "No training step is logged yet"),
    ],
)
def test_a_missing_kind_is_a_sentence_and_never_an_error(
    tmp_path: Path, changes: dict[str, Any], key: str, sentence: str
) -> None:
    page = Page(write_report(make_run(tmp_path / "run", **({"steps": 30} | changes))))
    assert sentence in page.data["absent"][key]


def test_a_run_without_held_out_measurements_says_so(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run", steps=30, eval_every=0)))
    assert "Nothing was measured on held-out text yet." in page.text
    assert page.data["evals"]["step"] == []


def test_a_bare_folder_gives_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path))
    assert "No training step is logged yet." in page.text
    assert "The shape of the model is not known yet." in page.text


def test_a_run_in_flight_can_be_reported_again_and_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=40, planned=400)
    first = write_report(run).read_text(encoding="utf-8")
    assert "40 steps in 16.8 s, 10.0% of 400 steps; still going, or stopped early." in first
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "step", "step": 41, "tokens": 83968, "seconds": 17.22, "loss"')
    assert Page(write_report(run)).data["series"]["step"][-1] == 40
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [], "no temporary file is left"


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"steps": 50}, "50 steps in 1 min 40 s: finished"),
        ({"steps": 200}, "50 steps in 1 min 40 s, 25.0% of 200 steps; still going, or stopped early."),
        ({"minutes": 4.0}, "50 steps in 1 min 40 s, 41.7% of 4 min 00 s; still going, or stopped early."),
        (
            {"steps": 100, "minutes": 2.0},
            "50 steps in 1 min 40 s, 83.3% of 100 steps or 2 min 00 s; still going, or stopped early.",
        ),
        ({}, "50 steps in 1 min 40 s so far."),
        (None, "50 steps in 1 min 40 s so far."),
    ],
)
def test_the_status_knows_how_far_a_run_is(run: Any, expected: str) -> None:
    records = RunRecords(steps=[{"step": 50, "seconds": 100.0}])
    if expected.endswith("finished"):
        expected = "Finished: 50 steps in 1 min 40 s."
    assert status(records, {"run": run}) == expected


def test_a_run_of_a_hundred_thousand_steps_stays_below_three_megabytes(tmp_path: Path) -> None:
    short = make_run(tmp_path / "short", steps=500, depths=2, gates=6, eval_every=20, sample_every=10)
    lines = (short / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    parts = [re.split(r'(?<="step":)(\d+)', line, maxsplit=1) for line in lines]
    long = tmp_path / "long"
    long.mkdir()
    with (long / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for again in range(200):
            file.writelines(f"{head}{int(step) + 500 * again}{tail}" for head, step, tail in parts)
    path = write_report(long, trace=make_trace_of("word " * 2000))
    assert path.stat().st_size < 3_000_000
    data = Page(path).data
    assert data["series"]["step"][-1] == 100_000
    assert sum(data["series"]["steps"]) == 100_000


def test_sixty_gates_of_many_experts_stay_below_three_megabytes(tmp_path: Path) -> None:
    trace = make_trace_of("word " * 300, gates=60, experts=256, chosen=8)
    run = make_run(tmp_path / "run", steps=100, gates=60, experts=256, depths=2)
    path = write_report(run, trace=trace)
    assert path.stat().st_size < 3_000_000
    assert Page(path).data["trace"]["cut"] is True


def test_a_page_may_lie_elsewhere_but_not_in_place_of_a_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3)
    assert write_report(run, out=tmp_path / "pages" / "a.html").is_file()
    with pytest.raises(RunError, match=r"the report is one file, but .* is a folder") as caught:
        write_report(run, out=tmp_path)
    assert caught.value.way_out == f"try {tmp_path / 'report.html'}"
    with pytest.raises(RunError, match=r"there is no run directory"):
        write_report(tmp_path / "nowhere")


def test_the_embedded_trace_says_what_the_trace_says() -> None:
    import numpy as np

    trace = make_trace_of(gates=3, experts=8, chosen=2)
    data = trace_data(trace)
    shape = (3, len(trace.tokens), data["slots"])
    expert = np.frombuffer(base64.b64decode(data["expert"]), "<u2").reshape(shape)
    weight = np.frombuffer(base64.b64decode(data["weight"]), "<u2").reshape(shape) * data["unit"]
    for gate, rows in enumerate(trace.experts):
        for position, choice in enumerate(rows):
            assert tuple(expert[gate, position][: len(choice)]) == choice
            assert (expert[gate, position][len(choice) :] == 65535).all()
            np.testing.assert_allclose(weight[gate, position][: len(choice)], trace.weights[gate][position], atol=1e-4)


def test_a_trace_of_a_dense_model_has_no_gates() -> None:
    data = trace_data(make_trace_of(gates=0))
    assert (data["gates"], data["slots"], data["expert"]) == ([], 0, "")
