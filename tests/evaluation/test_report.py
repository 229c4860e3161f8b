import json

import pytest

from gfn_jax.evaluation.report import Findings, write_results


@pytest.mark.parametrize(
    ("methods", "named"),
    [
        ({"policy": {"accuracy_3": float("nan")}, "base": {}}, "policy.accuracy_3 is nan"),
        ({"policy": {"kl": 0.1}, "base": {"listed": [0.5, float("nan")]}}, "base.listed is nan"),
    ],
)
def test_what_is_no_number_is_no_finding(tmp_path, methods, named):
    with pytest.raises(ValueError, match=named):
        Findings(methods, "page")
    with pytest.raises(ValueError, match=named):
        write_results(tmp_path / "results.json", methods)
    assert list(tmp_path.iterdir()) == []


def test_an_infinite_distance_is_one(tmp_path):
    found = {"policy": {"kl": float("inf"), "sampled_kl": None}}
    assert Findings(found, "page").methods == found
    write_results(tmp_path / "results.json", found)
    assert json.loads((tmp_path / "results.json").read_text()) == found
