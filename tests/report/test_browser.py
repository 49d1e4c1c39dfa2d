"""The page in a real browser, opened from disk: no errors, and everything that can be pressed does what it says."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from grokscape.report import write_comparison, write_report
from grokscape.store import RunFolder

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Opens a file with the network cut off; the test fails on any console error or request to the outside."""
    opened, errors = [], []

    def open_file(path: Path, *, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        page = context.new_page()
        page.set_default_timeout(120_000)  # a busy machine takes its time
        page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on(
            "request", lambda r: errors.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None
        )
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        opened.append(context)
        return page

    yield open_file
    for context in opened:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def report(finished: RunFolder) -> Path:
    """The report of the finished run."""
    return write_report(finished)


DRAWN = "elements => elements.filter(e => !e.closest('[hidden]')).map(e => Boolean(e.querySelector('.main-svg')))"


def scroll_through(page: Any) -> None:
    """Bring every part into the window once."""
    height = page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 800):
        page.evaluate(f"window.scrollTo({{top: {top}, behavior: 'instant'}})")
        page.wait_for_timeout(60)


def test_every_figure_is_drawn(visit: Any, report: Path) -> None:
    page = visit(report)
    scroll_through(page)
    plots = page.eval_on_selector_all(".plate, .trajectory", DRAWN)
    assert len(plots) >= 8
    assert all(plots)


WIDTHS = "elements => elements.map(e => e.querySelector('.main-svg').getBoundingClientRect().width)"


def test_paper_shows_every_figure_in_light_colours_and_as_wide_as_a_page(visit: Any, report: Path) -> None:
    page = visit(report, scheme="dark")
    before = page.eval_on_selector_all(".plate", "elements => elements[0].clientWidth")
    assert not all(page.eval_on_selector_all(".plate, .trajectory", DRAWN))
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert all(page.eval_on_selector_all(".plate, .trajectory", DRAWN)), "drawn before the printer looks"
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert max(page.eval_on_selector_all(".plate", WIDTHS)) <= 44 * 16
    table = page.locator("#outcomes table").evaluate("e => e.getBoundingClientRect().width")
    assert table <= 45 * 16
    assert page.locator("#dose-response .arms").first.is_visible(), "colours need their legend"
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.eval_on_selector_all(".plate", WIDTHS)[0] == pytest.approx(before, abs=1)


def test_hovering_one_panel_reads_all(visit: Any, report: Path) -> None:
    page = visit(report)
    panel = page.locator("#panel-accuracy .trajectory")
    panel.scroll_into_view_if_needed()
    page.wait_for_selector("#panel-accuracy .nsewdrag")
    before = page.locator("#panel-cdnv .values td").all_inner_texts()
    box = panel.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.wait_for_function("document.getElementById('cursor-step').textContent !== 'step 1500'")
    step = int(page.locator("#cursor-step").inner_text().split()[1])
    assert 30 < step < 800
    assert page.locator("#panel-cdnv .values td").all_inner_texts() != before
    assert page.locator("#panel-accuracy .cursor").is_visible()


def test_the_slider_moves_by_keyboard_and_reads_the_data(visit: Any, report: Path, finished: RunFolder) -> None:
    page = visit(report)
    page.locator("#cursor").focus()
    page.keyboard.press("Home")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.locator("#cursor-step").inner_text() == "step 50"
    frame = finished.trajectory().filter(arm="baseline", step=50)

    def shown(measure: str) -> float:
        cell = page.locator(f"#panel-{measure} .values tr", has_text="Baseline").locator("td").inner_text()
        return float(cell.removesuffix(" %"))

    for split in ("train", "test"):  # measures are what arms hold, those of training samples, until others are chosen
        if split != "train":
            page.locator(f"input[data-choice=split][value={split}]").dispatch_event("click")
        assert shown("relative_flatness") == pytest.approx(frame[f"{split}/relative_flatness"].median(), rel=6e-3)
        assert shown("accuracy") == pytest.approx(100 * frame["test/accuracy"].median(), abs=0.006)


def test_an_arm_can_be_hidden_everywhere(visit: Any, report: Path) -> None:
    page = visit(report)
    scroll_through(page)
    visible = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(e => e.data)
        .filter(t => t.meta && t.meta.arm === 'kappa30' && t.visible !== false).length"""
    assert page.evaluate(visible) > 10
    page.locator("#trajectories .arm-toggle", has_text="κ held ≥ 30").press("Enter")
    assert page.evaluate(visible) == 0
    assert page.locator("#survival .arm-toggle", has_text="κ held ≥ 30").get_attribute("aria-pressed") == "false"
    page.locator("#trajectories .arm-toggle", has_text="κ held ≥ 30").click()
    assert page.evaluate(visible) > 10


def test_axes_switch_between_linear_and_log_and_zoom_together(visit: Any, report: Path) -> None:
    page = visit(report)
    page.locator("#trajectories").scroll_into_view_if_needed()
    page.wait_for_selector("#panel-cdnv .main-svg", state="attached")
    kind = "axis => document.querySelector('#panel-cdnv .trajectory').layout[axis].type"
    assert page.evaluate(kind, "xaxis") == "log"
    page.locator("input[data-choice=x][value=linear]").check(force=True)
    assert page.evaluate(kind, "xaxis") == "linear"
    page.locator("input[data-choice=y][value=log]").check(force=True)
    assert page.evaluate(kind, "yaxis") == "log"
    page.evaluate("Plotly.relayout(document.querySelector('#panel-loss .trajectory'), {'xaxis.range': [100, 400]})")
    page.wait_for_timeout(200)
    assert page.evaluate("document.querySelector('#panel-cdnv .trajectory').layout.xaxis.range") == [100, 400]


def test_the_theme_follows_the_system_and_can_be_switched(visit: Any, report: Path) -> None:
    page = visit(report, scheme="dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(20, 23, 28)"
    page.locator("#theme").press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    line = "document.querySelector('#hero .plate').data.filter(t => t.name === 'Baseline')[0].line.color"
    assert page.evaluate(line) == "#1c2127"


def test_the_table_of_replicas_sorts(visit: Any, report: Path) -> None:
    page = visit(report)
    heading = page.locator("#replicas th", has_text="Generalised at step")
    index = page.locator("#replicas th").all_inner_texts().index(heading.inner_text())
    values = f"rows => rows.map(r => r.children[{index}].dataset.value).filter(v => v !== '').map(Number)"
    for direction, sign in (("ascending", 1), ("descending", -1)):
        heading.locator("button").press("Enter")
        assert heading.get_attribute("aria-sort") == direction
        found = page.eval_on_selector_all("#replicas tbody tr", values)
        assert len(found) > 20
        assert found == sorted(found, key=lambda v, s=sign: s * v)


def test_a_link_to_a_folded_finding_unfolds_it(visit: Any, report: Path) -> None:
    page = visit(report)
    assert not page.locator("#finding-necessity-flatness").is_visible()
    page.locator(".card dt a").first.click()
    page.wait_for_timeout(100)
    assert page.locator("#finding-necessity-flatness").is_visible()


@pytest.mark.parametrize("width", [400, 570, 720, 1100, 1280])
def test_no_number_leaves_its_card(visit: Any, report: Path, width: int) -> None:
    page = visit(report, width=width)
    beyond = """cards => cards.map(c => Math.max(...[...c.querySelectorAll('dd, dd small')].map(
        e => e.getBoundingClientRect().right)) - c.getBoundingClientRect().right)"""
    assert max(page.eval_on_selector_all(".card", beyond)) <= 0


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(visit: Any, report: Path, width: int) -> None:
    page = visit(report, width=width)
    scroll_through(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = """() => [...document.querySelectorAll('main p, main td, main dd, main li')]
        .filter(e => e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 11).length"""
    assert page.evaluate(small) == 0


@pytest.mark.parametrize("width", [400, 1280])
def test_long_names_without_spaces_stay_in_their_place(visit: Any, make_run: Any, tmp_path: Path, width: int) -> None:
    from grokscape.analysis import analyze

    clamp = {"kind": "clamp", "measure": "cdnv", "at_least": 1.2}
    names = ["cdnv-held-by-the-surrogate-too", "CollapseHeldByTheSurrogate", "<b>&amp;</b><b>&amp;</b>", "x" * 80]
    arms = [{"name": name, "role": "manipulation", "interventions": [clamp]} for name in names]
    folder = make_run(tmp_path / "run", arms=[{"name": "baseline", "role": "baseline"}, *arms], seeds=2, every=50)
    analyze(folder)
    page = visit(write_report(folder), width=width)
    scroll_through(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = """elements => elements.map(e => e.scrollWidth - e.clientWidth)"""
    assert max(page.eval_on_selector_all(".card", beyond)) <= 0
    cut = """() => { const plate = document.querySelector('#hero .plate'), left = plate.getBoundingClientRect().left;
        return [...plate.querySelectorAll('.ytick text, .y2tick text')]
            .map(t => t.getBoundingClientRect().left - left); }"""
    assert min(page.evaluate(cut)) >= 0


def test_everything_has_a_name_for_those_who_do_not_see_it(visit: Any, report: Path) -> None:
    page = visit(report)
    unnamed = """() => [...document.querySelectorAll('button, input, [role=img], [role=region], nav, svg')]
        .filter(e => e.id !== 'js-plotly-tester')
        .filter(e => !e.closest('.js-plotly-plot') || e.matches('.js-plotly-plot'))
        .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-hidden') || e.textContent.trim()
            || (e.labels && e.labels.length))).map(e => e.outerHTML.slice(0, 120))"""
    assert page.evaluate(unnamed) == []
    order = page.eval_on_selector_all("h1, h2, h3, h4", "hs => hs.map(h => Number(h.tagName[1]))")
    assert order[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(order))


def test_text_stands_out_from_its_ground(visit: Any, report: Path) -> None:
    ratios = """() => { const lum = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
            return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
        const ground = e => { for (; e; e = e.parentElement) { const b = getComputedStyle(e).backgroundColor;
            if (!b.endsWith(', 0)')) return b; } return 'rgb(255,255,255)'; };
        return [...document.querySelectorAll('main :is(p, h1, h2, h3, h4, a, td, th, dt, dd, small, figcaption, span)')]
            .filter(e => e.offsetParent && e.textContent.trim()).map(e => { const a = lum(getComputedStyle(e).color);
                const b = lum(ground(e)); return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); }); }"""
    for scheme in ("light", "dark"):
        found = visit(report, scheme=scheme).evaluate(ratios)
        assert len(found) > 100
        assert min(found) >= 4.5


def test_an_arm_called_script_is_text(visit: Any, make_run: Any, tmp_path: Path) -> None:
    from grokscape.analysis import analyze

    evil = "<script>window.broken = 1</script><b>x</b>"
    arms = [
        {"name": "baseline", "role": "baseline", "interventions": []},
        {
            "name": evil,
            "title": evil,
            "role": "manipulation",
            "interventions": [{"kind": "clamp", "measure": "cdnv", "at_least": 1.2}],
        },
    ]
    folder = make_run(tmp_path / "run", arms=arms, seeds=5, every=50)
    analyze(folder)
    page = visit(write_report(folder))
    scroll_through(page)
    assert page.evaluate("window.broken") is None
    assert evil in page.locator("#outcomes tbody").inner_text()
    names = "".join(page.locator("#hero .ytick, #hero .y2tick").all_text_contents())
    assert evil.replace(" ", "") in names.replace(" ", "")  # a long name takes two lines
    page.locator("#trajectories .arm-toggle").nth(1).click()
    assert page.locator("#trajectories .arm-toggle").nth(1).get_attribute("aria-pressed") == "false"


def test_500_replicas_stay_responsive(visit: Any, make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", seeds=84, every=10)
    page = visit(write_report(folder))
    scroll_through(page)
    took = page.evaluate("""async () => { const start = performance.now();
        document.querySelector('#trajectories .arm-toggle').click();
        await new Promise(r => requestAnimationFrame(() => setTimeout(r))); return performance.now() - start; }""")
    assert took < 3000
    moved = page.evaluate("""() => { const s = document.getElementById('cursor'), start = performance.now();
        for (let i = 0; i < 20; i++) { s.value = i; s.dispatchEvent(new Event('input')); }
        return (performance.now() - start) / 20; }""")
    assert moved < 100


def test_an_unfinished_run_is_announced(visit: Any, make_run: Any, tmp_path: Path) -> None:
    page = visit(write_report(make_run(tmp_path / "run", state="running", reached=200, seeds=3)))
    assert "is still running: it reached step 200 of 1500" in page.locator(".notice").inner_text()
    scroll_through(page)
    assert page.locator(".missing").count() >= 3


def test_a_comparison_is_drawn_and_its_arms_can_be_hidden(
    visit: Any, finished: RunFolder, make_run: Any, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", seeds=2, every=50, steps=2000, name="other")
    page = visit(write_comparison([finished, other], tmp_path), width=400)
    scroll_through(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert all(page.eval_on_selector_all(".plate", "es => es.map(e => Boolean(e.querySelector('.main-svg')))"))
    shown = "document.querySelector('.plate').data.filter(t => t.meta?.arm === 'loss' && t.visible !== false).length"
    assert page.evaluate(shown) >= 2
    page.locator(".arm-toggle", has_text="Loss held").first.click()
    assert page.evaluate(shown) == 0
