"""The judge against an HTTP server of our own: what is sent, what is read, failures retried and then reported."""

import http.server
import json
import threading

import pytest

from gfn_jax.evaluation.judge import Judge


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the next of `server.replies`: a text as a chat completion, a number as an HTTP status."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        reply = self.server.replies.pop(0)
        self.send_response(reply if isinstance(reply, int) else 200)
        self.end_headers()
        if not isinstance(reply, int):
            self.wfile.write(reply if isinstance(reply, bytes) else completion(reply))

    def log_message(self, *args):
        pass


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.replies = [], []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def judge_of(server, **fields):
    return Judge(url=f"http://127.0.0.1:{server.server_port}/v1/", model="some-model", timeout=5, **fields)


def test_what_is_asked(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.replies = ["4"]
    assert judge_of(server).score("Ann ran. {She} fell.") == 4
    ((path, key, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert key == "Bearer secret"
    assert body["model"] == "some-model"
    assert body["temperature"] == 0
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert "Ann ran. {She} fell." in message["content"]
    assert "from 1 (lowest) to 5 (highest)" in message["content"]


def test_no_key_is_sent_where_there_is_none(server):
    server.replies = ["3"]
    judge_of(server).score("Ann ran.")
    assert server.asked[0][1] is None


@pytest.mark.parametrize(
    ("reply", "score"), [("5", 5), ("Coherence: 4", 4), (" 3.5\n", 3.5), ("I give it a 2.", 2), ("4/5", 4)]
)
def test_replies(server, reply, score):
    server.replies = [reply]
    assert judge_of(server).score("Ann ran.") == score


def test_failures_are_retried(server):
    server.replies = [500, b"no json", "a fine story", "4"]
    assert judge_of(server, retries=3).score("Ann ran.") == 4
    assert len(server.asked) == 4


def test_failures_are_reported(server, caplog):
    server.replies = ["4", 500, "0", "15", "2"]
    found = judge_of(server, retries=2).mean_score(["one", "two", "three"])
    assert found == {"judge": 3.0, "judge_failed": 1.0}
    assert "failed 3 times: no score in '15'" in caplog.text


def test_nobody_there(server, caplog):
    judge_of(server).check()  # it has no list of models; but it answers
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match="no judge answers at http://127"):
        judge_of(server).check()
    assert judge_of(server, retries=1).mean_score(["one"]) == {"judge_failed": 1.0}
    assert "failed 2 times" in caplog.text
