"""Run in a process that shows eight devices: prints `equal` where evaluation on them finds what it finds on one."""

import jax
import numpy as np
from tiny_worlds import left_padded, random_params, tiny

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.rows import copies_of, parts
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.training.mesh import BASE_RULES, MeshConfig, make_mesh, place, shardings

CONFIG = tiny()
PARAMS = random_params(CONFIG)


def sample(params, prompts: int, samples: int, batch: int) -> list:
    prompt = left_padded([[6, 7 + i % 9] for i in range(prompts)])
    constraint = make_constraint(23, 5, 3, token_ids=np.arange(3))
    key = jax.random.key(0)
    return sample_completions(
        LanguageModel(CONFIG, params), prompt, Rules(constraint, NoTool()), key, samples, 1.0, batch
    )


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    split = place(PARAMS, shardings(PARAMS, mesh, BASE_RULES))
    # Prompts fewer than devices share them; others are filled up, in each part.
    assert (copies_of(1, 16, split), copies_of(3, 2, split), copies_of(12, 16, split)) == (8, 1, 1)
    for size, shape in ((3, 8), (10, 16)):
        for part, count in parts(np.arange(10), size, split):
            assert len(part) == shape
            assert {len(shard.data) for shard in part.addressable_shards} == {shape // 8}
            np.testing.assert_array_equal(part[count:], [part[count - 1]] * (shape - count))
    for prompts, samples, batch in ((1, 16, 1), (5, 2, 3)):
        assert sample(split, prompts, samples, batch) == sample(PARAMS, prompts, samples, batch)
    print("equal")
