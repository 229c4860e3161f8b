"""A language model as judge of a story's coherence, 1 to 5, behind any OpenAI-compatible endpoint.

The rubric is that of Hu et al. 2024, appendix C (after Liu et al. 2023), in other words: structure, one narrative
rather than a heap of facts, realism, sentences that make sense together; faults of grammar or logic lower the score.
Only the number is asked for. Nothing is sent anywhere unless a configuration names a URL.
"""

import dataclasses
import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)

RUBRIC = """Please rate a short story of five sentences on a single scale.

Coherence, from 1 (lowest) to 5 (highest): how well the sentences work together as a whole. A coherent story is well \
structured; it is more than a collection of related statements, each sentence leads on to the next and they tell one \
narrative; what happens is realistic and makes sense.

Read the whole story first and check that its sentences follow in a logical order. If there are mistakes of grammar or \
of logic, give a lower score without explaining them.

Story:
{story}

Answer with the score alone.
Coherence:"""

_SCORE = re.compile(r"(?<![\d.])[1-5](?:\.\d+)?(?!\d)")


@dataclasses.dataclass(frozen=True)
class Judge:
    """Where the judge is.

    Attributes:
        url: of the API, up to and with its version ("http://localhost:8000/v1"); it is logged, so it holds no secret.
        model: its name there.
        timeout: seconds to wait for an answer.
        retries: further attempts after one that failed.
        key_variable: the environment variable that holds the key; none is sent where it is not set.

    Raises:
        ValueError: a URL or a key that cannot be one; neither is repeated.
    """

    url: str
    model: str
    timeout: float = 60.0
    retries: int = 2
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self):
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError(
                "the judge's URL must be http(s)://HOST[:PORT]/PATH, without a user name, a password or a query; "
                f"its key is read from {self.key_variable}"
            )
        self._key()

    def _key(self) -> str:
        """The key, or nothing. Raises ValueError where no header could hold it."""
        key = os.environ.get(self.key_variable, "").strip()
        if not re.fullmatch("[!-~]*", key):
            raise ValueError(
                f"{self.key_variable} holds a character that no key has: a space, a line break or no ASCII"
            )
        return key

    def check(self) -> None:
        """Asks for the list of models, without a key: any answer shows that somebody is there.

        Raises:
            ValueError: nobody is.
        """
        try:
            urllib.request.urlopen(f"{self.url.rstrip('/')}/models", timeout=self.timeout).close()
        except urllib.error.HTTPError:
            return
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(f"evaluation.judge_url: no judge answers at {self.url}: {error}") from error

    def score(self, story: str) -> float | None:
        """A story's coherence; None where the judge could not be asked, or gave no score."""
        failure = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(0.5 * 2**attempt, 10.0))
            try:
                reply = self._ask(RUBRIC.format(story=story))
                found = _SCORE.search(reply)
                if found and float(found[0]) <= 5:
                    return float(found[0])
                failure = f"no score in {reply!r:.80}"
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                failure = str(error) or type(error).__name__
        logger.warning("the judge at %s failed %d times: %s", self.url, self.retries + 1, failure)
        return None

    def mean_score(self, stories: Sequence[str]) -> dict[str, float]:
        """`judge`, the mean score (absent where none was given), and `judge_failed`, how many stories have none."""
        scores = [self.score(story) for story in stories]
        given = [score for score in scores if score is not None]
        failed = {"judge_failed": float(len(scores) - len(given))}
        return {"judge": sum(given) / len(given), **failed} if given else failed

    def _ask(self, prompt: str) -> str:
        """One chat completion.

        Raises:
            OSError: the endpoint cannot be reached, or refuses; its message says why.
            ValueError, KeyError, IndexError, TypeError: the answer is no chat completion.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 8,
        }
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.build_opener(_StayHere).open(request, timeout=self.timeout) as response:
            return str(json.loads(response.read())["choices"][0]["message"]["content"])


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key is for one host alone, and a question sent on would lose its body."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        host = urllib.parse.urlsplit(newurl).hostname
        raise urllib.error.HTTPError(req.full_url, code, f"redirects to {host} are not followed", headers, fp)
