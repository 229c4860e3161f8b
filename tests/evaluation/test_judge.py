"""The judge against an HTTP server of our own: what is sent, what is read, failures retried and then reported."""

import http.server
import json
import threading

import pytest

from gfn_jax.evaluation.judge import Judge
from gfn_jax.launch import main


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the next of `server.replies`: a text as a chat completion, a number as an HTTP status.

    A URL as a text is where it redirects to, with status 302, which is then asked by GET.
    """

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        reply = self.server.replies.pop(0)
        redirects = isinstance(reply, str) and reply.startswith("http://")
        self.send_response(reply if isinstance(reply, int) else 302 if redirects else 200)
        if redirects:
            self.send_header("Location", reply)
        self.end_headers()
        if not isinstance(reply, int):
            self.wfile.write(reply if isinstance(reply, bytes) else completion(reply))

    do_GET = do_POST

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


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_key_follows_no_redirect(server, monkeypatch, caplog, host):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.replies = [f"http://{host}:{server.server_port}/elsewhere", "4"]
    assert judge_of(server, retries=0).score("Ann ran.") is None
    assert [path for path, _, _ in server.asked] == ["/v1/chat/completions"]
    assert f"redirects to {host} are not followed" in caplog.text


def test_a_key_is_stripped(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " secret\n")
    server.replies = ["4"]
    assert judge_of(server).score("Ann ran.") == 4
    assert server.asked[0][1] == "Bearer secret"


@pytest.mark.parametrize("key", ["first\nsecond", "first second", "first\u2026second", "first\x07second"])
def test_a_key_that_is_none_is_refused_and_not_repeated(server, monkeypatch, caplog, key):
    asked = judge_of(server, retries=0)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match=r"^OPENAI_API_KEY holds a character that no key has") as caught:
        judge_of(server)
    assert asked.score("Ann ran.") is None
    assert "OPENAI_API_KEY holds a character" in caplog.text
    for half in ("first", "second"):
        assert half not in str(caught.value) + caplog.text
    assert not server.asked


@pytest.mark.parametrize(
    "url", ["http://me:secret@host/v1", "http://secret@host", "http://host/v1?key=secret", "host/v1"]
)
def test_a_url_that_holds_a_secret_or_is_none_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="must be http") as caught:
        Judge(url, "some-model")
    assert "secret" not in str(caught.value)


def test_a_url_with_a_password_is_never_written_down(tmp_path, capsys):
    words = ["--config=configs/infill.py", "--config.evaluation.judge_url=https://me:secret@host/v1"]
    assert main(["launch", *words, "--config.evaluation.judge_model=m", f"--workdir={tmp_path}/run"]) == 2
    said = capsys.readouterr().err
    assert "evaluation.judge_url is a URL with a user name or a password" in said
    assert "secret" not in said
    assert not list(tmp_path.iterdir())


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
    server.replies = [404]  # it has no list of models; but it answers
    judge_of(server).check()
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match="no judge answers at http://127"):
        judge_of(server).check()
    assert judge_of(server, retries=1).mean_score(["one"]) == {"judge_failed": 1.0}
    assert "failed 2 times" in caplog.text
