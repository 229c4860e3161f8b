"""Infilling: what policy and reward see, which sentences may be written, what the seeds and the candidates are."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_files import write_stories
from tiny_tokenizers import BYTE_LEVEL

from gfn_jax.models import decoder
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.sections import checked
from gfn_jax.tasks.infilling import Infilling, InfillingConfig
from gfn_jax.worlds.stories_corpus import build_tokenizer

TINY = InfillingConfig(
    path=None,
    train_stories=30,
    validation_stories=5,
    test_stories=5,
    seed_stories=20,
    min_length=4,
    max_length=9,
    unlisted=0.0,
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def task(tokenizer):
    return Infilling(TINY, tokenizer, len(tokenizer))


def real(tokens, row):
    return np.asarray(tokens.ids)[row][np.asarray(tokens.mask)[row]].tolist()


def test_what_is_seen(task, tokenizer):
    problem, query = task.splits["test"][0], task.queries("test")
    assert tokenizer.decode(real(query.prompt, 0)) == (
        "Beginning: Tom took a book to the farm. He was tired and met Lily there. It was a very windy day.\n"
        "Ending: He went home without the book.\nMiddle:"
    )
    assert tokenizer.decode(real(query.context, 0)) == problem.beginning
    assert tokenizer.decode(real(query.answer, 0)) == ". He went home without the book."
    assert real(query.answer, 0)[0] == task.stop_id
    assert problem.story(" He dropped the book in the well") == (
        f"{problem.beginning} He dropped the book in the well. {problem.ending}"
    )


def test_the_parts_are_the_story(task, tokenizer):
    # X Z Y as tokens must be the tokens of the story: the base is asked for the likelihood of a text it knows.
    query = task.queries("train")
    for row, problem in enumerate(task.splits["train"]):
        parts = real(query.context, row) + task.encode_middle(problem, problem.middle) + real(query.answer, row)
        assert parts == tokenizer(problem.story(problem.middle[:-1]))["input_ids"]


def test_the_reward_is_the_likelihood_of_the_story(task, tokenizer):
    model = ModelConfig(len(tokenizer), 16, 1, 2, 2, 8, 16, max_positions=64, rotary_dim=8)
    base = LanguageModel(model, decoder.init_params(jax.random.key(0), model))
    reward, query = task.reward(model), jax.tree.map(lambda x: x[:3], task.queries("test"))
    problems = task.splits["test"][:3]
    rows = [task.encode_middle(problem, problem.middle) for problem in problems]
    ids = np.full((3, TINY.max_length + 1), task.stop_id, np.int32)
    for row, tokens in zip(ids, rows):
        row[: len(tokens)] = tokens
    rollout = teacher_force(
        jnp.asarray(ids), jnp.asarray([len(x) for x in rows]), Rules(task.constraint(), task.environment)
    )
    log_reward = jax.jit(reward.log_reward)(base, reward.prepare(base), query, rollout)
    for n, problem in enumerate(problems):
        text = tokenizer(problem.story(problem.middle[:-1]))["input_ids"]
        begin = len(real(query.context, n))
        tokens = jnp.asarray([text])
        hidden, _ = decoder.forward(
            base,
            tokens,
            jnp.arange(len(text))[None],
            jnp.tril(jnp.ones((len(text),) * 2, bool))[None],
        )
        log_p = jax.nn.log_softmax(decoder.logits(decoder.select_head(base), hidden[0]))
        expected = sum(log_p[t - 1, text[t]] for t in range(begin, len(text)))
        assert math.isclose(log_reward[n, len(rows[n])], expected, abs_tol=1e-3)


def test_a_target_may_be_kept_to_what_the_generator_could_write(task, tokenizer):
    kept = Infilling(dataclasses.replace(TINY, unlisted=7.0), tokenizer, len(tokenizer))
    plain, support = kept.reward(None).factors
    assert plain == task.reward(None)
    for split in kept.splits:
        query = jax.tree.map(lambda x: x[2:4], kept.queries(split))
        own, other = (list(kept.candidates(split, example)) for example in (2, 3))
        slip = next(row for row in other if row not in own)  # a sentence of another story
        rows = [own[0], slip, slip, other[-1]]
        ids = np.full((4, TINY.max_length + 1), task.stop_id, np.int32)
        for row, tokens in zip(ids, rows):
            row[: len(tokens)] = tokens
        lengths = np.array([len(row) for row in rows])
        rollout = teacher_force(jnp.asarray(ids), jnp.asarray(lengths), Rules(task.constraint(), task.environment))
        found = support.log_reward(None, support.prepare(None), query, rollout)[np.arange(4), lengths]
        assert found.tolist() == [0, -7, 0, 0]


def test_one_sentence_is_all_that_may_be_written(task, tokenizer):
    constraint = task.constraint()
    texts = [tokenizer.decode([i]) for i in np.asarray(constraint.token_ids)]
    assert texts.count(".") == 1
    assert not any("\n" in text or "<" in text for text in texts)
    assert {" He", " dropped", " ball"} <= set(texts)
    assert (constraint.min_length, constraint.max_length) == (4, 9)


def test_seeds_are_the_true_sentences(task, tokenizer):
    seeds = task.seeds()
    assert np.asarray(seeds.example_id).tolist() == list(range(20))
    for row, length, problem in zip(np.asarray(seeds.completion), np.asarray(seeds.length), task.splits["train"]):
        assert task.decode(row[:length].tolist()).strip() + "." == problem.middle
    rollout = teacher_force(seeds.completion, seeds.length, Rules(task.constraint(), task.environment))
    assert np.asarray(rollout.action_mask).any(axis=1).all()


def test_seeds_that_cannot_be_written_are_counted_and_said(tokenizer, caplog):
    def seeds(longest):
        return Infilling(dataclasses.replace(TINY, max_length=longest), tokenizer, len(tokenizer)).seeds()

    lengths = np.asarray(seeds(9).length)
    assert not caplog.records
    shorter = int(lengths.max()) - 1
    found = seeds(shorter)
    count = int((lengths > shorter).sum())
    assert len(found.length) == len(lengths) - count > 0
    assert f"{count} of {len(lengths)} seed_stories are no sentence of 4 to {shorter} tokens" in caplog.text
    with pytest.raises(ValueError, match=f"{len(lengths)} of {len(lengths)} seed_stories are no sentence"):
        seeds(int(lengths.min()) - 1)


def test_candidates_are_the_posterior(task, tokenizer):
    for example, problem in enumerate(task.splits["test"]):
        table = task.candidates("test", example)
        assert math.isclose(sum(table.values()), 1.0)
        assert table[tuple(task.encode_middle(problem, problem.middle))] > 0
        assert 0 in table.values()
    short = Infilling(dataclasses.replace(TINY, max_length=6), tokenizer, len(tokenizer))
    with pytest.raises(ValueError, match="the lengths of Z exclude"):
        short.candidates("test", 0)


def test_splits_share_no_beginning(task):
    beginnings = [{problem.beginning for problem in problems} for problems in task.splits.values()]
    assert not beginnings[0] & beginnings[1]
    assert not beginnings[0] & beginnings[2]


def test_sections_are_checked():
    with pytest.raises(ValueError, match="seed_stories is 31"):
        dataclasses.replace(TINY, seed_stories=31)
    with pytest.raises(ValueError, match="of ROCStories no sentences are listed"):
        dataclasses.replace(TINY, path="stories", unlisted=1.0)
    with pytest.raises(ValueError, match=r"infilling\.test_stories is 0; it must be a whole number from 1"):
        checked(InfillingConfig, vars(TINY) | {"test_stories": 0}, "infilling.")


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def real_stories(request, tokenizer_named, tmp_path_factory):
    """The task on a tokenizer of bytes and stories of another author, some of whose sentences cannot be written."""
    folder = tmp_path_factory.mktemp("stories")
    middles = ("She sold it", "She yelled 'Stop!' at the dog.", "She sold it to a neighbour for $3.50.", "What a day!")
    fourth = [*middles, "She went to the shop to buy a new one."]
    stories = [
        (f"Ann lost hat {n}.", "She was sad.", "It was red.", fourth[n % 5], "It was over.") for n in range(1200)
    ]
    write_stories(folder / "stories.csv", stories)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GFN_JAX_CACHE", str(folder / "cache"))
        config = dataclasses.replace(TINY, path=str(folder), min_length=3, max_length=25)
        tokenizer = tokenizer_named(request.param)
        task = Infilling(config, tokenizer, len(tokenizer))
        assert len(task.splits["train"]) == 30
    return task


def test_real_stories(real_stories):
    task = real_stories
    query, problem = task.queries("test"), task.splits["test"][0]
    assert task.tokenizer.decode(real(query.prompt, 0)) == problem.prompt
    assert task.tokenizer.decode(real(query.answer, 0)) == ". It was over."
    assert task.candidates("test", 0) == {}
    # Only one of five authors' sentences is one sentence that ends in a full stop and holds no other end.
    assert {
        task.decode(row[:n].tolist()) for row, n in zip(np.asarray(task.seeds().completion), task.seeds().length)
    } == {" She went to the shop to buy a new one"}
    texts = [task.tokenizer.decode([i]) for i in np.asarray(task.constraint().token_ids)]
    assert sum("." in text for text in texts) == 1
    assert not any(end in text for text in texts for end in "!?\n")
