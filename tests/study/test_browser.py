"""The report in a real browser: it draws, answers pointer and keyboard, asks nothing of the network, fits a phone."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cueva.study import write_report
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


def test_pointing_at_a_chart_shows_its_numbers_and_the_same_place_in_all(visit: Visit) -> None:
    assert visit.page.locator(".tip:visible").count() == 0
    visit.hover(".plot", 0.6, 0.5)
    assert visit.page.locator(".tip:visible").count() == 1
    tip = visit.text(".tip:visible")
    assert re.search(r"^step \d+$", tip, re.M)
    assert re.search(r"held-out\s+\d\.\d{3}\s+at step \d+", tip)
    assert re.search(r"smoothed\s+\d\.\d{3}", tip)
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


def test_the_heat_map_reads_a_cell_and_raises_the_bias_of_its_expert(visit: Visit) -> None:
    said = visit.page.locator(".gate .said").first
    assert re.match(r"at the end: busiest expert \d+, 1\.\d\d× the mean; idlest \d+, 0\.\d\d×", said.inner_text())
    visit.hover(".heat", 0.5, 0.5)
    assert re.match(r"step \d+ · expert \d+: \d\.\d\d× the mean \(\d+\.\d%\) · bias -?\d", said.inner_text())
    assert visit.page.locator(".marker:visible").count() == 1
    length = visit.page.locator(".bias.chosen").first.evaluate("path => path.getTotalLength()")
    assert length > 100
    visit.hover(".paths", 0.5, 0.3)
    assert re.match(r"step \d+ · expert \d+", said.inner_text())
    visit.page.locator(".heat").first.focus()
    visit.page.keyboard.press("ArrowLeft")
    first = said.inner_text()
    visit.page.keyboard.press("ArrowDown")
    assert said.inner_text() != first


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
    assert re.search(r"id\s+[\d,]+", card)
    assert re.search(r"probability\s+\d", card)
    assert "MTP draft 2, accepted" in card
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
