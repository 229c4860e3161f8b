"""Prompts of one to three sentences: read from a file, or cut out of raw text by the paper's rule.

Hu et al. 2024, section 4.1: 1,000 openings of OpenWebText, 50 of them for validation. The rule for raw text: a prompt
is 1 to 3 neighbouring sentences of one paragraph, of 5 to 30 tokens each. Tokens are words and punctuation marks here,
so the same prompts come out whatever model reads them.

`load_prompts` builds a TFDS data set once (array_record files, no TensorFlow) and reads it back. It is found again by
the contents of the file and the rule, so a file that was edited is another data set.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from absl import logging as absl_logging

from gfn_jax.datasets.building import build_once, default_cache
from gfn_jax.text.files import read_lines, read_text

# What is written with a full stop that ends no sentence.
TITLES = ("Mr", "Mrs", "Ms", "Dr", "Prof", "Rev", "Hon", "Sgt", "Lt", "Col", "Capt", "Gen", "Sen", "Rep", "Gov", "St")
ABBREVIATIONS = ("Jr", "Sr", "vs", "etc", "Inc", "Corp", "Ltd", "Jan", "Feb", "Aug", "Sept", "Oct", "Nov", "Dec")

_TOKEN = re.compile(r"\w+|[^\w\s]")
_SENTENCE_END = re.compile(r"""(?<=[.!?])["'”’)\]]*\s+(?=["'“‘(\[]*[A-Z0-9])""")
_NO_END = re.compile(rf"(?:\b[A-Z]|\b(?:{'|'.join((*TITLES, *ABBREVIATIONS))}))\.\Z")
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclasses.dataclass(frozen=True)
class PromptRule:
    """Which stretches of a text are prompts.

    Attributes:
        sentences: fewest and most sentences of a prompt.
        tokens: fewest and most tokens of each sentence.
    """

    sentences: tuple[int, int] = (1, 3)
    tokens: tuple[int, int] = (5, 30)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, white space between them dropped; titles and initials end none."""
    sentences: list[str] = []
    begin = 0
    for gap in _SENTENCE_END.finditer(text):
        end = gap.start() + len(gap[0].rstrip())
        if not _NO_END.search(text[begin:end]):
            sentences.append(" ".join(text[begin:end].split()))
            begin = gap.end()
    return [sentence for sentence in (*sentences, " ".join(text[begin:].split())) if sentence]


def make_prompts(text: str, rule: PromptRule = PromptRule()) -> list[str]:
    """All prompts that a raw text yields: neighbours, no sentence twice, their lengths by a hash of the first one.

    Args:
        text: paragraphs, separated by empty lines.
        rule: what a prompt is.
    """
    fewest, most = rule.sentences
    prompts = []
    for paragraph in _PARAGRAPH.split(text):
        run: list[str] = []
        for sentence in (*split_sentences(paragraph), ""):
            if rule.tokens[0] <= len(_TOKEN.findall(sentence)) <= rule.tokens[1] and sentence[-1:] in ".!?":
                run.append(sentence)
                wanted = fewest + _digest(run[0]) % (most - fewest + 1)
                if len(run) < wanted:
                    continue
            if len(run) >= fewest:
                prompts.append(" ".join(run))
            run = []
    return prompts


def read_prompts(path: str | os.PathLike, raw: bool = False) -> list[str]:
    """The distinct prompts of a file, in its order: one a line, or by the rule where it is `raw` text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there are none, or the file is not UTF-8.
    """
    try:
        prompts = make_prompts(read_text(path)) if raw else [line.strip() for line in read_lines(path)]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; {PromptsBuilder.MANUAL_DOWNLOAD_INSTRUCTIONS}") from None
    distinct = [prompt for prompt in dict.fromkeys(prompts) if prompt]
    if not distinct:
        what = "no 1-3 neighbouring sentences of 5-30 tokens each" if raw else "no line with text"
        raise ValueError(f"{path} holds no prompts: {what}")
    return distinct


def split_prompts(prompts: Sequence[str], count: int | None, validation: int) -> dict[str, list[str]]:
    """At most `count` prompts (None: all), of which `validation` are held out: a hash decides, not the file's order.

    Raises:
        ValueError: none is held out, or none left to train on.
    """
    count = len(prompts) if count is None else min(count, len(prompts))
    if not 0 < validation < count:
        raise ValueError(
            f"continuation.validation is {validation}; there are {len(prompts)} different prompts, of which "
            f"continuation.count takes {count}, and both splits need one"
        )
    chosen = sorted(prompts, key=_digest)[:count]
    return {"train": chosen[validation:], "validation": chosen[:validation]}


@dataclasses.dataclass(eq=False)
class PromptsConfig(tfds.core.BuilderConfig):
    """Where the prompts come from, and how many."""

    path: str = ""
    raw: bool = False
    count: int | None = None
    validation: int = 50


class PromptsBuilder(tfds.core.GeneratorBasedBuilder):
    """Prompts as a TFDS data set with the splits `train` and `validation`."""

    name = "gfn_prompts"
    VERSION = tfds.core.Version("1.0.0")  # a change of the rule needs a new version: caches are found by it
    RELEASE_NOTES = {"1.0.0": "Splits by hash."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "bring your own text file: one prompt a line, or raw text with empty lines between its paragraphs"
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Openings of one to three sentences.",
            features=tfds.features.FeaturesDict({"prompt": tfds.features.Text()}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
        del dl_manager  # the config names the file
        config = self.builder_config
        splits = split_prompts(read_prompts(config.path, config.raw), config.count, config.validation)
        return {split: self._generate_examples(prompts) for split, prompts in splits.items()}

    def _generate_examples(self, prompts: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
        yield from ((index, {"prompt": prompt}) for index, prompt in enumerate(prompts))


def load_prompts(
    path: str | os.PathLike,
    validation: int,
    raw: bool = False,
    count: int | None = None,
    cache: str | os.PathLike | None = None,
) -> dict[str, list[str]]:
    """The prompts of a file by split, through TFDS.

    Args:
        path: one prompt a line, or raw text.
        validation: how many prompts are held out.
        raw: cut the prompts out of raw text.
        count: how many prompts at most, both splits together; None for all.
        cache: where data sets are kept; the user's cache folder if None.

    Raises:
        FileNotFoundError, ValueError: what is wrong with the file or the numbers.
    """
    split_prompts(read_prompts(path, raw), count, validation)  # an error here is one line, in TFDS many
    contents = hashlib.blake2b(pathlib.Path(path).read_bytes(), digest_size=8).hexdigest()
    name = f"{contents}-{'raw' if raw else 'lines'}-{count or 'all'}-{validation}"
    config = PromptsConfig(
        name=name, path=str(pathlib.Path(path).resolve()), raw=raw, count=count, validation=validation
    )
    root = default_cache() if cache is None else pathlib.Path(cache)
    folder = root / PromptsBuilder.name / name / str(PromptsBuilder.VERSION)
    level = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)  # TFDS warns that the config is our own
    build_once(lambda aside: PromptsBuilder(data_dir=aside, config=config, file_format="array_record"), folder)
    absl_logging.set_verbosity(level)
    sources = tfds.builder_from_directory(folder).as_data_source()
    return {split: [row["prompt"].decode() for row in sources[split]] for split in ("train", "validation")}


def _digest(text: str) -> int:
    """64 stable random bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
