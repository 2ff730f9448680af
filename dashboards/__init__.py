"""Streamlit pages over finished and running runs: streamlit run dashboards/app.py -- RUNS_DIR."""
