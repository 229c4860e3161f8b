"""The studies: the paper's tables and figures, the comparison of methods, and the ablations; their jobs and rows.

`:tiny` is the models that the project ships, `:paper` the paper's own with its hyperparameters. A row's settings are
its config's, then what tuning chose on validation (`tuning.tuned`), then the row's own, which its title names.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from gfn_jax.studies.lessons import ahead, best, reaches, says, worth
from gfn_jax.studies.study import Column, Job, Results, Row, Study
from gfn_jax.studies.tuning import file_of, tuned

Preset = Literal["tiny", "paper"]
Settings = Mapping[str, Any]
LAUNCH, BASELINES = "gfn_jax.launch", "gfn_jax.commands.baselines"
DEMONSTRATIONS = 50  # given to every method, of which the reward of those that have one shows the first 3 to the base
SHOTS = 3
STEPS = {"tiny": 60, "paper": 1000}  # of configs/arith.py
FEW = 60  # test questions of what is slow: chain-of-thought decoding, exact samples
# Validation questions instead of test ones, and fewer: for what is not a table of the paper.
ON_VALIDATION = {"report": "validation", "certificate.queries": 0}

OPERANDS = tuple(Column(f"accuracy_{k}", f"{k} operands") for k in (3, 4, 5))
DIVERSITY = (
    *(Column(f"right_{k}", f"right at T = 1, {k}") for k in (4, 5)),
    *(Column(f"distinct_{k}", f"distinct right chains of 20, {k}", 2, None) for k in (4, 5)),
    *(Column(f"chain_entropy_{k}", f"their entropy, nats, {k}", 2, None) for k in (4, 5)),
)


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes the jobs of one preset, one a seed."""

    preset: Preset
    seeds: tuple[int, ...]

    def jobs(
        self,
        name: str,
        config: str,
        settings: Settings,
        *,
        module: str = LAUNCH,
        flags: Sequence[str] = (),
        start: Sequence[Job] = (),
        seconds: float = 90.0,
        also: Callable[[int], Settings] = lambda seed: {},
    ) -> tuple[Job, ...]:
        """A job for every seed.

        Args:
            name: of their folders.
            module: what is run.
            config: file without its folder, "arith"; with a preset of its own, "arith:ppo", where it has one.
            settings: key -> value of the config.
            flags: the module's own.
            start: the jobs, one a seed, with whose adapters the policies begin.
            seconds: of one of them with the tiny models.
            also: further settings of a seed.
        """
        if ":" not in config:
            config = f"{config}:{self.preset}"
        made = []
        for place, seed in enumerate(self.seeds):
            own = {"seed": seed, **settings, **also(seed)}
            needs = (start[place].name,) if start else ()
            if start:
                own["start"] = f"{{{start[place].name}}}"
            made.append(
                Job(
                    f"{name}/seed-{seed}",
                    module,
                    (*flags, f"--config=configs/{config.replace(':', '.py:')}", *map(flag, own.items())),
                    needs,
                    seconds if self.preset == "tiny" else 1000 * seconds,
                    2.0 if self.preset == "tiny" else 64.0,
                )
            )
        return tuple(made)


def flag(setting: tuple[str, Any]) -> str:
    """A config's setting as a flag."""
    key, value = setting
    return f"--config.{key}={value}"


def studies(preset: Preset, seeds: Sequence[int]) -> dict[str, Study]:
    """All studies, by name."""
    make = Maker(preset, tuple(seeds))
    arithmetic = Arithmetic(make)
    made = [
        random_numbers(make),
        *continuation(make),
        infilling(make),
        *subjectivity(make),
        *arithmetic.paper(),
        *arithmetic.comparison(),
        arithmetic.ablations(),
    ]
    return {study.name: study for study in made}


def untuned(task: str, *methods: str) -> str:
    """Which methods nobody has tuned, for a study's setting to say."""
    missing = [name for name in methods if not file_of(task, name).exists()]
    return f" Not tuned on validation: {', '.join(missing)}." if missing else ""


# The comparison is one name for several tables.
GROUPS = {"compare": ("diversity", "labels", "tokens", "misspecified")}


def random_numbers(make: Maker) -> Study:
    """Figure 2."""
    gflownet = make.jobs("numbers/gflownet", "rng", tuned("random_numbers", "gflownet"), seconds=110)
    by_ppo = "rng:ppo" if make.preset == "tiny" else "rng:paper_ppo"
    ppo = make.jobs("numbers/ppo", by_ppo, tuned("random_numbers", "ppo"), seconds=60)
    valid, kl = "valid_mass", "kl_to_target"
    return Study(
        "fig2",
        "Can a language model draw a random number?",
        "Figure 2",
        "Uniform on 0..100. Probabilities are exact: every spelling of every number is scored. KL(q|p) is of q given "
        "that it is a number; KL(p|q) counts the mass on what is none. The paper estimates KL from 512,000 samples, "
        "whose noise floor alone is 9.77e-5." + untuned("random_numbers", "gflownet", "ppo"),
        (
            Column(valid, "valid mass", 6),
            Column(kl, "KL(q|p) given valid", 1, "less", scientific=True),
            Column("kl_from_target", "KL(p|q)", 1, "less", scientific=True),
            Column("covered", "numbers covered, of 101", 1),
        ),
        (
            Row("base", gflownet, "base", {valid: "0.505", kl: "3.37"}),
            Row(
                "the reward itself",
                gflownet,
                "target",
                note="R / Z: the floor, for texts that are no number have R, too",
            ),
            Row("PPO", ppo, paper={valid: "0.958"}),
            Row("GFlowNet", gflownet, paper={valid: "1.000", kl: "9.75e-5, sampled"}),
        ),
        lambda cells: reaches(cells, "GFlowNet", kl, "less", 1e-5, "an exact KL of 1e-5 nats given a number"),
        figure="bars",
        figure_columns=(valid,),
        texts=lambda results: sampled(results, gflownet + ppo, ("metrics",), 12),
    )


def continuation(make: Maker) -> tuple[Study, Study]:
    """Figure 3 and Table B.1."""
    hot, cold = ("1", "0.5") if make.preset == "tiny" else ("0.875", "0.8")
    policies = {
        t: make.jobs(f"continuation/gflownet-{t}", "continuation", {"sampling.reward_temperature_end": t}, seconds=100)
        for t in (hot, cold)
    }
    few = {"steps": 12, "optimizer.warmup_steps": 10, "sampling.reward_temperature_end": cold}
    short = make.jobs("continuation/12-steps", "continuation", few)
    first = policies[hot]
    names = {
        "base": "ancestral",
        "tempered_0.8": "tempered 0.8",
        "tempered_0.5": "tempered 0.5",
        "nucleus_0.95": "nucleus 0.95",
        "nucleus_0.9": "nucleus 0.9",
        "greedy": "greedy (one sentence)",
        "beam": "beam search",
        "diverse_beam": "diverse beam search",
    }
    rows = [Row(f"GFlowNet, T = {t}", jobs) for t, jobs in policies.items()]
    rows += [Row(title, first, method) for method, title in names.items()]
    rows.append(Row(f"GFlowNet, T = {cold}, 12 steps only", short, note="under-trained on purpose"))
    matched, token = "gain", "log_likelihood_token"
    setting = (
        "8 sentences a prompt of held-out openings. log p is the base's, of the sentence with its full stop. Short "
        "sentences have a larger log p whatever wrote them, so methods are compared at equal length: log p a token, "
        "and what log p gains on ancestral sentences of the same lengths."
    )
    fig3 = Study(
        "fig3",
        "Likely next sentences",
        "Figure 3",
        setting,
        (
            Column("log_likelihood_max", "max log p", 2),
            Column("log_likelihood_mean", "mean log p", 2),
            Column(token, "log p a token", 3),
            Column(matched, "log p gained at equal length", 2),
            Column("length", "tokens", 1, None),
            Column("diversity", "diversity", 3),
            Column("distinct_2", "distinct-2", 3),
            Column("balance_spread", "spread of log p/T - log q", 2, None),
        ),
        tuple(rows),
        lambda cells: best(cells, matched, "more", "log p gained at equal length"),
        figure="scatter",
        figure_columns=("diversity", matched),
    )
    examples = Study(
        "tableB1",
        "Sentences that were sampled",
        "Table B.1",
        "The first held-out openings and what follows them.",
        (Column("length", "tokens", 1, None), Column("unique", "different sentences of a prompt", 3)),
        (Row(f"GFlowNet, T = {cold}", policies[cold]), Row("ancestral", first, "base")),
        lambda cells: says(cells, "unique", "of a prompt's sentences differ from each other"),
        texts=lambda results: sampled(results, policies[cold][:1], ("metrics", "base", "diverse_beam"), 4),
    )
    return fig3, examples


def infilling(make: Maker) -> Study:
    """Table 2."""
    gflownet = make.jobs("infilling/gflownet", "infill", tuned("infilling", "gflownet"), seconds=240)
    supervised = make.jobs(
        "infilling/supervised", "infill", {"algorithm": "sft", **tuned("infilling", "sft")}, seconds=150
    )
    kl = "kl"
    return Study(
        "table2",
        "A story's missing sentence",
        "Table 2",
        "The fourth of five sentences, given the others; KL and consistency are exact, on the generator's sentences."
        + untuned("infilling", "gflownet", "sft"),
        (
            Column(kl, "KL(posterior|q)", 3, "less"),
            Column("kl_generator", "KL(generator|q)", 3, "less"),
            Column("consistency", "consistent, %"),
            Column("bleu_4", "BLEU-4"),
            Column("gleu_4", "GLEU-4"),
            Column("log_reward", "log p(X Z Y)", 2),
        ),
        (
            Row("base, prompted", gflownet, "base", {"bleu_4": "1.3 ± .5", "gleu_4": "3.2 ± .1"}),
            Row("base, told X alone", gflownet, "base_continuation"),
            Row("supervised", supervised, paper={"bleu_4": "1.6 ± .8", "gleu_4": "3.7 ± .4"}),
            Row("GFlowNet", gflownet, paper={"bleu_4": "2.1 ± .2", "gleu_4": "4.2 ± .7"}),
        ),
        lambda cells: " ".join(
            (
                ahead(cells, "supervised", "GFlowNet", "consistency", "more", "consistency"),
                ahead(cells, "GFlowNet", "supervised", kl, "less", "KL to the exact posterior"),
            )
        ),
        figure="bars",
        figure_columns=(kl, "kl_generator"),
        texts=lambda results: sampled(results, gflownet[:1] + supervised[:1], ("metrics",), 6),
    )


def subjectivity(make: Maker) -> tuple[Study, Study, Study]:
    """Tables 3, D.4 and D.5."""
    labels = (10, 20, 50)
    paper = {
        "base, zero-shot": ("51.7", "51.7", "51.7"),
        "base, few-shot": ("61.3 ± 6.2", "61.8 ± 5.4", "65.8 ± 10.5"),
        "supervised": ("64.3 ± 2.8", "69.1 ± .8", "89.7 ± .4"),
        "GFlowNet": ("71.4 ± 1.8", "81.1 ± .4", "87.7 ± 2.2"),
        "GFlowNet + supervised (EM)": ("75.2 ± 1.8", "78.7 ± 1.6", "89.9 ± .2"),
        "- seeded buffer": ("64.7 ± 8.9", "68.7 ± 1.7", "77.0 ± 5.5"),
    }
    unaggregated = {"- seeded buffer": ("63.9 ± 7.1", "65.9 ± 2.4", "75.4 ± 3.3")}

    def data(seed: int) -> Settings:
        return {"subjectivity.data_seed": seed}

    def jobs(name: str, n: int, settings: Settings, seconds: float, **kwargs: Any) -> tuple[Job, ...]:
        settings = {"subjectivity.labels": n, "certificate.queries": 0, **settings}
        return make.jobs(f"subjectivity/{name}-{n}", "subj", settings, also=data, seconds=seconds, **kwargs)

    e_step = tuned("subjectivity", "gflownet")
    em = {n: jobs("em", n, {"em.rounds": 1, **e_step, **tuned("subjectivity", "em")}, 120) for n in labels}
    direct = {
        n: jobs("direct", n, tuned("subjectivity", "direct"), 60, module=BASELINES, flags=("--what=direct",))
        for n in labels
    }
    bare = {n: jobs("unseeded", n, {"subjectivity.seed_samples": 0, **e_step}, 70) for n in labels}

    def rows(title: str, of: Mapping[int, tuple[Job, ...]], method: str) -> list[Row]:
        said = paper.get(title, ("", "", ""))
        return [
            Row(f"{title}, {n} labels", of[n], method, {"accuracy": text} if text else {}, series=title, x=n)
            for n, text in zip(labels, said)
        ]

    accuracy = (Column("accuracy", "accuracy, %"),)
    table3 = Study(
        "table3",
        "Objective or subjective: a reason, then a label",
        "Table 3",
        (
            "Synthetic reviews, each seed with labelled and test reviews of its own; vote over 10 rationales. The best "
            "possible accuracy is known."
            if make.preset == "tiny"
            else "SUBJ; vote over 10 rationales."
        )
        + untuned("subjectivity", "direct", "gflownet", "em"),
        accuracy,
        tuple(
            row
            for title, of, method in (
                ("base, zero-shot", direct, "zero_shot"),
                ("base, few-shot", direct, "few_shot"),
                ("supervised", direct, "metrics"),
                ("GFlowNet", em, "e_step_1"),
                ("GFlowNet + supervised (EM)", em, "m_step_1"),
                ("best possible", direct, "bayes"),
            )
            for row in rows(title, of, method)
        ),
        lambda cells: " ".join(
            ahead(
                cells, f"supervised, {n} labels", f"GFlowNet, {n} labels", "accuracy", "more", f"accuracy, {n} labels"
            )
            for n in labels
        ),
        figure="curves",
        x_title="labels",
        log_x=True,
    )
    single = "accuracy_single"
    aggregated = [
        dataclasses.replace(row, paper={**row.paper, **({single: text} if text else {})})
        for title, of, method in (("GFlowNet", em, "e_step_1"), ("- seeded buffer", bare, "metrics"))
        for row, text in zip(rows(title, of, method), unaggregated.get(title, ("", "", "")))
    ]
    tableD4 = Study(
        "tableD4",
        "What the seeded buffer and the vote are worth",
        "Table D.4",
        "As Table 3. Without aggregation one rationale decides.",
        (*accuracy, Column(single, "one rationale, %")),
        tuple(aggregated),
        lambda cells: worth(
            cells, "GFlowNet, 50 labels", "- seeded buffer, 50 labels", "accuracy", "the seeded buffer"
        ),
    )
    tableD5 = Study(
        "tableD5",
        "The commonest rationales",
        "Table D.5",
        "Of the policy trained on 50 labels, on test reviews.",
        (*accuracy, Column("vote_entropy", "entropy of the votes, nats", 3, None)),
        tuple(rows("GFlowNet", em, "e_step_1")[-1:]),
        lambda cells: says(cells, "vote_entropy", "nats is the mean entropy of a review's votes"),
        texts=lambda results: rationales(results, em[50]),
    )
    return table3, tableD4, tableD5


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Everything on arithmetic."""

    make: Maker

    def method(self, name: str, demonstrations: int = DEMONSTRATIONS) -> dict[str, Any]:
        """The settings of a method, tuned on validation with all demonstrations.

        Methods with a reward show the first 3 demonstrations to the base in it, so that the others may be learnt from;
        supervised fine-tuning has no reward and learns from all.
        """
        found = {"algorithm": name, **tuned("arithmetic", name)}
        shots = 0 if name == "sft" else SHOTS
        found["arithmetic.seed_demonstrations"] = max(demonstrations - shots, 0)
        if name == "sft":
            found |= {"arithmetic.reward_shots": 0, "evaluation.shots": 0, "certificate.queries": 0}
        return found

    def jobs(self, name: str, settings: Settings, seconds: float = 100.0, start: Sequence[Job] = ()) -> tuple[Job, ...]:
        config = "arith:ppo" if self.make.preset == "paper" and settings.get("algorithm") == "ppo" else "arith"
        return self.make.jobs(f"arithmetic/{name}", config, settings, seconds=seconds, start=start)

    def trained(self, method: str, demonstrations: int = DEMONSTRATIONS) -> tuple[Job, ...]:
        """The jobs of a method."""
        suffix = "" if demonstrations == DEMONSTRATIONS else f"-{demonstrations}"
        return self.jobs(f"{method}{suffix}", self.method(method, demonstrations), 200.0 if method == "star" else 100.0)

    def baselines(self, what: str, seconds: float, questions: int = 0) -> tuple[Job, ...]:
        """What needs no training; on the first test questions alone where a number is given."""
        name, flags, settings = f"arithmetic/{what}", (f"--what={what}",), {"evaluation.test_questions": questions}
        return self.make.jobs(name, "arith", settings, module=BASELINES, flags=flags, seconds=seconds)

    def rivals(self) -> dict[str, tuple[Job, ...]]:
        """Every trained method by its title."""
        supervised = self.trained("sft")
        warm = self.jobs("ppo-from-sft", self.method("ppo"), start=supervised)
        return {
            "supervised": supervised,
            "STaR": self.trained("star"),
            "PPO": self.trained("ppo"),
            "PPO from supervised": warm,
            "RLOO": self.trained("rloo"),
            "DPO": self.trained("dpo"),
            "GFlowNet": self.trained("gflownet"),
        }

    def paper(self) -> tuple[Study, Study, Study, Study]:
        """Tables 4, E.3, E.4 and E.5."""
        keys = [column.metric for column in OPERANDS]

        def said(*numbers: str) -> dict[str, str]:
            return dict(zip(keys, numbers))

        rivals = self.rivals()
        gflownet, prompting = rivals["GFlowNet"], self.baselines("prompting", 150)
        decoding, posterior = self.baselines("decoding", 150, FEW), self.baselines("posterior", 300, FEW)
        few = f"the first {FEW} test questions of each number of operands"
        shots = {
            0: said("10.2", "6.4", "3.2"),
            3: said("15.8", "11", "5.4"),
            5: said("20.4", "17.6", "6.6"),
            10: said("26.5", "15.2", "8.9"),
            20: said("35.5", "21", "10.5"),
        }
        tiny = self.make.preset == "tiny"
        unfit = {20: "20 demonstrations do not fit into the tiny model's 512 positions"} if tiny else {}
        wordless = "the tiny model's vocabulary lacks the words" if tiny else ""
        printed = {
            "supervised": said("72.1 ± 1.3", "19.6 ± 2.2", "12.8 ± 5.7"),
            "PPO": said("30.6 ± 4.1", "13.7 ± 4.1", "5.6 ± 3.1"),
            "GFlowNet": said("95.2 ± 1.3", "75.4 ± 2.9", "40.7 ± 9.1"),
        }
        table4 = Study(
            "table4",
            "Arithmetic with a calculator",
            "Table 4",
            "Vote over 10 samples at temperature 0.1; 3 and 4 operands in distribution, 5 out of it. Every method has "
            "the same 50 demonstrations, base and LoRA targets. Rows marked with a star know the answer while they "
            "sample." + untuned("arithmetic", "sft", "star", "ppo", "rloo", "dpo", "gflownet"),
            OPERANDS,
            (
                *(
                    Row(f"base, {k}-shot", prompting, f"shots_{k}", text, note=unfit.get(k, ""))
                    for k, text in shots.items()
                ),
                Row("base, think step by step", prompting, "step_by_step", note=wordless),
                Row("base, CoT decoding", decoding, "cot_decoding", note=few),
                Row("base, beam search", decoding, "beam", note=few),
                *(Row(title, jobs, paper=printed.get(title, {})) for title, jobs in rivals.items()),
                Row("exact posterior, its mode*", posterior, "posterior_mode", note=few, rival=False),
                Row("base, best of N by reward*", posterior, "best_of_n", note=few, rival=False),
            ),
            lambda cells: " ".join(
                (
                    ahead(cells, "supervised", "GFlowNet", "accuracy_5", "more", "accuracy on 5 operands"),
                    best(cells, "accuracy_5", "more", "accuracy on 5 operands", without="*"),
                )
            ),
            figure="bars",
            texts=lambda results: sampled(results, gflownet[:1], ("base_0shot", "metrics"), 6),
            differing=("evaluation.test_questions",),
        )
        seeded = {0: ("22.6", "5.8", "3.4"), 10: ("58.6", "52.3", "20.2"), 25: ("48.8", "56.8", "24.6")}
        seeded[DEMONSTRATIONS] = ("95.2", "75.4", "40.7")
        tableE3 = Study(
            "tableE3",
            "How many demonstrations seed the buffer",
            "Table E.3",
            "The GFlowNet; three of the demonstrations are in the reward's context in every row, 0 too.",
            OPERANDS,
            tuple(
                Row(f"{n} demonstrations", self.trained("gflownet", n), paper=said(*numbers), series="GFlowNet", x=n)
                for n, numbers in seeded.items()
            ),
            lambda cells: worth(cells, "50 demonstrations", "0 demonstrations", "accuracy_5", "the seeded buffer"),
            figure="bars",
        )
        tableE4 = Study(
            "tableE4",
            "What PPO and the GFlowNet write",
            "Table E.4",
            "The first test questions; [right] and [wrong] by the answer.",
            (Column("chains_5", "right chains at T = 0.1, 5 operands, %"), Column("right_5", "at T = 1, %")),
            tuple(Row(title, rivals[title]) for title in ("PPO", "GFlowNet")),
            lambda cells: ahead(cells, "GFlowNet", "PPO", "right_5", "more", "right chains at temperature 1"),
            texts=lambda results: sampled(results, rivals["PPO"][:1] + gflownet[:1], ("metrics",), 6),
        )
        tableE5 = Study(
            "tableE5",
            "Where the GFlowNet errs",
            "Table E.5",
            "Samples of the policy that are no right chain.",
            (
                Column("chains_5", "right chains, 5 operands, %"),
                Column("unreadable_5", "without an answer, %", 1, "less"),
            ),
            (Row("GFlowNet", gflownet),),
            lambda cells: says(cells, "chains_5", "% of its samples for 5 operands are right chains"),
            texts=lambda results: sampled(results, gflownet, ("metrics",), 10, right=False),
        )
        return table4, tableE3, tableE4, tableE5

    def comparison(self) -> tuple[Study, ...]:
        """Diversity and compute, labels, tokens, and a misspecified reward."""
        rivals = self.rivals()
        diversity = Study(
            "diversity",
            "Diversity and compute",
            "",
            "The policies of Table 4 on the first 100 test questions of a length, 20 samples at temperature 1; the "
            "base likewise. A right chain may take the operands in any order and grouping. Tokens are those that the "
            "policy chose in training, operations its matrix products.",
            (
                *DIVERSITY,
                Column("budget.generated_tokens", "tokens generated", 0, None),
                Column("budget.training_flops", "operations", 1, None, scientific=True),
            ),
            (
                Row("base", rivals["GFlowNet"], "base_0shot"),
                *(Row(title, jobs) for title, jobs in rivals.items()),
            ),
            lambda cells: best(cells, "chain_entropy_5", "more", "entropy over right chains of 5 operands"),
            figure="scatter",
            figure_columns=("chain_entropy_5", "right_5"),
        )
        counts, full = (10, 25, DEMONSTRATIONS), STEPS[self.make.preset]
        labels = Study(
            "labels",
            "Accuracy against demonstrations",
            "",
            "As Table 4, with fewer demonstrations.",
            OPERANDS,
            tuple(
                Row(f"{title}, {n}", self.trained(method, n), series=title, x=n)
                for title, method in (("supervised", "sft"), ("GFlowNet", "gflownet"))
                for n in counts
            ),
            lambda cells: ahead(cells, "supervised, 10", "GFlowNet, 10", "accuracy_5", "more", "10 demonstrations"),
            figure="curves",
            x_title="demonstrations",
            log_x=True,
            figure_columns=("accuracy_5",),
        )
        tokens = Study(
            "tokens",
            "Accuracy against what is generated",
            "",
            "Validation questions; every point is a run of its own with its learning rate decayed to 0. A step learns "
            "from 16 x 8 completions, half of them replayed where there is a buffer.",
            OPERANDS,
            tuple(
                Row(
                    f"{title}, {steps} steps", self.shortened(method, steps), method="validation", series=title, x=steps
                )
                for title, method in (("GFlowNet", "gflownet"), ("RLOO", "rloo"), ("PPO", "ppo"))
                for steps in (full // 4, full // 2, full)
            ),
            lambda cells: best(cells, "accuracy_5", "more", "accuracy on 5 operands", within=", 20 steps"),
            figure="curves",
            x_title="steps",
            log_x=True,
            figure_columns=("accuracy_5",),
        )
        nats = (0, 4, 8)
        misspecified = Study(
            "misspecified",
            "A misspecified reward",
            "",
            "log R + b [Z calls no tool]: b nats are paid for saying the expression again or guessing, the base's own "
            "favourites. Validation questions.",
            OPERANDS,
            tuple(
                Row(f"{title}, b = {b}", self.misled(method, b), method="validation", series=title, x=b)
                for title, method in (("GFlowNet", "gflownet"), ("RLOO", "rloo"), ("PPO", "ppo"))
                for b in nats
            ),
            lambda cells: best(cells, "accuracy_4", "more", "accuracy on 4 operands", within=f", b = {nats[-1]}"),
            figure="curves",
            x_title="nats paid for the shortcut",
            figure_columns=("accuracy_4",),
        )
        return diversity, labels, tokens, misspecified

    def shortened(self, method: str, steps: int) -> tuple[Job, ...]:
        if steps == STEPS[self.make.preset]:
            return self.misled(method, 0)
        return self.jobs(f"tokens/{method}-{steps}", {**self.method(method), **ON_VALIDATION, "steps": steps}, 70.0)

    def misled(self, method: str, nats: int) -> tuple[Job, ...]:
        shortcut = {"reward.automaton": "gfn_jax.studies.shortcuts:without_a_call", "reward.automaton_weight": nats}
        if method == "gflownet" and not nats:
            return self.as_it_stands()
        settings = {**self.method(method), **ON_VALIDATION, **shortcut}
        return self.jobs(f"misspecified/{method}-{nats}", settings, 75.0)

    def as_it_stands(self) -> tuple[Job, ...]:
        return self.jobs("ablations/as-it-stands", {**self.method("gflownet"), **ON_VALIDATION}, 75.0)

    def ablations(self) -> Study:
        """The method's own choices, one changed at a time."""
        only = {f"objective.terms.{name}": 0.0 for name in ("subtb", "vargrad")}
        changes: dict[str, Settings] = {
            "SubTB alone, Z may stop at once": {"objective.terms.vargrad": 0.0, "arithmetic.min_length": 0}
            | {"arithmetic.stop_after_number": False},
            "VarGrad alone": {**only, "objective.terms.vargrad": 1.0},
            "TB, log Z learnt": {**only, "objective.terms.tb": 1.0},
            "DB + VarGrad": {**only, "objective.terms.db": 1.0, "objective.terms.vargrad": 0.5},
            "SubTB lambda 0.9": {"objective.subtb_lambda": 0.9},
            "no replay": {"replay.samples": 0},
            "buffer not seeded": {"arithmetic.seed_demonstrations": 0},
            "no tempered behaviour": {"exploration.tempered": 0.0},
            "reward temperature ends at 1.1": {"sampling.reward_temperature_end": 1.1},
            "reward temperature ends at 0.5": {"sampling.reward_temperature_end": 0.5},
            "LoRA rank 8": {"lora.rank": 8, "lora.alpha": 8.0},
            "LoRA rank 64": {"lora.rank": 64, "lora.alpha": 64.0},
            "4 samples a query": {"sampling.samples": 4, "replay.samples": 2, "sampling.queries": 32},
            "16 samples a query": {"sampling.samples": 16, "replay.samples": 8, "sampling.queries": 8},
        }
        rows = [Row("as it stands", self.as_it_stands(), "validation")]
        for title, change in changes.items():
            name = "".join(c if c.isalnum() or c == "." else "-" for c in title.lower())
            settings = {**self.method("gflownet"), **ON_VALIDATION, **change}
            rows.append(Row(title, self.jobs(f"ablations/{name}", settings, 75.0), "validation"))
        return Study(
            "ablations",
            "The method's own choices",
            "",
            "Table 4's GFlowNet with one choice changed at a time, and nothing tuned again; 100 validation questions "
            "of each number of operands. Rows have the same number of samples a step.",
            OPERANDS,
            tuple(rows),
            lambda cells: best(cells, "accuracy_5", "more", "accuracy on 5 operands"),
            figure="bars",
            figure_columns=("accuracy_5",),
            differing=("arithmetic.stop_after_number",),
        )


def sampled(
    results: Results,
    jobs: Iterable[Job],
    methods: Sequence[str],
    count: int,
    right: bool | None = None,
) -> list[tuple[str, list[str]]]:
    """The first completions that jobs have left in samples.jsonl, as (who wrote them, lines).

    Args:
        results: of all finished jobs.
        jobs: whose.
        methods: of each.
        count: lines of each method.
        right: only those that are, or are not; None for all.
    """
    texts = []
    for job in jobs:
        path = results[job.name].folder / "samples.jsonl" if job.name in results else None
        if path is None or not path.exists():
            continue
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for method in methods:
            own = [row for row in rows if row["method"] == method and (right is None or row.get("right") is right)]
            lines = [f"{row['question']}{row['completion']}{VERDICT[row.get('right')]}" for row in spread(own, count)]
            if lines:
                texts.append((f"{job.name}, {method}" if method != "metrics" else job.name, lines))
    return texts


VERDICT = {True: "   [right]", False: "   [wrong]", None: ""}


def spread(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` rows, evenly from the first to the last."""
    step = max(len(rows) // count, 1)
    return list(rows[::step][:count])


def rationales(results: Results, jobs: Iterable[Job]) -> list[tuple[str, list[str]]]:
    """The commonest rationales of each label, of the first job that is there."""
    for job in jobs:
        if job.name in results:
            found = results[job.name].results.get("rationales", {})
            return [(label, [f"{share:.1f} %  {text}" for text, share in rows]) for label, rows in found.items()]
    return []
