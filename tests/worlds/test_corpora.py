import pathlib

import numpy as np
import pytest

from gfn_jax.commands.config_flag import load_config
from gfn_jax.runs.config import read_pretraining
from gfn_jax.worlds.corpora import CORPORA, corpus_kind

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def pretraining(name: str):
    return load_config(f"{CONFIGS}/pretrain.py:{name}")


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_fits_its_preset_and_its_tokenizer(name):
    config = pretraining(name)
    assert config.corpus == name
    for phase in config.phases.values():
        phase.documents = 20
    run = read_pretraining(config)
    kind, phases, corpora = run.corpus, run.phases, run.documents
    assert [(phase.first, phase.end) for phase in phases] == [(20 * n, 20 * n + 20) for n in range(len(phases))]
    assert all(phase.steps >= 1 for phase in phases)
    tokenizer = kind.build_tokenizer()
    for corpus in corpora:
        ids, mask = kind.token_rows(corpus, tokenizer)
        assert ids.shape == mask.shape == (20, config.seq_length)
        assert (ids.dtype, mask.dtype) == (np.int32, bool)
        assert 0 <= ids.min() <= ids.max() < len(tokenizer)
        assert tokenizer.unk_token_id not in ids[mask]
        assert mask[:, 0].all()
        assert (np.diff(mask.astype(int)) <= 0).all()  # padded on the right
        assert (ids[~mask] == tokenizer.pad_token_id).all()
        assert len({row.tobytes() for row in ids}) > 1
        again, _ = kind.token_rows(corpus, tokenizer)
        np.testing.assert_array_equal(ids, again)
    assert len({corpus.seed for corpus in corpora}) == len(corpora)


def test_a_corpus_that_is_not_there():
    with pytest.raises(ValueError, match=r"corpus 'poems' is unknown; there are arithmetic, .*"):
        corpus_kind("poems")


def test_a_preset_that_is_not_there():
    with pytest.raises(ValueError, match=r"preset 'poems' is unknown; .* arithmetic"):
        pretraining("poems")
