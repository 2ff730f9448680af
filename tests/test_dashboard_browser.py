"""The dashboard in a real browser: started as the README says, every page, and the story."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.test_dashboard import PAGES

playwright = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT = 120_000  # milliseconds; a busy machine with two cores is slow
QUIET = (
    # Streamlit's client asks below the page's own path first, whatever the page is
    r"404 \(Not Found\)",
    # of plotly, when it looks up which point of a canvas was hit
    r"willReadFrequently",
    # of software rendering, where there is no graphics card
    r"GPU stall|swiftshader|SwiftShader|WebGL",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server on the demo, and the file of its log."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "streamlit", "run", "dashboards/app.py"]
    command += ["--server.port", str(port), "--server.headless", "true", "--", str(log.parent)]
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=_plain())
        try:
            _wait_for(f"http://localhost:{port}/_stcore/health", process)
            yield f"http://localhost:{port}", log
        finally:
            process.terminate()
            process.wait(30)


def _plain():
    return {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIT")}


def _wait_for(url, process):
    for _ in range(240):
        assert process.poll() is None, "the server ended"
        try:
            if urllib.request.urlopen(url, timeout=5).status == 200:
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        options = {"args": ["--no-sandbox", "--enable-unsafe-swiftshader"]}
        try:
            found = driver.chromium.launch(executable_path=CHROMIUM, **options)
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def tab(browser, request):
    """A tab of 1280 x 800 that remembers what its console complained of."""
    scheme = getattr(request, "param", "light")
    size = {"width": 1280, "height": 800}
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.said = []
    page.on("console", lambda one: page.said.append(one.text) if _loud(one) else None)
    page.on("pageerror", lambda error: page.said.append(str(error)))
    yield page
    context.close()


def _loud(message):
    known = any(re.search(text, message.text) for text in QUIET)
    return message.type in ("error", "warning") and not known


def settle(page):
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    page.wait_for_timeout(1500)  # plotly draws after that
    assert page.locator('[data-testid="stException"]').count() == 0
    assert page.locator('[data-testid="stAlertContentError"]').count() == 0


def colours(element):
    """How many colours an element shows on the screen."""
    from PIL import Image

    element.scroll_into_view_if_needed()
    element.page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(element.screenshot())).convert("RGB")
    return len(picture.getcolors(picture.width * picture.height))


def at_layer(page, layer):
    """Where on the screen the first curve's mark at a layer is, found by what plotly drew."""
    script = """([figure, layer]) => {
        const trace = figure._fullData.findIndex(t => t.customdata && t.type === 'scatter');
        const at = Array.from(figure._fullData[trace].customdata).findIndex(c => c[0] === layer);
        const {xaxis, yaxis} = figure._fullLayout, data = figure.calcdata[trace][at];
        const box = figure.getBoundingClientRect();
        const x = xaxis._offset + xaxis.c2p(data.x), y = yaxis._offset + yaxis.c2p(data.y);
        return [box.x + x, box.y + y];
    }"""
    figure = page.locator(".js-plotly-plot").first.element_handle()
    return page.evaluate(script, [figure, layer])


def an_object(page):
    """Where on the map an object lies that no other lies close to."""
    script = """figure => {
        const {xaxis, yaxis} = figure._fullLayout, box = figure.getBoundingClientRect();
        const all = figure._fullData.filter(t => t.customdata).flatMap(t =>
            Array.from(t.x, (x, i) => [xaxis.c2p(x), yaxis.c2p(t.y[i])]));
        const far = (a, b) => a === b ? Infinity : Math.hypot(a[0] - b[0], a[1] - b[1]);
        const gap = a => Math.min(...all.map(b => far(a, b)));
        const [x, y] = all.reduce((best, one) => gap(one) > gap(best) ? one : best);
        return [box.x + xaxis._offset + x, box.y + yaxis._offset + y];
    }"""
    return page.evaluate(script, page.locator(".js-plotly-plot").first.element_handle())


def click(page, where):
    page.mouse.move(where[0] - 2, where[1] - 2)
    page.mouse.move(*where, steps=3)
    page.wait_for_timeout(400)
    page.mouse.click(*where)


@pytest.mark.parametrize("tab", ["light", "dark"], indirect=True)
def test_every_page_draws_and_nothing_complains(server, tab):
    address, log = server
    for name in PAGES:
        tab.goto(f"{address}/{name if name != PAGES[0] else ''}")
        tab.wait_for_selector("h1")
        settle(tab)
        if name != "provenance":
            assert colours(tab.locator(".js-plotly-plot").first) > 20, name
        for canvas in tab.locator(".gl-container canvas").all()[:1]:
            assert colours(canvas) > 8, name
        if shots := os.environ.get("SCREENSHOTS"):
            tab.evaluate("document.querySelector('[data-testid=stMain]').scrollTo(0, 0)")
            dark = tab.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
            tab.screenshot(path=Path(shots) / f"{name}-{'dark' if dark else 'light'}.png")
    assert tab.said == []
    assert not re.search("Traceback|Error|Warning", log.read_text()), log.read_text()[-2000:]


def test_three_clicks_lead_from_a_layer_to_a_token(server, tab):
    address, log = server
    tab.goto(address)
    tab.wait_for_selector(".js-plotly-plot .points path")
    settle(tab)
    click(tab, at_layer(tab, 20))
    tab.get_by_role("heading", name="Explorer").wait_for()
    assert "layer=20" in tab.url
    tab.wait_for_selector(".js-plotly-plot canvas")
    settle(tab)
    click(tab, an_object(tab))
    opening = tab.get_by_role("button", name=re.compile("^Open .* layer by layer"))
    opening.wait_for()
    settle(tab)
    assert "picked=" in tab.url
    name = opening.inner_text().split()[1]
    opening.click()
    tab.get_by_role("heading", name="Object", exact=True).wait_for()
    settle(tab)
    assert "layer=20" in tab.url and f"object={name}" in tab.url
    assert tab.get_by_text("Framed: layer 20, token").count() == 1
    assert tab.get_by_text(re.compile("What token .* reads of the cloud")).count() == 1
    assert colours(tab.locator(".js-plotly-plot").first) > 20
    assert tab.said == []
    assert "Traceback" not in log.read_text()


def test_a_cell_that_is_clicked_is_the_token_that_is_painted(server, tab):
    address, _ = server
    tab.goto(f"{address}/object")
    tab.wait_for_selector(".heatmaplayer image")
    settle(tab)
    map_of_tokens = tab.locator(".js-plotly-plot").filter(has=tab.locator(".heatmaplayer image"))
    script = """figure => {
        const {xaxis, yaxis} = figure._fullLayout, box = figure.getBoundingClientRect();
        return [box.x + xaxis._offset + xaxis.c2p(7), box.y + yaxis._offset + yaxis.c2p(1)];
    }"""
    map_of_tokens.first.scroll_into_view_if_needed()
    click(tab, tab.evaluate(script, map_of_tokens.first.element_handle()))
    tab.wait_for_url(re.compile("token=7"))
    tab.get_by_text("What token 7 reads of the cloud").wait_for()
    tab.get_by_text("Framed: layer 8, token 7").wait_for()


def test_figures_can_be_saved_as_png_and_as_svg(server, tab):
    address, _ = server
    tab.goto(address)
    tab.wait_for_selector(".js-plotly-plot .points path")
    settle(tab)
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<svg")):
        if kind == "svg":
            tab.get_by_role("combobox", name=re.compile("Camera button saves")).click()
            tab.get_by_role("option", name="SVG").click()
            settle(tab)
        tab.locator(".js-plotly-plot").first.hover()
        with tab.expect_download() as saved:
            tab.locator('.modebar-btn[data-title*="plot as"]').first.click()
        path = Path(saved.value.path())
        assert saved.value.suggested_filename.endswith(kind) and path.read_bytes().startswith(start)
