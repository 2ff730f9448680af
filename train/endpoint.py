"""A language model as the judge, by OpenAI's chat protocol, as vLLM and many others speak it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from train.judges import EMPTY, Task, Verdict
from train.progress import track

KEY = "OPENAI_API_KEY"
ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before the second attempt, doubled (and jittered) for each further one, and at most."""
PATIENCE = 120.0
"""Seconds for one reply."""
AGAIN = (408, 409, 425, 429)
"""Besides 500 and above, what passes by itself."""
FILTERED = ("content_filter", "content_policy", "data_inspection")
"""In the refusal (400) of a question whose words a service won't have: OpenAI, Azure, DashScope."""
KEPT_BACK = {"text": "", "finish": "content_filter", "prompt_tokens": 0, "completion_tokens": 0}
SETTINGS = {"temperature": 0, "top_p": 1, "seed": 0, "max_tokens": 128}
SYSTEM = "You grade answers about 3D objects. Reply with one JSON object and nothing else."
JSON_RULE = 'Reply with one line of JSON, {"%s": %s, "reason": "at most 15 words"}.'
PROMPTS: dict[Task, str] = {
    "closed": (
        "These are the classes, each with its number:\n{classes}\n\nSomebody described an object "
        "in free words:\n<<<{said}>>>\n\nWhich class does the description most likely mean? If it "
        "fits none exactly, choose the nearest; if it fits several, the one it says most about. "
        "If it says nothing about what the object is, the number is -1.\n"
        + JSON_RULE
        % ("class", "NUMBER")
    ),
    "open": (
        "Reference description of a 3D object:\n<<<{reference}>>>\n\nAnother description:\n"
        "<<<{said}>>>\n\nDo both speak of the same broad kind of object? Only the kind counts: "
        "not colour, size, shape, material or style, and not words such as cartoon, toy or model. "
        "A van and a lorry are both vehicles of one kind; a chair and a lamp are not.\n"
        + JSON_RULE
        % ("same", "true or false")
    ),
    "caption": (
        "Reference caption of a 3D object:\n<<<{reference}>>>\n\nCaption to grade:\n"
        "<<<{said}>>>\n\n"
        "List for yourself what the reference says of the object (kind, parts, colours, shape, "
        "use). What share of this does the other caption say as well? What is nearly the same "
        "counts in part, all points count alike, and what it says beyond counts neither way.\n"
        + JSON_RULE
        % ("score", "WHOLE NUMBER FROM 0 TO 100")
    ),
}
"""Our own words; the published judges' are others, so scores compare within a judge only."""


class Endpoint:
    """Judge by a language model behind an address.

    url     : up to /v1, as http://localhost:8000/v1; no key may stand in it.
    model   : its name there.
    key     : environment variable with the key, if the server wants one.
    workers : questions at a time.
    cache   : file of JSON lines with all replies so far, by all that was asked; None for none.

    Replies at temperature 0. What passes by itself (busy, failing, slow or cut replies) is tried
    again, waiting longer each time; where a service's filter keeps a reply back there is no valid
    verdict. Raises ConnectionError when the judge stays silent, with what it has said kept, and
    ValueError when it refuses the question, without ever repeating the key.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str = KEY,
        workers: int = 8,
        cache: Path | None = None,
        patience: float = PATIENCE,
        first_wait: float = FIRST_WAIT,
    ):
        if key != KEY and key not in os.environ:  # perhaps the key itself: it is not repeated
            raise ValueError(
                "--judge-key names no environment variable that is set; it is the name of the one "
                f"that holds the key, such as {KEY}, not the key"
            )
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"--judge {url!r} is no address such as http://localhost:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                f"--judge {parts.hostname}: no key belongs into the address; put it into the "
                f"environment variable {key}"
            )
        self.url, self.model, self.name = url.rstrip("/"), model, model
        self.workers, self.first_wait, self.key = workers, first_wait, key
        self._secret = os.environ.get(key, "").strip()
        if not (self._secret.isascii() and self._secret.isprintable()):
            raise ValueError(f"the environment variable {key} holds what no key of a server is")
        self._patience = patience
        self._replies = _Replies(cache)
        self._stop = threading.Event()

    def template(self, task: Task, class_names: Sequence[str]) -> str:
        """What is asked, with the places for answer and reference left open."""
        return PROMPTS[task].replace("{classes}", _numbered(class_names))

    def __call__(
        self, task: Task, said: Sequence[str], references: Sequence[str], class_names: Sequence[str]
    ) -> list[Verdict]:
        template = self.template(task, class_names)
        asked = [
            template.replace("{reference}", reference).replace("{said}", text.strip())
            for text, reference in zip(said, references, strict=True)
        ]

        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        client = httpx2.Client(headers=headers, timeout=self._patience)

        def judge(at: int) -> Verdict:
            if not said[at].strip():
                return Verdict(None, EMPTY)
            return verdict(self._ask(client, asked[at]), task, len(class_names))

        self._stop.clear()
        with client, ThreadPoolExecutor(self.workers) as pool:
            futures = [pool.submit(judge, at) for at in range(len(said))]
            try:
                shown = track(futures, f"judge {self.model}", total=len(futures))
                return [future.result() for future in shown]
            except BaseException:
                self._stop.set()  # nobody waits for a judge that is down once more
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _ask(self, client: httpx2.Client, question: str) -> dict[str, Any]:
        """{"text", "finish", "prompt_tokens", "completion_tokens"} of the reply."""
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, **SETTINGS}
        known = self._replies.get(body)
        if known is None:
            known = self._send(client, body)
            self._replies.add(body, known)
        return known

    def _send(self, client: httpx2.Client, body: dict[str, Any]) -> dict[str, Any]:
        wait, trouble = self.first_wait, ""
        for attempt in range(ATTEMPTS):
            if attempt:
                if self._stop.wait(wait * (1 + random.random())):
                    break
                wait = min(2 * wait, LONGEST_WAIT)
            try:
                response = client.post(f"{self.url}/chat/completions", json=body)
                if response.status_code in AGAIN or response.status_code >= 500:
                    trouble = f"it answers {response.status_code}"
                    wait = max(wait, _asked_to_wait(response.headers.get("retry-after", "")))
                    continue
                if response.status_code == 400 and any(it in response.text for it in FILTERED):
                    return dict(KEPT_BACK)
                if response.status_code >= 300:
                    raise ValueError(self._refusal(response))
                found = response.json()
                if attempt + 1 == ATTEMPTS and found.get("choices", "none") in (None, []):
                    return dict(KEPT_BACK)  # as DashScope does
                return self._hide(_reply(found))
            except httpx2.RequestError as error:
                trouble = f"{type(error).__name__} {self._plain(str(error))}".strip()
            except (
                json.JSONDecodeError,
                UnicodeDecodeError,
                LookupError,
                TypeError,
                AttributeError,
            ):
                trouble = "its reply is no chat completion"
        raise ConnectionError(
            f"the judge at {self.url} failed {ATTEMPTS} times ({trouble}); what it has said is "
            "kept, so the same command goes on when it is back"
        )

    def _refusal(self, response: Any) -> str:
        if response.status_code in (401, 403):
            return (
                f"the judge at {self.url} wants another key ({response.status_code}): put it into "
                f"the environment variable {self.key}"
            )
        why = self._plain(response.text)
        return f"the judge at {self.url} refuses the question ({response.status_code}): {why}"

    def _plain(self, text: str) -> str:
        """A server's own words in short, without the key, which some repeat."""
        text = text.replace(self._secret, "[key]") if self._secret else text
        return " ".join(text.split())[:200]

    def _hide(self, reply: dict[str, Any]) -> dict[str, Any]:
        if self._secret:
            reply["text"] = reply["text"].replace(self._secret, "[key]")
        return reply


class _Replies:
    """Replies on disk, a line each, by digest of what was asked; model and settings are in it."""

    def __init__(self, path: Path | None):
        self.path, self._known = path, {}
        self._lock = threading.Lock()
        for line in path.read_bytes().split(b"\n") if path and path.is_file() else []:
            try:
                row = json.loads(line)
                self._known[row["asked"]] = row["reply"]
            except (ValueError, KeyError, TypeError):
                continue  # half a line of a killed process

    def get(self, body: dict[str, Any]) -> dict[str, Any] | None:
        return self._known.get(_digest(body))

    def add(self, body: dict[str, Any], reply: dict[str, Any]) -> None:
        with self._lock:
            self._known[_digest(body)] = reply
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                line = json.dumps({"asked": _digest(body), "model": body["model"], "reply": reply})
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"\n{line}\n")  # begins anew behind a half line


def verdict(reply: dict[str, Any], task: Task, classes: int) -> Verdict:
    """The verdict in a reply: one JSON object of the asked form, or none that is valid."""
    tokens = reply["prompt_tokens"], reply["completion_tokens"]
    text = re.sub(r"^```(json)?\s*|\s*```$", "", reply["text"].strip())
    try:
        found = json.loads(text)
        reason = str(found.get("reason", ""))
        value = found[{"closed": "class", "open": "same", "caption": "score"}[task]]
    except (ValueError, KeyError, AttributeError):
        causes = {"length": " (cut off)", "content_filter": " (kept back by a filter)"}
        cut = causes.get(reply["finish"], "")
        return Verdict(None, f"no verdict{cut}: {' '.join(text.split())[:100]!r}", *tokens)
    if task == "open":
        valid = isinstance(value, bool)
    else:
        most = classes - 1 if task == "closed" else 100
        valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
    if not valid:
        return Verdict(None, f"verdict {value!r}: {reason}"[:200], *tokens)
    return Verdict(float(value), reason, *tokens)


def _reply(found: Any) -> dict[str, Any]:
    """What counts of a chat completion; LookupError or TypeError where it is none."""
    choice, usage = found["choices"][0], found.get("usage") or {}
    text = choice["message"].get("content") or ""  # a filtered reply has none
    if not isinstance(text, str):
        raise TypeError(text)
    return {
        "text": text,
        "finish": choice.get("finish_reason"),
        "prompt_tokens": usage.get("prompt_tokens") or 0,
        "completion_tokens": usage.get("completion_tokens") or 0,
    }


def _numbered(class_names: Sequence[str]) -> str:
    return "\n".join(f"{row}: {name.replace('_', ' ')}" for row, name in enumerate(class_names))


def _asked_to_wait(header: str) -> float:
    return min(float(header), LONGEST_WAIT) if header.isdigit() else 0.0


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
