"""A run on disk: hidden states by layer, sample and token, with what made them."""

from store.integrity import verify_run
from store.lock import Locked
from store.reader import Run, UnfinishedRunWarning, open_run
from store.remote import Unreachable
from store.schema import StoreError
from store.writer import NonFiniteWarning, RunWriter, create_run, resume_run

__all__ = [
    "Locked",
    "NonFiniteWarning",
    "Run",
    "RunWriter",
    "StoreError",
    "UnfinishedRunWarning",
    "Unreachable",
    "create_run",
    "open_run",
    "resume_run",
    "verify_run",
]
