from gfn_jax.defaults import gflownet_config
from gfn_jax.sections import described


def test_how_a_run_is_looked_at_is_no_part_of_what_its_workdir_belongs_to():
    config = gflownet_config("arithmetic")
    before = described(config)
    config.evaluation = {"every": 20, "questions": 100}
    config.log_every = 1
    assert described(config) == before
    config.seed = 1
    assert described(config) != before
