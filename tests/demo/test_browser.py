"""The page in a real browser."""

import random
import shutil

import pytest

from tests.demo.test_studio import LONG

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::Warning:gradio")]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, url):
    """Opens the page at a width, and fails the test where the page asked another host for anything."""
    pages, elsewhere = [], []

    def open_page(width: int = 1280, colours: str = "light"):
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
        page.on("request", lambda request: elsewhere.append(request.url) if not local(request.url, url) else None)
        page.goto(url, wait_until="domcontentloaded")
        page.locator("#prompt textarea").wait_for()
        page.wait_for_function("document.querySelector('#bar .tokens')")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not elsewhere


def local(address: str, url: str) -> bool:
    return address.startswith((url, "data:", "blob:"))


def coloured(page) -> dict[str, str]:
    spans = page.locator("#bar .words span")
    return {spans.nth(i).get_attribute("class"): spans.nth(i).inner_text() for i in range(spans.count())}


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (390, "dark")], ids=["desktop", "phone"])
def test_a_long_prompt_is_coloured_as_one_types_and_gives_three_different_pictures(visit, width, colours):
    page = visit(width, colours)
    page.keyboard.insert_text(LONG)  # the prompt has the focus from the start
    page.locator("#bar .words .tulip").wait_for()
    parts = coloured(page)
    assert list(parts) == ["clip", "longclip", "tulip"]
    assert "".join("".join(parts.values()).split()) == "".join(LONG.split())
    assert "reads 77" in page.locator("#bar .count.clip").inner_text()

    page.keyboard.press("Enter")
    page.get_by_text("Drawn in").wait_for(timeout=60_000)
    pictures = page.locator(".picture img")
    assert pictures.count() == 3
    drawn = {
        pictures.nth(i).evaluate(
            "async image => [...new Uint8Array(await (await fetch(image.src)).arrayBuffer())].join()"
        )
        for i in range(3)
    }
    assert len(drawn) == 3
    for index, title in enumerate(("CLIP", "Long-CLIP", "TULIP")):
        assert pictures.nth(index).get_attribute("alt").startswith(f"What {title} made of: Top first red tulip.")
        assert pictures.nth(index).bounding_box()["width"] > 200
    assert page.locator(".lost").count() == 3 and page.locator(".marks span").count() == 9
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
    page.wait_for_timeout(500)  # the phone scrolls there
    height = page.viewport_size["height"]
    for index in range(3 if width > 640 else 1):
        box = pictures.nth(index).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height  # on the first screen, whole
        icons = page.locator(".picture .icon-button-wrapper").nth(index).bounding_box()
        assert icons["y"] + icons["height"] <= box["y"]  # above the picture, not on it
    assert not page.locator("#bar .words").is_visible()  # one line now, and opens again
    page.locator("#bar summary").click()
    assert page.locator("#bar .words").is_visible()


def test_examples_settings_and_tabs_are_there_and_an_empty_prompt_gets_a_sentence(visit):
    page = visit()
    assert not page.get_by_label("Steps").first.is_visible()  # closed until wanted
    page.locator("#draw").click()
    page.get_by_role("alert").get_by_text("The prompt is empty").wait_for()
    page.get_by_role("button", name="150 tokens").click()
    page.wait_for_function("document.querySelector('#bar .total b').innerText > 130")
    page.locator("#draw").click()
    page.get_by_text("Drawn in").wait_for(timeout=60_000)
    page.get_by_role("tab", name="Explain").click()
    page.get_by_role("button", name="Explain this prompt").click()
    page.locator(".attention").nth(2).wait_for()
    page.get_by_role("button", name="Which words does the UNet look at?").click()
    page.locator(".attended").nth(2).wait_for(timeout=60_000)
    assert page.locator(".attended .unread").first.is_visible()
    assert page.locator(".attended img").nth(2).evaluate("image => image.complete && image.naturalWidth > 0")
    page.get_by_role("tab", name="Side by side").click()
    page.locator("#past img").first.wait_for()
    page.get_by_role("tab", name="Slider").click()
    page.locator(".slider-wrap img, [data-testid=imageslider] img").first.wait_for()


def test_stop_stops_the_loop_and_the_page_draws_again(visit, studio):
    page = visit()
    page.locator("#settings button").first.click()
    page.get_by_label("number input for Steps").fill("100")
    page.locator("#prompt textarea").fill(LONG)
    steps = []
    hook = studio.pipelines["CLIP"].unet.register_forward_hook(lambda *_: steps.append(1))
    page.locator("#draw").click()
    while not steps:
        page.wait_for_timeout(50)
    page.locator("#stop").click()
    page.get_by_text("Stopped at step").wait_for()
    with studio.drawing:
        hook.remove()
    assert len(steps) < 80
    page.get_by_label("number input for Steps").fill("2")
    page.locator("#draw").click()
    page.get_by_text("Drawn in").wait_for(timeout=60_000)


def test_the_address_holds_the_prompt_and_the_settings_and_brings_them_back(visit, url):
    page = visit()
    page.locator("#prompt textarea").fill("Top first red tulip & more = 100 %.")
    page.locator("#settings button").first.click()
    page.get_by_label("Seed").first.fill("41")
    page.get_by_label("number input for Steps").fill("1")
    page.locator("#draw").click()
    page.get_by_text("Drawn in").wait_for(timeout=60_000)
    page.wait_for_function("location.hash.includes('seed=41')")
    address = page.url
    again = visit()
    again.goto("about:blank")
    again.goto(address, wait_until="domcontentloaded")
    again.wait_for_function("document.querySelector('#prompt textarea')?.value.includes('100 %')")
    again.locator("#draw").click()
    again.get_by_text("from seed 41").wait_for(timeout=60_000)


@pytest.mark.parametrize("held", ["", "#prompt=kept&steps=2"])
def test_nothing_typed_is_lost_while_the_page_reads_its_address(chromium, url, held):
    page = chromium.new_page()
    page.goto(url + held, wait_until="domcontentloaded")
    prompt = page.locator("#prompt textarea")
    for letter in "typed at once":
        prompt.press_sequentially(letter)
    page.wait_for_function("document.querySelector('#bar .tokens')")
    page.wait_for_timeout(1000)
    assert prompt.input_value().endswith("typed at once")  # behind what was kept, where that came first
    page.close()


def test_stopping_at_any_moment_double_clicks_and_a_reload_in_a_run_are_quiet(visit):
    page = visit()
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("response", lambda response: problems.append(response.url) if response.status >= 500 else None)
    page.locator("#settings button").first.click()
    page.get_by_label("number input for Steps").fill("30")
    page.locator("#prompt textarea").fill(LONG)
    moments = random.Random(0)
    for _ in range(20):
        page.locator("#draw").dblclick()
        page.wait_for_timeout(moments.uniform(0, 900))
        page.locator("#stop").dblclick()
        page.get_by_text("Stopped").wait_for(timeout=60_000)
    assert not problems
    page.locator("#draw").click()
    page.wait_for_timeout(300)
    page.reload(wait_until="domcontentloaded")
    page.locator("#prompt textarea").wait_for()
    problems.clear()  # what the browser says of the requests that leaving the page cut off
    page.locator("#settings button").first.click()
    page.get_by_label("number input for Steps").fill("1")
    page.locator("#prompt textarea").fill("Top first red tulip.")
    page.locator("#draw").click()
    page.get_by_text("Drawn in").wait_for(timeout=60_000)
    assert not problems and page.locator(".error, .toast-body.error").count() == 0


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (390, "dark")], ids=["desktop", "phone"])
def test_an_accessibility_checker_finds_nothing_serious(visit, width, colours):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit(width, colours)
    page.keyboard.insert_text(LONG)
    page.locator("#bar .words .tulip").wait_for()
    page.keyboard.press("Enter")
    page.get_by_text("Drawn in").wait_for(timeout=60_000)
    found = axe.Axe().run(page).response["violations"]
    serious = {
        violation["id"]: [node["html"][:200] for node in violation["nodes"]]
        for violation in found
        if violation["impact"] in ("serious", "critical")
    }
    assert not serious


def test_everything_can_be_done_by_keyboard_alone(visit):
    page = visit()
    page.keyboard.insert_text("Top first red tulip.")
    page.keyboard.press("Enter")
    page.get_by_text("Drawn in").wait_for(timeout=60_000)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || ''").strip()
        )
    assert {"Draw", "Stop", "Random", "+ thing", "Dark / light", "Use this seed again", "Side by side"} <= reached
    page.get_by_role("tab", name="Slider").focus()
    page.keyboard.press("Enter")
    page.locator("[data-testid=imageslider] img, .slider-wrap img").first.wait_for()
    line = page.locator("input[type=range][aria-label*='Where the line stands']")
    line.focus()
    page.keyboard.press("ArrowLeft")
    assert line.input_value() == "49"
