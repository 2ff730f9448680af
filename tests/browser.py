"""A dashboard server and a headless Chromium, for tests and benchmarks; not a test itself."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
APP = "dashboards/app.py"
HOW = (
    "no browser: playwright install chromium, or as root on Debian: apt-get install -y chromium; "
    "Playwright itself comes with pip install -e '.[dev]'"
)
QUIET = (
    # Streamlit's client asks below the page's own path first, whatever the page is
    r"404 \(Not Found\)",
    # of plotly, when it looks up which point of a canvas was hit
    r"willReadFrequently",
    # of software rendering, where there is no graphics card
    r"GPU stall|swiftshader|SwiftShader|WebGL",
)


class NoBrowser(Exception):
    """There is none; the message tells how to install one."""


@contextmanager
def dashboard(
    folder: Path, log: Path, app: str | Path = APP, started_in: Path = ROOT
) -> Iterator[str]:
    """Address of a server on a folder of runs, started as the README says."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(app)]
    command += ["--server.port", str(port), "--server.headless", "true", "--", str(folder)]
    plain = {name: text for name, text in os.environ.items() if not name.startswith("STREAMLIT")}
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=started_in, stdout=file, stderr=file, env=plain)
        try:
            _wait_for(f"http://localhost:{port}/_stcore/health", process)
            yield f"http://localhost:{port}"
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # of a machine that has no time for it
                process.kill()
                process.wait()


def _wait_for(url: str, process: subprocess.Popen) -> None:
    for _ in range(480):
        assert process.poll() is None, "the server ended"
        try:
            if urllib.request.urlopen(url, timeout=5).status == 200:
                return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"{url} does not answer")


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's own Chromium where it is installed, else the system's. Raises NoBrowser."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise NoBrowser(HOW) from None
    with sync_playwright() as driver:
        own = Path(driver.chromium.executable_path).exists()
        system = shutil.which("chromium") or shutil.which("chromium-browser")
        if not own and not system:
            raise NoBrowser(HOW)
        options = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        try:
            found = driver.chromium.launch(executable_path=None if own else system, args=options)
        except Error as error:
            raise NoBrowser(f"{str(error).splitlines()[0]}; {HOW}") from error
        yield found
        found.close()


def listen(page: Any) -> list[str]:
    """What the page's console complains of from now on."""
    said: list[str] = []

    def hear(message: Any) -> None:
        known = any(re.search(text, message.text) for text in QUIET)
        if message.type in ("error", "warning") and not known:
            said.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: said.append(str(error)))
    return said


def map_is_drawn(page: Any) -> None:
    """Wait until the Explorer's map has come to rest."""
    page.wait_for_selector(".object-map canvas[data-glided]")
