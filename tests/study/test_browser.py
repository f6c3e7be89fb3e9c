"""The report in a real browser: it draws, answers pointer and keyboard, asks nothing of the network, fits a phone."""

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cueva.study import read_records, write_report
from tests.study.synthetic import HOSTILE, make_run, make_trace_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is absent: pip install 'cueva[dev]'")
    with playwright.sync_playwright() as player:
        started = player.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "evening"
    make_run(run, steps=160, depths=2, gates=6, load_every=4, eval_every=20, sample_every=40)
    return write_report(run, trace=make_trace_of(gates=6))


class Visit:
    """One browser page that is shown one file after another, and remembers what went wrong on each."""

    def __init__(self, browser: Any, **settings: Any):
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light") -> "Visit":
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.mouse.move(0, 0)
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(media="screen", color_scheme=scheme)
        self.page.goto(path.as_uri())
        self.page.wait_for_timeout(50)  # the charts draw in the next frame
        return self

    def hover(self, selector: str, across: float, down: float, which: int = 0) -> None:
        place = self.page.locator(selector).nth(which)
        place.scroll_into_view_if_needed()
        box = place.bounding_box()
        self.page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)

    def text(self, selector: str, which: int = 0) -> str:
        return self.page.locator(selector).nth(which).inner_text()


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Visit]:
    shared = Visit(browser)
    yield shared
    shared.context.close()


@pytest.fixture
def visit(page: Visit, report: Path) -> Visit:
    return page.open(report)


def test_the_page_is_quiet_and_asks_nothing_of_the_network(visit: Visit, report: Path) -> None:
    visit.page.mouse.wheel(0, 20_000)
    visit.page.wait_for_timeout(100)
    assert visit.complaints == []
    assert [url for url in visit.requests if url != report.as_uri() and not url.startswith("data:")] == []


def test_every_chart_has_curves_that_can_be_seen(visit: Visit) -> None:
    charts = visit.page.locator(".chart")
    assert charts.count() == 12
    for index in range(charts.count()):
        strokes = charts.nth(index).locator(".curve .stroke")
        assert strokes.count() > 0, charts.nth(index).inner_text()
        for stroke in range(strokes.count()):
            box = strokes.nth(stroke).evaluate(
                "path => { const b = path.getBBox(); return [b.width, path.getTotalLength()] }"
            )
            assert box[0] > 100, "a curve runs across its chart"
            assert box[1] > 100
    assert "NaN" not in visit.page.locator("main").inner_html()
    assert "undefined" not in visit.page.locator("main").inner_text()


def test_only_the_beginning_of_a_curve_may_stick_out_and_no_measurement(visit: Visit) -> None:
    """Curves may leave the frame at the left end; held-out dots never do."""
    script = """() => [...document.querySelectorAll('.plot > svg')].flatMap(svg => {
        const bottom = svg.viewBox.baseVal.height;
        return [...svg.querySelectorAll('.curve.dots circle')].map(dot => dot.cy.baseVal.value)
            .filter(y => y < 5 || y > bottom - 20);
    })"""
    assert visit.page.locator(".curve.dots circle").count() > 30
    assert visit.page.evaluate(script) == []
    shown = visit.page.locator(".beyond").all_text_contents()
    assert any(re.fullmatch(r"▲ up to \d\.\d{3}", text) for text in shown), "the fall of the loss"


def test_pointing_at_a_chart_shows_its_numbers_and_the_same_place_in_all(visit: Visit, report: Path) -> None:
    assert visit.page.locator(".tip:visible").count() == 0
    visit.hover(".plot", 0.6, 0.5)
    assert visit.page.locator(".tip:visible").count() == 1
    tip = visit.text(".tip:visible")
    records = read_records(report.parent)
    step = re.search(r"^step (\d+)$", tip, re.M)
    told = re.search(
        r"training each step\s+([\d.]+)\s+training smoothed\s+[\d.]+\s+held-out\s+([\d.]+)\s+at step (\d+)", tip
    )
    assert step is not None
    assert told is not None
    assert float(told[1]) == pytest.approx(records.steps[int(step[1]) - 1]["loss"], abs=6e-4)
    latest = [record for record in records.evals if record["step"] <= int(step[1])][-1]
    assert (float(told[2]), int(told[3])) == (pytest.approx(latest["loss"], abs=6e-4), latest["step"])
    assert visit.page.locator(".cross line").count() == 12
    visit.page.mouse.move(0, 0)
    assert visit.page.locator(".tip:visible").count() == 0


def test_a_chart_can_be_read_and_enlarged_from_the_keyboard(visit: Visit) -> None:
    plot = visit.page.locator(".plot").first
    plot.focus()
    visit.page.keyboard.press("Home")
    assert plot.get_attribute("aria-valuetext").startswith("step 1: training each step ")
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("ArrowRight")
    assert plot.get_attribute("aria-valuetext").startswith("step 3: ")
    assert "step 3" in visit.text(".tip:visible")
    reset = visit.page.get_by_role("button", name="show all")
    assert reset.is_disabled()
    visit.page.keyboard.press("End")
    visit.page.keyboard.press("+")
    assert reset.is_enabled()
    visit.page.keyboard.press("Escape")
    visit.page.keyboard.press("Escape")
    assert reset.is_disabled()


def test_dragging_enlarges_and_a_double_click_shows_everything_again(visit: Visit) -> None:
    before = visit.page.locator(".plot").nth(1).inner_text()
    visit.hover(".plot", 0.4, 0.5)
    visit.page.mouse.down()
    visit.hover(".plot", 0.6, 0.5)
    assert visit.page.locator(".choice").count() == 1
    visit.page.mouse.up()
    assert visit.page.locator(".plot").nth(1).inner_text() != before, "the other charts follow"
    visit.page.locator(".plot").first.dblclick()
    assert visit.page.locator(".plot").nth(1).inner_text() == before


def test_keys_of_a_chart_switch_curves_off_and_on(visit: Visit) -> None:
    chart = visit.page.locator(".chart").first
    key = chart.get_by_role("button", name="held-out")
    assert chart.locator(".curve").count() == 3
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    assert chart.locator(".curve").count() == 2
    key.click()
    assert chart.locator(".curve").count() == 3


def test_the_axis_can_be_steps_tokens_or_time_and_logarithmic(visit: Visit) -> None:
    seen = set()
    for name in ("tokens", "time", "step"):
        visit.page.get_by_role("button", name=name, exact=True).click()
        for _ in range(2):
            visit.page.get_by_role("button", name="log axis").click()
            seen.add(visit.text(".plot"))
    visit.page.locator(".chart").first.get_by_role("button", name="log scale").click()
    seen.add(visit.text(".plot"))
    assert len(seen) == 7, "every setting draws another axis"
    assert visit.complaints == []


def cell(said: str) -> tuple[int, int, float, float, float]:
    """Step, expert, load over mean, share and bias that a card says."""
    words = r"step ([\d,]+) · expert (\d+): ([\d.]+)× the mean \(([\d.]+)%\) · bias (-?[\d.e-]+)"
    found = re.fullmatch(words, said)
    assert found is not None, said
    step, expert, times, share, bias = found.groups()
    return int(step.replace(",", "")), int(expert), float(times), float(share), float(bias)


def test_the_heat_map_and_the_bias_paths_read_what_the_run_logged(visit: Visit, report: Path) -> None:
    loads = {record["step"]: record for record in read_records(report.parent).loads}
    said = visit.page.locator(".gate .said")
    last = loads[160]["load"][0]
    busiest, idlest = last.index(max(last)), last.index(min(last))
    assert said.first.inner_text() == (
        f"at the end: busiest expert {busiest}, {max(last) / 512:.2f}× the mean; "
        f"idlest {idlest}, {min(last) / 512:.2f}×"
    )
    read = set()
    for gate in (0, 4):
        for selector in (".heat", ".paths"):
            for across, down in ((0.3, 0.2), (0.8, 0.55)):
                visit.hover(selector, across, down, which=gate)
                step, expert, times, share, bias = cell(said.nth(gate).inner_text())
                load = loads[step]["load"][gate]
                assert times == pytest.approx(load[expert] / (sum(load) / len(load)), abs=0.006)
                assert share == pytest.approx(100 * load[expert] / sum(load), abs=0.06)
                assert bias == pytest.approx(loads[step]["bias"][gate][expert], abs=6e-4)
                read.add((gate, selector, step, expert))
    assert len(read) == 8, "another place is another cell"
    assert visit.page.locator(".marker:visible").count() == 1
    assert visit.page.locator(".bias.chosen").nth(4).evaluate("path => path.getTotalLength()") > 100


def test_the_bias_path_under_the_pointer_is_the_one_that_is_raised(visit: Visit, report: Path) -> None:
    """High in the chart lies the largest bias of that time, low the smallest."""
    loads = {record["step"]: record for record in read_records(report.parent).loads}
    for down, extreme in ((0.05, max), (0.8, min)):
        visit.hover(".paths", 0.7, down)
        step, expert, *_ = cell(visit.text(".gate .said"))
        row = loads[step]["bias"][0]
        assert row[expert] == extreme(row)


def test_the_heat_map_can_be_walked_with_arrow_keys(visit: Visit) -> None:
    visit.page.locator(".heat").first.focus()
    places = []
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown", "ArrowUp", "ArrowUp", "ArrowRight"):
        visit.page.keyboard.press(key)
        places.append(cell(visit.text(".gate .said"))[:2])
    assert places == [(160, 0), (156, 0), (156, 1), (156, 0), (156, 0), (160, 0)]


def test_the_heat_map_is_painted(visit: Visit) -> None:
    script = """canvas => {
        const data = canvas.getContext('2d').getImageData(60, 20, canvas.width - 80, canvas.height - 40).data;
        const seen = new Set();
        for (let i = 0; i < data.length; i += 4) seen.add(data.slice(i, i + 4).join());
        return seen.size;
    }"""
    canvases = visit.page.locator(".heat canvas")
    assert canvases.count() == 6
    assert all(canvases.nth(index).evaluate(script) > 20 for index in range(6))


def test_the_flip_book_turns_its_pages(visit: Visit) -> None:
    visit.page.locator("#samples").scroll_into_view_if_needed()
    last = visit.text(".page")
    assert "step 160" in visit.text(".flip output")
    assert "held-out bits per byte" in visit.text(".flip output")
    visit.page.get_by_role("button", name="Earlier").click()
    assert "step 120" in visit.text(".flip output")
    visit.page.get_by_role("slider", name="Step", exact=True).fill("0")
    assert "step 40" in visit.text(".flip output")
    assert visit.text(".page") != last
    visit.page.get_by_role("button", name="Play").click()
    visit.page.wait_for_timeout(1200)
    visit.page.get_by_role("button", name="Stop").click()
    assert "step 80" in visit.text(".flip output")


def test_a_token_says_where_it_comes_from_and_where_it_went(visit: Visit) -> None:
    assert visit.page.locator(".token.depth-1").count() > 5
    assert visit.page.locator(".token.depth-2").count() > 5
    visit.page.locator(".token.depth-2").first.hover()
    card = visit.text(".card")
    trace = make_trace_of(gates=6)
    place = next(index for index, token in enumerate(trace.tokens) if token.drafted == 2)
    token = trace.tokens[place]
    assert token.logprob is not None
    assert re.search(rf"id\s+{token.id:,}\s", card)
    assert re.search(rf"probability\s+{100 * math.exp(token.logprob):.1f}%", card)
    assert "MTP draft 2, accepted" in card
    choices = sorted(zip(trace.weights[1][place], trace.experts[1][place], strict=True), reverse=True)
    assert " ".join(f"{expert} {weight:.2f}" for weight, expert in choices) in " ".join(
        card.split("layer 2")[1].split()
    )
    assert visit.page.locator(".experts tr").count() == 6
    assert re.search(r"layer 1\s+\d+ \d\.\d\d", card)
    visit.page.locator(".tokens").focus()
    visit.page.keyboard.press("Home")
    card = visit.text(".card")
    assert "the prompt" in card
    assert "no token before it" in card
    assert "not seen here" in card, "the MTP module never sees the first token"


def test_one_expert_can_be_followed_through_the_text(visit: Visit) -> None:
    visit.page.locator(".token").nth(30).hover()
    visit.page.locator(".chip").first.click()
    chosen = re.search(r"layer 1, expert (\d+): (\d+) tokens", visit.text(".trace-key"))
    assert chosen is not None
    lit = visit.page.locator(".token.tinted").evaluate_all(
        "spans => spans.filter(span => span.style.getPropertyValue('--part') !== '0%').length"
    )
    assert 0 < lit <= int(chosen[2])
    visit.page.get_by_role("button", name="probability").click()
    assert visit.page.locator(".token.tinted").count() > 30


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 768])
def test_the_page_fits_narrow_screens_in_light_and_dark(page: Visit, report: Path, scheme: str, width: int) -> None:
    visit = page.open(report, width=width, height=640, scheme=scheme)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    wide = """() => [...document.querySelectorAll('main *, header *')].filter(node => {
        const box = node.getBoundingClientRect();
        return box.width && box.right > innerWidth + 1 && !node.closest('.scroll, pre, .tokens, clipPath, .curve');
    }).map(node => node.outerHTML.slice(0, 80))"""
    assert visit.page.evaluate(wide) == []
    ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3]))
    assert (brightness < 150) is (scheme == "dark")
    visit.page.locator(".token").nth(40).click()
    assert visit.page.locator(".card").is_visible()
    assert visit.complaints == []


@pytest.mark.parametrize("width", [320, 900, 1280])
def test_labels_of_the_axes_do_not_overlap(page: Visit, report: Path, width: int) -> None:
    script = """() => {
        const clash = [];
        for (const svg of document.querySelectorAll('.plot > svg, .paths > svg')) {
            const texts = [...svg.querySelectorAll('text:not(.name)')];
            const boxes = texts.map(text => text.getBoundingClientRect());
            for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
                const [a, b] = [boxes[i], boxes[j]];
                const apart = a.right <= b.left || b.right <= a.left || a.bottom <= b.top + 2 || b.bottom <= a.top + 2;
                if (!apart) clash.push([texts[i].textContent, texts[j].textContent]);
            }
        }
        return clash;
    }"""
    visit = page.open(report, width=width)
    for axis in ("step", "tokens", "time"):
        visit.page.get_by_role("button", name=axis, exact=True).click()
        for _ in range(2):
            visit.page.get_by_role("button", name="log axis").click()
            assert visit.page.evaluate(script) == [], axis


def test_hostile_text_stays_text(page: Visit, tmp_path: Path) -> None:
    run = make_run(tmp_path / "<script>window.broken = 1<∕script>", steps=20, sample_every=10, sample_text=HOSTILE)
    visit = page.open(write_report(run, trace=make_trace_of(HOSTILE)))
    assert visit.page.evaluate("window.broken") is None
    assert visit.complaints == []
    assert "window.broken = 1" in visit.text(".page")
    assert "window.broken = 1" in visit.text(".tokens").replace("\n", "")
    assert visit.text("h1") == run.name


@pytest.mark.parametrize(
    "changes",
    [
        {"gates": 0, "depths": 0},
        {"steps": 0, "model": False},
        {"steps": 1},
        {"eval_every": 0, "sample_every": 0, "load_every": 0},
        {"steps": 1000, "gates": 14, "experts": 4, "depths": 3},
    ],
    ids=["dense", "new", "one step", "steps only", "many gates"],
)
def test_any_run_gives_a_quiet_page_whose_missing_charts_say_why(
    page: Visit, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = make_run(tmp_path / "run", **({"steps": 60} | changes))
    visit = page.open(write_report(run))
    assert visit.complaints == []
    bare = """() => [...document.querySelectorAll('.chart')].filter(chart =>
        !chart.querySelector('.plot svg') && !(chart.querySelector('.empty')?.textContent.length > 20)).length"""
    assert visit.page.evaluate(bare) == 0
    for place in ("#loads", "#flipbook", "#tokens"):
        assert len(visit.text(place)) > 20
    pages = visit.page.get_by_role("group", name="Which gates")
    if changes.get("gates") != 14:
        assert pages.count() == 0
        return
    assert visit.page.locator(".gate").count() == 12
    pages.get_by_role("button").nth(1).click()
    assert visit.page.locator(".gate").count() == 2
    visit.hover(".plot", 0.5, 0.5, which=4)
    assert "and 8 gates below" in visit.text(".tip:visible")
    assert "(a mean of " in visit.text(".tip:visible")


def test_without_scripts_the_figures_and_the_measurements_are_there(browser: Any, report: Path) -> None:
    visit = Visit(browser, java_script_enabled=False).open(report)
    assert visit.page.locator(".figure .value").count() == 8
    assert visit.page.locator("table.data").first.is_visible()
    assert visit.page.locator("noscript").first.is_visible()
    visit.context.close()


def test_printing_is_light_and_leaves_the_controls_out(page: Visit, report: Path) -> None:
    visit = page.open(report, scheme="dark")
    visit.page.emulate_media(media="print")
    assert not visit.page.locator(".bar").is_visible()
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert visit.page.locator(".curve .stroke").first.is_visible()
