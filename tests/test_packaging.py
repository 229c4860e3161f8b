"""What is said twice is said alike: versions, extras, what images are made of."""

import pathlib
import re
import tomllib

import gfn_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_in_one_place_and_the_citation():
    assert "version" in PROJECT["dynamic"]
    assert f"\nversion: {gfn_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {gfn_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_extras_are_those_that_were_promised_and_ask_for_the_same_jax():
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"cuda12", "cuda13", "tpu", "wandb", "eval", "dev"}
    (needed,) = re.findall(r"^jax([<>=]\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    for name in ("cuda12", "cuda13", "tpu"):
        assert extras[name] == [f"jax[{name}]{needed}"]
    for name, extra in (("tpu", "tpu"), ("gpu", "${CUDA}")):
        assert f'"jax[{extra}]{needed}"' in (ROOT / "launch" / f"Dockerfile.{name}").read_text()


def test_the_lock_holds_all_that_is_needed():
    locked = {line.partition("==")[0].lower() for line in (ROOT / "requirements-lock.txt").read_text().splitlines()}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if name := re.match(r"[\w-]+", line):
            assert name[0].lower().replace("_", "-") in locked, line


def test_images_are_made_of_files_that_are_sent_and_there():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for kind in ("gpu", "tpu"):
        text = (ROOT / "launch" / f"Dockerfile.{kind}").read_text()
        copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()}
        assert copied == sent
        assert all((ROOT / name).exists() for name in copied)
    assert "launch/Dockerfile.tpu" in (ROOT / "launch" / "jobset.yaml").read_text()
