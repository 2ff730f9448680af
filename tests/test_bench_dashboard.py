"""The run that the benchmark of the dashboard is made on, at a size for a test."""

import sys

import pytest
from streamlit.testing.v1 import AppTest

import store
from tests.benchmarks.bench_dashboard import DRAWN, LAYERS, VARIANTS, write_large
from tests.test_dashboard import APP, PAGES


@pytest.mark.slow
def test_every_page_shows_the_run_of_the_benchmark(tmp_path, monkeypatch):
    write_large(tmp_path / "runs" / "large", 300)
    run = store.open_run(tmp_path / "runs" / "large")
    assert run.complete and run.variants == VARIANTS and run.layers == LAYERS
    assert run.probes("objects").position.sizes["sample"] == 300
    monkeypatch.setattr(sys, "argv", ["app.py", str(tmp_path / "runs")])
    assert {page or PAGES[0] for page in DRAWN} == set(PAGES)
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.query_params["run"] = "large"
    app.run()
    for page in PAGES[1:]:
        assert not app.exception and not app.error
        app.switch_page(f"views/{page}.py").run()
    assert not app.exception and not app.error
