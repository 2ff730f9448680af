"""The dashboard in a real browser: started as the README says, every page, and the story."""

import io
import json
import os
import re
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.browser import APP, ROOT, NoBrowser, chromium, dashboard, listen, map_is_drawn
from tests.test_dashboard import PAGES

WAIT = 120_000  # milliseconds; a busy machine with two cores is slow
SIZES = {"light": (1280, 800), "dark": (1920, 1080)}
CHARTS = """() => [...document.querySelectorAll('[data-testid=stPlotlyChart]')]
    .every(chart => chart.querySelector('.main-svg'))"""
TOO_WIDE = """() => {
    const main = document.querySelector('[data-testid=stMain]');
    return main.scrollWidth - main.clientWidth;
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server on the demo, and the file of its log."""
    folder = tmp_path_factory.mktemp("server")
    with dashboard(folder, folder / "log") as address:
        yield address, folder / "log"


@pytest.fixture(scope="module")
def browser():
    try:
        with chromium() as found:
            yield found
    except NoBrowser as why:
        pytest.skip(str(why))


@pytest.fixture
def tab(browser, request):
    """A tab that remembers what its console complained of: 1280 x 800, or as parametrized."""
    scheme = getattr(request, "param", "light")
    width, height = SIZES[scheme]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.said = listen(page)
    yield page
    context.close()


def settle(page):
    """Wait until the script has run and its figures are drawn; it shows no error or warning."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    page.wait_for_function(CHARTS)
    page.wait_for_timeout(250)  # what is drawn in the next frames
    assert page.locator('[data-testid="stException"]').count() == 0
    for kind in ("Error", "Warning"):
        assert page.locator(f'[data-testid="stAlertContent{kind}"]').count() == 0


def colours(element):
    """How many colours an element shows on the screen."""
    element.scroll_into_view_if_needed()
    element.page.wait_for_timeout(150)
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
    """Move the pointer over the map, as a person would, until it names an object there."""
    page.locator(".object-map canvas").scroll_into_view_if_needed()
    box = page.locator(".object-map canvas").bounding_box()
    for down in range(50, int(box["height"]), 17):
        for right in range(10, int(box["width"]), 17):
            where = box["x"] + right, box["y"] + down
            page.mouse.move(*where)
            if page.locator(".object-map .tip").is_visible():
                return where
    raise AssertionError("the pointer found no object on the map")


def click(page, where):
    page.mouse.move(where[0] - 2, where[1] - 2)
    page.mouse.move(*where, steps=3)
    page.wait_for_timeout(300)
    page.mouse.click(*where)


def open_page(page, name):
    page.locator(f'[data-testid="stSidebarNavLink"][href$="/{name}"]').click()
    page.wait_for_url(re.compile(f"/{name}"))


def test_a_server_started_from_any_folder_answers_this_machine_alone(tmp_path):
    with dashboard(tmp_path, tmp_path / "log", app=ROOT / APP, started_in=tmp_path) as address:
        port = int(address.rpartition(":")[2])
        servers = psutil.Process().children(recursive=True)
        listening = {
            one.laddr.ip
            for server in servers
            for one in server.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr.port == port
        }
    assert listening and listening <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    "tab", ["light", pytest.param("dark", marks=pytest.mark.slow)], indirect=True
)
def test_every_page_draws_and_nothing_complains(server, tab, request):
    address, log = server
    tab.goto(address)
    for name in PAGES:
        if name != PAGES[0]:
            open_page(tab, name)
        tab.wait_for_selector("h1")
        settle(tab)
        if name == "explorer":
            map_is_drawn(tab)
            assert colours(tab.locator(".object-map canvas")) > 20
        elif name != "provenance":
            tab.wait_for_selector(".js-plotly-plot .main-svg")
            assert colours(tab.locator(".js-plotly-plot").first) > 20, name
        for canvas in tab.locator(".gl-container canvas").all()[:1]:
            assert colours(canvas) > 8, name
        assert tab.evaluate(TOO_WIDE) <= 0, name
        if shots := os.environ.get("SCREENSHOTS"):
            tab.evaluate("document.querySelector('[data-testid=stMain]').scrollTo(0, 0)")
            tab.screenshot(path=Path(shots) / f"{name}-{request.node.callspec.id}.png")
    assert tab.said == []
    assert not re.search("Traceback|Error|Warning", log.read_text()), log.read_text()[-2000:]


def test_three_clicks_lead_from_a_layer_to_a_token(server, tab):
    address, log = server
    tab.goto(address)
    tab.wait_for_selector(".js-plotly-plot .points path")
    settle(tab)
    click(tab, at_layer(tab, 20))
    tab.get_by_role("heading", name="Explorer").wait_for()
    map_is_drawn(tab)
    settle(tab)
    assert "layer=20" in tab.url
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
    tab.get_by_text("Framed: layer 4, token 7").wait_for()


def test_the_map_takes_a_lasso_and_glides_to_the_next_layer(server, tab):
    address, _ = server
    tab.emulate_media(reduced_motion="no-preference")
    tab.goto(f"{address}/explorer?layer=20")
    map_is_drawn(tab)
    settle(tab)
    canvas = tab.locator(".object-map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    corners = [(2, 40), (300, 40), (box["width"] - 2, 40), (box["width"] - 2, 435), (2, 435)]
    tab.mouse.move(box["x"] + 2, box["y"] + 40)
    tab.mouse.down()
    for x, y in corners:
        tab.mouse.move(box["x"] + x, box["y"] + y, steps=3)
    tab.mouse.up()
    tab.get_by_text("objects selected; shown here").wait_for()
    assert "40 objects selected" in tab.locator("body").inner_text()  # all that are on the map
    canvas.evaluate("one => delete one.dataset.glided")
    tab.get_by_role("slider").first.press("ArrowLeft")
    map_is_drawn(tab)
    glided = json.loads(canvas.get_attribute("data-glided"))
    assert glided["milliseconds"] >= 220 and glided["frames"] > 1
    canvas.press("ArrowRight")  # by keyboard alone
    tip = tab.locator(".object-map .tip")
    tip.wait_for()
    name = tip.inner_text().split(":")[0]
    canvas.press("Enter")
    tab.get_by_role("button", name=f"Open {name} layer by layer").wait_for()


@pytest.mark.slow
def test_figures_can_be_saved_as_png_and_as_svg(server, tab):
    address, _ = server
    tab.goto(address)
    tab.wait_for_selector(".js-plotly-plot .points path")
    settle(tab)
    for kind in ("png", "svg"):
        if kind == "svg":
            tab.get_by_role("combobox", name=re.compile("Camera button saves")).click()
            tab.get_by_role("option", name="SVG").click()
        tab.wait_for_function(
            "kind => document.querySelector('.js-plotly-plot')"
            "._context.toImageButtonOptions.format === kind",
            arg=kind,
        )
        tab.locator(".js-plotly-plot").first.hover()
        saved_by(tab, tab.locator('.modebar-btn[data-title^="Download plot"]').first, kind)
    open_page(tab, "explorer")
    map_is_drawn(tab)
    settle(tab)
    for kind in ("png", "svg"):
        saved_by(tab, tab.get_by_role("button", name=kind.upper(), exact=True), kind)
    saved_by(tab, tab.get_by_role("button", name="Data as CSV").first, "csv")


def saved_by(page, button, kind):
    """A click saves a file of that kind, with something in it."""
    with page.expect_download() as saved:
        button.click()
    start = {"png": b"\x89PNG", "svg": b"<svg", "csv": b"sample,"}[kind]
    content = Path(saved.value.path()).read_bytes()
    assert saved.value.suggested_filename.endswith(kind) and content.startswith(start)
    assert len(content) > 1000
