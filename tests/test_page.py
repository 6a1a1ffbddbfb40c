"""The page of `run.py report` in a real browser (headless Chromium, driven by Playwright), on
made-up run folders; what needs no browser is in test_report.py.

`make test-page` sees to a Chromium; elsewhere these tests are skipped where there is none.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

from analysis import report

from .pages import EVIL, write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CONTRAST = """Math.min(...[...document.querySelectorAll('#panes .tok')].map(token => {
    const look = getComputedStyle(token), parts = text => text.match(/\\d+/g).map(Number);
    const bare = look.backgroundColor === 'rgba(0, 0, 0, 0)';
    const paper = getComputedStyle(bare ? document.body : token).backgroundColor;
    return contrast(parts(look.color), parts(paper)); }))"""
SELECTED = "document.querySelector('.tok.chosen')?.dataset.i"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        own = Path(started.chromium.executable_path)
        found = next(filter(None, map(shutil.which, BROWSERS)), str(own) if own.is_file() else None)
        if found is None:
            (pytest.fail if os.environ.get("PAGE_BROWSER") == "required" else pytest.skip)("no Chromium here")
        # Chromium's own sandbox refuses root, whom containers run as.
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def run_page(tmp_path_factory) -> Path:
    return report.write(write_run(tmp_path_factory.mktemp("page") / "cegppo" / "seed0"))


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sweep") / "made"
    for arm, method, loss in (("grpo", "grpo", {"name": "ppo_clip", "eps_low": 0.2, "eps_high": 0.2}),
                              ("low", "cegppo", {"name": "cegppo", "beta1": 1.0, "beta2": 0.0})):  # fmt: skip
        for seed in range(3):
            write_run(root / arm / f"seed{seed}", method=method, loss=loss, looked=2 if seed == 0 else 0)
    return report.write(root)


@pytest.fixture
def show(browser):
    """Opens a page; at the end of the test it must have said nothing on the console."""
    pages, said = [], []

    def opened(path: Path, **options):
        page = browser.new_page(**({"viewport": {"width": 1280, "height": 900}} | options))
        page.set_default_timeout(120_000)  # a machine may be busy
        pages.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield opened
    for page in pages:
        page.close()
    assert said == []


def numbers(page) -> dict[str, str]:
    """What the inspector says of the token in it."""
    return dict(
        zip(
            page.locator("#inspector dt").all_text_contents(),
            page.locator("#inspector dd").all_text_contents(),
        )
    )


def test_everything_is_there_and_the_cursor_is_shared(run_page, show):
    page = show(run_page)
    assert page.title() == "page0 / cegppo / seed0" or page.title().endswith("/ cegppo / seed0")
    assert "finished, 30 steps" in page.locator("#facts").inner_text()
    asked = page.locator("#asked").inner_text()
    assert "update.lr" in asked and "0.0002" in asked and "1e-06" in asked and "group_size" not in asked
    charts = page.locator(".chart")
    assert charts.count() >= 9
    page.evaluate("document.querySelector('#curves').scrollIntoView()")
    box = charts.nth(1).locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    said = [chart.locator(".readout span").first.inner_text() for chart in charts.all()]
    assert len(set(said)) == 1 and re.fullmatch(r"step\s+1[456]", said[0])


def test_curves_by_keyboard_smoothing_and_more(run_page, show):
    page = show(run_page)
    chart = page.locator(".chart").filter(has_text="Entropy before the updates")
    chart.locator("[tabindex]").focus()
    page.keyboard.press("End")
    value = chart.locator(".readout b").nth(1)
    smooth = value.inner_text()
    assert chart.locator(".readout b").first.inner_text() == "30"
    page.locator("#smoothing").fill("1")
    assert page.locator("#smoothing-said").inner_text() == "off"
    raw = value.inner_text()
    rows = [line.split('"entropy/mean": ')[1].split(",")[0] for line in (run_page.parent / "metrics.jsonl").open()]
    assert float(raw) == pytest.approx(float(rows[-1]), rel=1e-3)
    assert float(smooth) == pytest.approx(sum(map(float, rows[-5:])) / 5, rel=1e-3)
    page.select_option("#more", "updates")
    assert page.locator(".chart").filter(has_text="updates").count() >= 1
    page.select_option("#tabulate", label="Gradient norm before clipping")
    assert page.locator("#chart-table tbody tr").count() == 30
    page.locator(".notes .look, .notes .fine").locator("button").first.click()
    assert page.evaluate("document.activeElement.closest('.chart') !== null")


def test_choosing_in_the_text_marks_in_the_scatter_and_back(run_page, show):
    page = show(run_page)
    tokens = page.locator("#panes .pane").first.locator(".tok")
    assert tokens.count() == 9
    tokens.nth(2).click()
    found = numbers(page)
    assert set(found) >= {"probability", "ratio", "entropy", "class", "clip", "weight", "influence"}
    chosen = page.evaluate("SHOWN.microscope.state.chosen")
    assert chosen == int(page.evaluate(SELECTED))
    # And back: a click on the mark of a token that is not in the text takes its response there.
    known = [int(i) for i in page.locator("#panes .tok").evaluate_all("all => all.map(one => one.dataset.i)")]
    other = next(i for i in page.evaluate("SHOWN.microscope.stepTokens()") if i not in known)
    target = page.evaluate(f"SHOWN.microscope.place({other})")
    page.locator("#scatter .u-over").scroll_into_view_if_needed()
    box = page.locator("#scatter .u-over").bounding_box()
    page.mouse.click(box["x"] + target["left"], box["y"] + target["top"])
    chosen = page.evaluate("SHOWN.microscope.state.chosen")
    assert chosen not in known and chosen == int(page.evaluate(SELECTED))
    place = page.evaluate(f"SHOWN.microscope.place({chosen})")
    assert abs(place["left"] - target["left"]) < 2 and abs(place["top"] - target["top"]) < 2


def test_colours_say_what_was_recorded(run_page, show):
    page = show(run_page)
    seen = {}
    token = page.locator("#panes .tok").first
    options = page.locator("#colour option").evaluate_all("all => all.map(one => one.value)")
    assert options == ["entropy", "probability", "ratio", "class", "weight", "influence", "dentropy"]
    for name in options:
        page.select_option("#colour", name)
        seen[name] = token.get_attribute("style")
    assert len(set(seen.values())) >= 5
    page.select_option("#colour", "class")
    for span in page.locator("#panes .tok").all()[:9]:
        span.click()
        colour = span.evaluate("node => getComputedStyle(node).backgroundColor")
        known = {"PA&HP": (11, 79, 138), "PA&LP": (156, 203, 238), "NA&HP": (168, 67, 27), "NA&LP": (247, 192, 154)}
        found = numbers(page)
        assert tuple(map(int, re.findall(r"\d+", colour))) == known[found["class"]]
        side = {"inside": "", "outside, low": "low", "outside, high": "high"}[found["clip"]]
        assert not side or side in span.get_attribute("class").split()


def test_keys_forks_sliders(run_page, show):
    page = show(run_page)
    page.keyboard.press("n")
    first = page.locator(".tok.chosen")
    assert "fork" in first.get_attribute("class") and page.evaluate("document.activeElement.dataset.i") is not None
    before = page.evaluate(SELECTED)
    page.keyboard.press("ArrowRight")
    assert int(page.evaluate(SELECTED)) == int(before) + 1
    page.keyboard.press("End")
    last = int(page.evaluate(SELECTED))
    page.keyboard.press("Home")
    assert last - int(page.evaluate(SELECTED)) == 8
    entropy = float(page.locator("#legend").inner_text().rpartition("≥")[2])
    many = page.locator("#panes .tok.fork").count()
    page.locator("#forks").fill("1")
    assert page.locator("#panes .tok.fork").count() < many
    assert float(page.locator("#legend").inner_text().rpartition("≥")[2]) > entropy
    radio = page.locator("#rollouts [aria-checked=true]")
    was = radio.inner_text()
    page.locator("#microscope-title").click()
    page.keyboard.press("j")
    assert radio.inner_text() != was
    page.keyboard.press("]")
    assert page.locator("#scope-step-said").inner_text() == "20"
    page.locator("#scope-step").fill("0")
    assert page.locator("#scope-step-said").inner_text() == "10"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    chosen = page.evaluate(SELECTED)
    page.keyboard.press("t")
    assert page.locator("#panes table tbody tr").count() >= 9 and page.evaluate(SELECTED) == chosen


def test_the_same_prompt_across_steps_side_by_side(run_page, show):
    page = show(run_page)
    label = page.locator("#scope-prompt option").filter(has_text="sums/first").inner_text()
    assert "in 3 steps" in label
    page.select_option("#scope-prompt", label=label)
    page.select_option("#beside", "all")
    heads = page.locator("#panes h3").all_inner_texts()
    assert [re.search(r"step (\d+)", head)[1] for head in heads] == ["10", "20", "30"]
    assert all("sums/first" in head for head in heads)
    boxes = [pane.bounding_box() for pane in page.locator("#panes .pane").all()]
    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"] and boxes[0]["y"] == boxes[2]["y"]


def test_what_a_model_writes_stays_text(tmp_path, show):
    """In a response token by token, in its prompt, in a kept completion, in a command line."""
    folder = write_run(tmp_path / EVIL.replace("/", "∕") / "seed0", note={"what": EVIL})
    frame = report.load.tokens(folder, 30)
    frame["text"] = EVIL
    frame["prompt"] = frame["prompt_id"] = EVIL
    frame.to_parquet(folder / "tokens" / "step000030.parquet")
    page = show(report.write(folder))
    page.locator("#scope-step").fill("2")
    assert page.locator("#panes .tok").first.inner_text() == EVIL
    assert page.locator("#panes .prompt").first.inner_text().startswith(EVIL)
    page.locator("#panes .tok").first.click()
    assert EVIL in page.locator("#inspector").inner_text()
    assert EVIL in page.locator("#seen-steps").inner_text()
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2
    assert page.title() != "evil"


def test_nothing_but_its_own_script_runs(run_page, tmp_path, browser):
    """Were a text to get into the markup all the same, the page's policy would not run it."""
    broken = tmp_path / "broken.html"
    broken.write_text(run_page.read_text().replace("<main>", "<main><script>document.title = 'evil'</script>"))
    page = browser.new_page()
    page.goto(broken.as_uri())
    page.wait_for_selector("html[data-ready]")
    assert page.title() != "evil"
    page.close()


def test_a_sweep_has_arms_with_seeds(sweep_page, show):
    page = show(sweep_page)
    assert "2 arms, 3 seeds an arm" in page.locator("#facts").inner_text()
    chart = page.locator(".chart").filter(has_text="Entropy before the updates")
    assert [text.strip() for text in chart.locator(".readout span").all_inner_texts()] == ["GRPO", "CE-GPPO (1, 0)"]
    series = "SHOWN.curves.charts()[1].series.length"
    both = page.evaluate(series)
    page.locator("#seeds").uncheck()
    assert page.evaluate(series) == both - 6
    page.locator("#arms button").filter(has_text="GRPO").click()
    assert [text.strip() for text in chart.locator(".readout span").all_inner_texts()] == ["CE-GPPO (1, 0)"]
    assert page.locator("#scope-run option").all_inner_texts() == ["GRPO, seed 0", "CE-GPPO (1, 0), seed 0"]
    page.select_option("#scope-run", label="CE-GPPO (1, 0), seed 0")
    assert "CE-GPPO" in page.locator("#panes h3").first.inner_text()


def test_a_pack_says_what_it_does_not_hold(show, tmp_path):
    there = Path(__file__).resolve().parent.parent / "results" / "algorithms"
    shutil.copytree(there, tmp_path / "algorithms", ignore=shutil.ignore_patterns("grpo"))
    page = show(report.write(tmp_path / "algorithms"))
    assert "a pack holds metrics and evaluations, no tokens" in page.locator("#no-tokens").inner_text()
    assert page.locator(".chart").count() >= 8 and not page.locator("#scope").is_visible()
    assert "Ledger" not in page.locator("nav").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_widths_and_themes(run_page, show, width, scheme):
    page = show(run_page, viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper) == "rgb(20, 23, 28)"
    assert dark == (scheme == "dark")
    # Every token can be read on its colour.
    for name in ("entropy", "influence", "class"):
        page.select_option("#colour", name)
        assert page.evaluate(CONTRAST) >= 4.5
    page.keyboard.press("Escape")
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.evaluate(paper) == "rgb(20, 23, 28)"


def test_it_prints(run_page, show):
    page = show(run_page, color_scheme="dark")
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) < 12
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator("#colour").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_large_run_opens(tmp_path, show, capsys):
    """1,000 steps and 100,000 tokens. The time is said, not judged: machines differ."""
    path = report.write(write_run(tmp_path / "large" / "seed0", 1000, looked=5, prompts=32, group=8, length=79))
    page = show(path)
    assert path.stat().st_size < 10e6 and page.locator(".chart").count() >= 9
    assert page.evaluate("SHOWN.data.tokens.responses.length.reduce((a, b) => a + b)") == 5 * 32 * 8 * 79
    with capsys.disabled():
        ready = page.evaluate("document.documentElement.dataset.ready")
        print(f"\n1,000 steps, 101,120 tokens, {path.stat().st_size / 1e6:.1f} MB: ready after {ready} ms")
