"""The book builds without a warning, and its pages work in a browser.

The pages are built anew, served over http (search does not work from a file) and opened in headless
Chromium. Without Chromium only the build is tested.
"""

import contextlib
import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
)
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CHAPTER = "notebooks/01_density_ratios.html"
CHAINS = "notebooks/02_energy_based_models.html"  # these two hold a figure that moves
LATENTS = "notebooks/08_ddls.html"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()


class Look(NamedTuple):
    """What is wrong with a page: lists that should be empty."""

    console: list  # errors in the console, and files that were not found
    outside: list  # requests to another host
    embedded: list  # addresses of another host in script, link, img and the like
    bad_math: list  # formulas that MathJax rejected or left as they were
    no_alt: list  # images without an alternative text
    too_wide: list  # what makes the page scroll sideways on a phone


# Each returns a list of strings from the page as it stands.
EMBEDDED = """() => [...document.querySelectorAll('script[src], link[href], img[src], iframe[src],'
    + 'source[src], video[src], audio[src], object[data]')]
    .map(element => element.src || element.href || element.data)"""
BAD_MATH = """() => [...document.querySelectorAll('mjx-merror')].map(e => 'error: ' + e.textContent)
    .concat([...document.querySelectorAll('span.math, div.math')]
        .filter(e => !e.querySelector('mjx-container')).map(e => 'as typed: ' + e.textContent))"""
NO_ALT = """() => [...document.images].filter(image => !(image.alt || '').trim())
    .map(image => image.src.slice(0, 200))"""
TOO_WIDE = """() => {
    const width = document.documentElement.clientWidth
    if (document.documentElement.scrollWidth <= width + 1) return []
    const wide = [...document.body.querySelectorAll('*')]
        .filter(e => e.getBoundingClientRect().right > width + 1)
        .map(e => e.tagName + '.' + e.className + ' ' + e.textContent.trim().slice(0, 60))
    return ['page ' + document.documentElement.scrollWidth + ' px', ...wide.slice(0, 5)]
}"""


OPEN = "() => document.querySelectorAll('details').forEach(e => { e.open = true })"
# Thousands of words of code have some twenty looks, a colour on its backgrounds: one of each stays,
# the others become text.
ONE_OF_EACH = """() => {
    const words = [...document.querySelectorAll('div.highlight span[class]')]
    const looks = words.map(word => {
        const look = [getComputedStyle(word).color]
        for (let e = word; e; e = e.parentElement) look.push(getComputedStyle(e).backgroundColor)
        return look.join()
    })
    words.filter((word, i) => looks.indexOf(looks[i]) < i)
        .forEach(word => word.replaceWith(word.textContent))
}"""
STILL = """async () => {
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
    await Promise.allSettled(document.getAnimations().map(one => one.finished))
}"""  # what a fold holds fades in, and is pale until then
# WCAG 2.2 A and AA. MathJax writes what is inside a formula.
AXE = {
    "context": {"exclude": [["mjx-container"]]},
    "options": {
        "runOnly": {"type": "tag", "values": "wcag2a wcag2aa wcag21a wcag21aa wcag22aa".split()},
        "resultTypes": ["violations"],
    },
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def served(folder):
    """The address below which the files of a folder are served."""
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def look(browser, base, path):
    """Open one page at desktop and at phone width and note what is wrong."""
    host = urlsplit(base).netloc
    console, outside = [], []

    def is_outside(url):
        return (
            urlsplit(url).scheme in ("http", "https", "ws", "wss") and urlsplit(url).netloc != host
        )

    def route(request_route):
        if is_outside(request_route.request.url):
            outside.append(request_route.request.url)
            request_route.abort()
        else:
            request_route.continue_()

    context = browser.new_context(viewport=DESKTOP, service_workers="block")
    context.route("**/*", route)
    page = context.new_page()
    page.on("console", lambda line: line.type == "error" and console.append(line.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("requestfailed", lambda request: console.append(f"not loaded: {request.url}"))
    page.goto(base + path, wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    embedded = [url for url in page.evaluate(EMBEDDED) if is_outside(url)]
    bad_math, no_alt = page.evaluate(BAD_MATH), page.evaluate(NO_ALT)
    page.set_viewport_size(PHONE)
    too_wide = page.evaluate(TOO_WIDE)
    context.close()
    return Look(console, outside, embedded, bad_math, no_alt, too_wide)


def barriers(browser, address, theme, viewport):
    """What keeps readers out of a page, with all that can be opened open: rule and first place."""
    context = browser.new_context(viewport=viewport, color_scheme=theme)
    page = context.new_page()
    page.goto(address, wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.evaluate(OPEN)
    page.evaluate(ONE_OF_EACH)
    page.evaluate(STILL)
    found = axe.Axe().run(page, **AXE).response["violations"]
    context.close()
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:100]} and {len(one['nodes']) - 1} more: "
        f"{one['nodes'][0]['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.fixture(scope="module")
def build():
    """The strict build. What an earlier build has read is removed: it would hide its warnings."""
    for name in ("html", ".doctrees"):
        shutil.rmtree(ROOT / "_build" / name, ignore_errors=True)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "-W", "-n", "--keep-going"]
    return subprocess.run([*command, ROOT], capture_output=True, text=True)


@pytest.fixture(scope="module")
def book(build):
    """The address of the built book."""
    with served(ROOT / "_build" / "html") as base:
        yield base


@pytest.fixture(scope="module")
def browser():
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        pytest.skip("no Chromium for the browser test: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport=DESKTOP)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def names(book):
    """Every page of the book, but for a front door that only leads on."""
    html = ROOT / "_build" / "html"
    pages = [path for path in html.rglob("*.html") if "_static" not in path.parts]
    pages = [path for path in pages if 'http-equiv="Refresh"' not in path.read_text("utf-8")]
    return sorted(path.relative_to(html).as_posix() for path in pages)


@pytest.fixture(scope="module")
def looks(browser, book, names):
    return {name: look(browser, book, name) for name in names}


def test_the_strict_build_has_no_warning(build):
    assert build.returncode == 0, build.stdout[-3000:] + build.stderr[-3000:]


@pytest.mark.parametrize("aspect", Look._fields)
def test_every_page(looks, aspect):
    assert CHAPTER in looks
    assert {name: found for name, seen in looks.items() if (found := getattr(seen, aspect))} == {}


@pytest.mark.parametrize(("theme", "viewport"), [("light", DESKTOP), ("dark", PHONE)])
def test_every_page_is_open_to_everyone(browser, book, names, theme, viewport):
    found = {name: barriers(browser, book + name, theme, viewport) for name in names}
    assert {name: rules for name, rules in found.items() if rules} == {}


def test_a_table_that_scrolls_is_reached_by_keys(page, book):
    page.goto(book + "book/status.html")
    reached = "document.querySelectorAll('.pst-scrollable-table-container[tabindex=\"0\"]').length"
    page.wait_for_function(f"() => {reached} == 0")
    page.set_viewport_size(PHONE)
    page.wait_for_function(f"() => {reached} > 0")
    page.set_viewport_size(DESKTOP)
    page.wait_for_function(f"() => {reached} == 0")


def test_the_front_door_leads_to_the_book(page, book):
    page.goto(book)
    page.wait_for_selector("article h1")


def test_the_chapter_has_mathematics_and_figures(page, book):
    page.goto(book + CHAPTER)
    page.wait_for_selector("mjx-container")
    assert page.locator("div.math mjx-container, span.math mjx-container").count() > 0
    assert page.locator("figure img").count() > 0


def search(page, book, words):
    """Addresses of the pages that the book's search finds."""
    page.goto(f"{book}search.html?q={'+'.join(words.split())}")
    page.wait_for_function(
        "() => /found|not match/.test(document.querySelector('#search-results')?.innerText)"
    )
    return [link.get_attribute("href") for link in page.locator("#search-results li a").all()]


def test_search_finds_the_chapter(page, book):
    assert any("01_density_ratios" in href for href in search(page, book, "density ratio"))
    assert search(page, book, "zyxwvut") == []


def test_dark_mode_switches_and_stays(page, book):
    def theme():
        return page.evaluate("() => document.documentElement.dataset.theme")

    def background():
        return page.evaluate("() => getComputedStyle(document.body).backgroundColor")

    page.emulate_media(color_scheme="light")
    page.goto(book + CHAPTER)
    light = background()
    assert theme() == "light"
    for _ in range(3):  # the button goes round through light, dark and the system's choice
        if theme() == "dark":
            break
        page.locator(".theme-switch-button:visible").first.click()
    assert theme() == "dark" and background() != light
    page.goto(book + "search.html")
    assert theme() == "dark" and background() != light


def test_keys_reach_the_text_and_open_a_solution(page, book):
    page.goto(book + CHAPTER)
    page.keyboard.press("Tab")
    assert "main content" in page.evaluate("() => document.activeElement.innerText")
    page.keyboard.press("Enter")
    assert urlsplit(page.url).fragment == "main-content"
    solution = page.locator("div.solution.dropdown").first
    button = solution.locator("button.toggle-button")
    hidden = solution.locator("section, .section").first
    assert not hidden.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    assert hidden.is_visible()


# ---- the figures in which chains move


class Demo:
    """The figure on its page: what its line of text says, and its sliders."""

    def __init__(self, page, address):
        self.page = page
        page.goto(address)
        page.wait_for_selector(".demo canvas")

    def text(self):
        return self.page.locator(".demo-status").inner_text()

    def number(self, before):
        """The number that follows some words of the text."""
        return float(re.search(before + r" ([\d.]+)", self.text())[1])

    def wait_for_step(self, step):
        self.page.wait_for_function(
            "step => parseInt(document.querySelector('.demo-status').innerText.slice(5)) >= step",
            arg=step,
        )

    def set(self, name, exponent):
        slider = self.page.get_by_label(name)
        slider.evaluate(
            "(e, value) => { e.value = value; e.dispatchEvent(new Event('input')) }", exponent
        )

    def press(self, name):
        self.page.locator(".demo button", has_text=name).click()

    def picture(self, which=0):
        return self.page.locator(".demo canvas").nth(which).screenshot()


def test_chains_follow_the_sliders(page, book):
    demo = Demo(page, book + CHAINS)
    demo.wait_for_step(300)
    assert demo.number("centres") == pytest.approx(0.35, rel=0.2)
    demo.set("temperature", -2)  # 0.01, a tenth of the width
    demo.wait_for_step(900)
    assert demo.number("centres") == pytest.approx(0.035, rel=0.3)
    demo.set("temperature", 0)
    demo.set("step size", 0)  # 1, more than 4 times the variance of a well
    demo.wait_for_step(1200)
    assert "diverged" in demo.text()
    demo.set("step size", -2)
    demo.press("restart")
    assert demo.number("step") < 50 and "diverged" not in demo.text()


def test_chains_rest_while_paused(page, book):
    demo = Demo(page, book + CHAINS)
    demo.wait_for_step(20)
    moving = demo.picture()
    page.wait_for_timeout(300)
    assert demo.picture() != moving
    demo.press("pause")
    resting = demo.picture()
    page.wait_for_timeout(300)
    assert demo.picture() == resting
    demo.press("run")
    page.wait_for_timeout(300)
    assert demo.picture() != resting


def test_chains_rest_for_those_who_want_less_motion(page, book):
    page.emulate_media(reduced_motion="reduce")
    demo = Demo(page, book + CHAINS)
    page.wait_for_timeout(300)
    assert demo.number("step") == 0
    assert page.locator(".demo button", has_text="run").count() == 1


def test_latents_and_samples_move_at_once(page, book):
    demo = Demo(page, book + LATENTS)
    demo.wait_for_step(20)
    before = [demo.picture(which) for which in (0, 1)]  # latent space and data space
    page.wait_for_timeout(300)
    assert demo.picture(0) != before[0] and demo.picture(1) != before[1]
    demo.press("pause")
    before = [demo.picture(which) for which in (0, 1)]
    page.wait_for_timeout(300)
    assert [demo.picture(which) for which in (0, 1)] == before


def test_the_step_size_of_the_latent_chains_decides(page, book):
    demo = Demo(page, book + LATENTS)
    demo.set("step size", -2)
    demo.wait_for_step(700)
    assert demo.number("centres") == pytest.approx(0.4, rel=0.15)
    demo.set("step size", -0.5)  # 0.3, too long a step where the generator is steep
    demo.wait_for_step(1000)
    assert demo.number("centres") > 0.5
    page.get_by_label("accept").check()  # which restarts the chains and makes them exact
    demo.wait_for_step(600)
    assert demo.number("centres") == pytest.approx(0.4, rel=0.15)
    page.get_by_label("accept").uncheck()
    demo.set("step size", 0.5)
    demo.wait_for_step(300)
    assert "diverged" in demo.text()


def test_other_pages_have_no_chains(page, book):
    page.goto(book + CHAPTER)
    assert page.locator(".demo").count() == 0


# ---- controls: hand-made pages that are bad in one way each

HEAD = "<!DOCTYPE html><html lang='en'><head><title>t</title><link rel='icon' href='data:,'></head>"
BAD = {
    "console": "<script>console.error('broken')</script>",
    "outside": "<style>@import 'https://example.org/a.css'</style>",
    "embedded": "<a href='https://example.org'>a link</a><img alt='a' src='https://example.org/a.png'>",
    "bad_math": "<span class='math'>\\(\\unknown\\)</span>",
    "no_alt": "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA='>",
    "too_wide": "<pre style='width: 900px'>wide</pre>",
}


@pytest.mark.parametrize("aspect", Look._fields)
def test_a_bad_page_is_found(browser, tmp_path, aspect):
    (tmp_path / "bad.html").write_text(f"{HEAD}<body>{BAD[aspect]}</body></html>")
    (tmp_path / "good.html").write_text(f"{HEAD}<body><p>Good</p></body></html>")
    with served(tmp_path) as base:
        assert getattr(look(browser, base, "bad.html"), aspect)
        assert look(browser, base, "good.html") == Look([], [], [], [], [], [])


BARRIERS = {
    "text": ("color-contrast", "<p style='color: #aaa'>pale</p>"),
    "code": (
        "color-contrast",
        "<div><div class='highlight'><span class='k'>dark</span> "
        "<span class='c' style='color: #aaa'>pale</span></div></div>",
    ),
    "button": ("button-name", "<details><summary>more</summary><button></button></details>"),
    "list": ("aria-required-children", "<div role='list'><button>a work</button></div>"),
}
FADES_IN = (
    "<style>@keyframes fade { 0% { opacity: 0 } } p { animation: fade 2s }</style>"
    "<details><summary>more</summary><p>Good</p></details>"
)


@pytest.mark.parametrize("case", BARRIERS)
def test_a_barrier_is_found(browser, tmp_path, case):
    rule, bad = BARRIERS[case]
    (tmp_path / "bad.html").write_text(f"{HEAD}<body><main>{bad}</main></body></html>")
    (tmp_path / "good.html").write_text(f"{HEAD}<body><main>{FADES_IN}</main></body></html>")
    with served(tmp_path) as base:
        found = barriers(browser, base + "bad.html", "light", DESKTOP)
        assert [one.split(":")[0] for one in found] == [rule]
        assert barriers(browser, base + "good.html", "light", DESKTOP) == []
