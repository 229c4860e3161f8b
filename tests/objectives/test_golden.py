"""The paper's released losses, value and gradient, from reference vectors computed by its own code.

Ours reproduces: next_sentence and the notebook's SubTB (`released_mean`), the notebook's DB (`row_mean`),
Eq. 3 (`paper_sum`). On purpose it does not
  * give NaN for a batch without a pair, or for a DB batch with a row of no tokens: their weight is 0;
  * count the main script's extra state n + 1 of rows that emitted their stop: its pairs (i, n + 1) repeat
    (i, n) one lambda further on. Ours with that state added is the main script's SubTB and DB; ours with the
    repeated pairs added by hand is its SubTB too.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax.objectives import subtb

COUNTS = {"loss_next_sentence": 29, "loss_infill": 27}
ROWS, COLUMNS = 8, 13  # every case is padded to one shape: one compilation a lambda, and padding is tested too


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def load(folder, name: str) -> list[tuple[dict, dict]]:
    """(settings, arrays) of each case."""
    vectors = np.load(folder / f"{name}.npz")
    cases = []
    for case in json.loads((folder / f"{name}.json").read_text()):
        key = case["key"]
        arrays = {k.removeprefix(key): vectors[k] for k in vectors.files if k.startswith(key)}
        cases.append((case, arrays))
    assert len(cases) == COUNTS[name]
    return cases


def pad(array: np.ndarray) -> np.ndarray:
    """[ROWS, COLUMNS]; padding is NaN."""
    padded = np.full((ROWS, COLUMNS), np.nan)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


def masks(n_tokens: np.ndarray, extra: np.ndarray | int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States 0..n (and `extra` more) of the rows there are."""
    row_mask = np.arange(ROWS) < len(n_tokens)
    last = np.zeros(ROWS, int)
    last[: len(n_tokens)] = n_tokens + extra
    return (np.arange(COLUMNS) <= last[:, None]) & row_mask[:, None], row_mask


@functools.partial(jax.jit, static_argnums=(5, 6))
def loss_and_gradients(log_pf, log_pterm, log_reward, state_mask, row_mask, subtb_lambda, normalization):
    def loss(log_pf, log_pterm):
        flow = subtb.log_flow(log_reward, log_pterm, 1.0, state_mask)
        u = subtb.potential(flow, log_pf, state_mask, state_mask)
        options = {"subtb_lambda": subtb_lambda, "normalization": normalization}
        weighted = subtb.subtb(u, state_mask, row_mask, **options)
        return subtb.ratio(weighted.total, weighted.weight), weighted

    (value, weighted), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(log_pf, log_pterm)
    return value, weighted, gradients


def close(ours, theirs) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10 * np.abs(theirs).max())


def ours(arrays: dict, names: tuple[str, str, str], mask: tuple, subtb_lambda: float, normalization: str):
    return loss_and_gradients(*(pad(arrays[n]) for n in names), *mask, subtb_lambda, normalization)


def test_next_sentence(golden_folder):
    names, empty = ("log_pf", "log_pterm", "log_r"), []
    for case, arrays in load(golden_folder, "loss_next_sentence"):
        mask = masks(arrays["n_tokens"])
        value, weighted, gradients = ours(arrays, names, mask, case["lam"], "released_mean")
        np.testing.assert_allclose(weighted.weight, case["total_weight"], rtol=1e-12)
        if case["loss_is_nan"]:
            empty.append(case["key"])
            assert (float(value), float(weighted.total), float(weighted.weight)) == (0, 0, 0)
            assert not any(np.any(g) for g in gradients)
            continue
        close(value, case["loss"])
        rows, columns = arrays["log_pf"].shape
        for gradient, name in zip(gradients, ("grad_log_pf", "grad_log_pterm"), strict=True):
            close(gradient[:rows, :columns], arrays[name])
            assert not np.any(gradient[rows:])
            assert not np.any(gradient[:, columns:])
        if case["lam"] == 1:
            _, weighted, _ = ours(arrays, names, mask, 1.0, "paper_sum")
            close(weighted.total, arrays["eq3_sum_per_row"].sum())
            assert weighted.weight == rows
    assert len(empty) == 1


INFILL = ("logPF", "eos_logprob", "logrewards")


def test_infill_notebook_subtb(golden_folder):
    compared = 0
    for case, arrays in load(golden_folder, "loss_infill"):
        value, weighted, gradients = ours(arrays, INFILL, masks(arrays["n_tokens"]), case["lam"], "released_mean")
        if case["lam"] == 1:
            close(weighted.total, arrays["eq3_sum_per_row"].sum())
        if case["notebook_modified_subtb_status"] == "nan":
            # No row has a pair; or their mask took a stop token in the prompt for the end.
            assert weighted.weight == 0 or case["tag"] == "prompt contains one eos"
            continue
        close(value, case["notebook_modified_subtb"])
        rows, columns = arrays["logPF"].shape
        for gradient, name in zip(gradients, ("logPF", "eos"), strict=True):
            close(gradient[:rows, :columns], arrays[f"notebook_modified_subtb_grad_{name}"])
        compared += 1
    assert compared == 25


def emitted(case: dict, arrays: dict) -> np.ndarray:
    """Rows whose stop the main script counts as one more state."""
    prompt_has_stop = case["tag"] == "prompt contains one eos"  # its mask then reads `>= 1`
    return (arrays["n_tokens"] < case["max_len"]) & (not prompt_has_stop)


def test_infill_main_subtb_is_ours_with_the_stop_as_a_state(golden_folder):
    for case, arrays in load(golden_folder, "loss_infill"):
        mask = masks(arrays["n_tokens"], emitted(case, arrays))
        value, _, gradients = ours(arrays, INFILL, mask, case["lam"], "released_mean")
        close(value, case["main_modified_subtb"])
        rows, columns = arrays["logPF"].shape
        for gradient, name in zip(gradients, ("logPF", "eos"), strict=True):
            close(gradient[:rows, :columns], arrays[f"main_modified_subtb_grad_{name}"])


def test_infill_main_subtb_is_ours_with_the_last_pairs_counted_again(golden_folder):
    """On what the sampler produces: + sum_i lambda^(n-i) (u_i - u_n)^2 over + sum_{i<=n} lambda^(n-i)."""
    differing = 0
    for case, arrays in load(golden_folder, "loss_infill"):
        if case["arrays"] != "sampler-consistent":
            continue
        value, weighted, _ = ours(arrays, INFILL, masks(arrays["n_tokens"]), case["lam"], "released_mean")
        total, weight = float(weighted.total), float(weighted.weight)
        for row in np.flatnonzero(emitted(case, arrays)):
            n = arrays["n_tokens"][row]
            before = np.concatenate([[0], np.cumsum(arrays["logPF"][row, :n])])
            u = arrays["logrewards"][row, : n + 1] - arrays["eos_logprob"][row, : n + 1] - before
            again = case["lam"] ** np.arange(n, -1, -1)
            total, weight = total + (again * (u - u[n]) ** 2).sum(), weight + again.sum()
        close(total / weight, case["main_modified_subtb"])
        differing += not np.isclose(value, case["main_modified_subtb"])
    assert differing > 5


def test_infill_db(golden_folder):
    compared = {"main_modified_db": 0, "notebook_modified_db": 0}
    for case, arrays in load(golden_folder, "loss_infill"):
        n_tokens = arrays["n_tokens"]
        stop = arrays["n_tokens"] < case["max_len"]  # the db masks look at the completion only
        for name, extra in (("main_modified_db", stop), ("notebook_modified_db", 0)):
            value, weighted, _ = ours(arrays, INFILL, masks(n_tokens, extra), 0.0, "row_mean")
            if case[f"{name}_status"] == "ok":
                close(value, case[name])
                compared[name] += 1
            elif case[f"{name}_status"] == "nan":
                assert weighted.weight == np.sum(n_tokens > 0) < len(n_tokens)
                assert jnp.isfinite(value)
    assert compared == {"main_modified_db": 23, "notebook_modified_db": 15}
