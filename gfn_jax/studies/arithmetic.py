"""The studies on arithmetic: Tables 4, E.3, E.4 and E.5 of the paper, the comparison of methods, and the ablations."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from gfn_jax.studies.lessons import ahead, best, says, worth
from gfn_jax.studies.making import BASELINES, Maker, Settings
from gfn_jax.studies.study import Column, Job, Row, Study
from gfn_jax.studies.texts import sampled

DEMONSTRATIONS = 50  # given to every method, of which the reward of those that have one shows the first 3 to the base
SHOTS = 3
STEPS = {"tiny": (15, 30, 60), "paper": (250, 500, 1000)}  # of runs that are compared by what they generate
FEW = 60  # test questions of what is slow: chain-of-thought decoding, exact samples
FEW_SAID = f"the first {FEW} test questions of each number of operands"
# Validation questions instead of test ones, and fewer: for what is not a table of the paper.
ON_VALIDATION = {"report": "validation", "certificate.queries": 0}

OPERANDS = tuple(Column(f"accuracy_{k}", f"{k} operands") for k in (3, 4, 5))
DIVERSITY = (
    *(Column(f"right_{k}", f"right at T = 1, {k}") for k in (4, 5)),
    *(Column(f"distinct_{k}", f"distinct right chains of 20, {k}", 2, None) for k in (4, 5)),
    *(Column(f"chain_entropy_{k}", f"their entropy, nats, {k}", 2, None) for k in (4, 5)),
)


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Everything on arithmetic."""

    make: Maker

    def method(self, name: str, demonstrations: int = DEMONSTRATIONS) -> dict[str, Any]:
        """The settings of a method, tuned on validation with all demonstrations.

        Methods with a reward show the first 3 demonstrations to the base in it, so that the others may be learnt from;
        supervised fine-tuning has no reward and learns from all.
        """
        found = {"algorithm": name, **self.make.tuned("arithmetic", name)}
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
        """What needs no training, hence no second seed; on the first test questions alone where a number is given."""
        name, flags, settings = f"arithmetic/{what}", (f"--what={what}",), {"evaluation.test_questions": questions}
        once = dataclasses.replace(self.make, seeds=self.make.seeds[:1])
        return once.jobs(name, "arith", settings, module=BASELINES, flags=flags, seconds=seconds)

    @functools.cached_property
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

    @property
    def posterior(self) -> tuple[Job, ...]:
        """Exact samples of p(Z | X, Y), and the best of N."""
        return self.baselines("posterior", 300, FEW)

    def paper(self) -> tuple[Study, Study, Study, Study]:
        """Tables 4, E.3, E.4 and E.5."""
        keys = [column.metric for column in OPERANDS]

        def said(*numbers: str) -> dict[str, str]:
            return dict(zip(keys, numbers))

        rivals = self.rivals
        gflownet, prompting = rivals["GFlowNet"], self.baselines("prompting", 150)
        decoding, posterior = self.baselines("decoding", 150, FEW), self.posterior
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
            "sample.",
            OPERANDS,
            (
                *(
                    Row(f"base, {k}-shot", prompting, f"shots_{k}", text, note=unfit.get(k, ""))
                    for k, text in shots.items()
                ),
                Row("base, think step by step", prompting, "step_by_step", note=wordless),
                Row("base, CoT decoding", decoding, "cot_decoding", note=FEW_SAID),
                Row("base, beam search", decoding, "beam", note=FEW_SAID),
                *(Row(title, jobs, paper=printed.get(title, {})) for title, jobs in rivals.items()),
                Row("exact posterior, its mode*", posterior, "posterior_mode", note=FEW_SAID, rival=False),
                Row("base, best of N by reward*", posterior, "best_of_n", note=FEW_SAID, rival=False),
            ),
            lambda cells: " ".join(
                (
                    ahead(cells, "supervised", "GFlowNet", "accuracy_5", "more", "accuracy on 5 operands"),
                    best(cells, "accuracy_5", "more", "accuracy on 5 operands"),
                )
            ),
            figure="bars",
            texts=lambda results: sampled(results, gflownet[:1], ("base_0shot", "policy"), 6),
            differing=("evaluation.test_questions",),
            tuned={"arithmetic": ("sft", "star", "ppo", "rloo", "dpo", "gflownet")},
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
            texts=lambda results: sampled(results, rivals["PPO"][:1] + gflownet[:1], ("policy",), 6),
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
            texts=lambda results: sampled(results, gflownet, ("policy",), 10, right=False),
        )
        return table4, tableE3, tableE4, tableE5

    def comparison(self) -> tuple[Study, ...]:
        """Diversity and compute, labels, tokens, and a misspecified reward."""
        rivals = self.rivals
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
                Row("exact posterior", self.posterior, "posterior_mode", note=FEW_SAID, rival=False),
            ),
            lambda cells: best(cells, "chain_entropy_5", "more", "entropy over right chains of 5 operands"),
            figure="scatter",
            figure_columns=("chain_entropy_5", "right_5"),
            differing=("evaluation.test_questions",),
        )
        counts, lengths = (10, 25, DEMONSTRATIONS), STEPS[self.make.preset]
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
        learners = (("supervised", "sft"), ("GFlowNet", "gflownet"), ("RLOO", "rloo"), ("PPO", "ppo"))
        tokens = Study(
            "tokens",
            "Accuracy against what is generated",
            "",
            "Validation questions; every point is a run of its own with its learning rate decayed to 0. A step learns "
            "from 16 x 8 completions: demonstrations, or what the policy writes; half of the GFlowNet's are replayed, "
            "and by half of its steps, 30 at most, it imitates them.",
            (*OPERANDS, Column("budget.generated_tokens", "tokens generated", 0, None)),
            tuple(
                Row(
                    f"{title}, {steps} steps", self.shortened(method, steps), method="validation", series=title, x=steps
                )
                for title, method in learners
                for steps in lengths
            ),
            lambda cells: best(cells, "accuracy_5", "more", "accuracy on 5 operands", within=f", {lengths[0]} steps"),
            figure="curves",
            x_title="steps",
            log_x=True,
            figure_columns=("accuracy_5",),
        )
        nats = (0, 1, 2)  # a third of the posterior calls no tool for 0; with 4 nobody calls one
        misspecified = Study(
            "misspecified",
            "A misspecified reward",
            "",
            "log R + b [Z calls no tool]: b nats are paid for saying the expression again or guessing, the base's own "
            "favourites. Supervised fine-tuning reads no reward. Validation questions.",
            OPERANDS,
            tuple(
                Row(f"{title}, b = {b}", self.misled(method, b), method="validation", series=title, x=b)
                for title, method in learners
                for b in nats
            ),
            lambda cells: best(cells, "accuracy_4", "more", "accuracy on 4 operands", within=f", b = {nats[-1]}"),
            figure="curves",
            x_title="nats paid for the shortcut",
            figure_columns=("accuracy_4",),
        )
        return diversity, labels, tokens, misspecified

    def shortened(self, method: str, steps: int) -> tuple[Job, ...]:
        settings = self.method(method)
        if steps == settings.get("steps", STEPS["paper"][-1]):
            return self.misled(method, 0)
        settings |= {**ON_VALIDATION, "steps": steps}
        if method == "gflownet" and self.make.preset == "tiny":
            settings["objective.imitation_steps"] = min(30, steps // 2)  # 30 are the config's
        return self.jobs(f"tokens/{method}-{steps}", settings, 70.0)

    def misled(self, method: str, nats: int) -> tuple[Job, ...]:
        shortcut = {"reward.automaton": "gfn_jax.studies.shortcuts:without_a_call", "reward.automaton_weight": nats}
        if method == "gflownet" and not nats:
            return self.as_it_stands()
        settings = {**self.method(method), **ON_VALIDATION}
        if method == "sft":
            return self.jobs("misspecified/sft", settings, 75.0)
        return self.jobs(f"misspecified/{method}-{nats}", {**settings, **shortcut}, 75.0)

    def as_it_stands(self) -> tuple[Job, ...]:
        return self.jobs("ablations/as-it-stands", {**self.method("gflownet"), **ON_VALIDATION}, 75.0)

    def ablations(self) -> Study:
        """The method's own choices, one changed at a time."""
        only = {f"objective.terms.{name}": 0.0 for name in ("subtb", "vargrad")}
        both = {"objective.terms.subtb": 1.0, "objective.terms.vargrad": 0.5}
        changes: dict[str, Settings] = {
            "SubTB alone, Z may stop at once": {**only, "objective.terms.subtb": 1.0}
            | {"arithmetic.min_length": 0, "arithmetic.stop_after_number": False},
            "no imitation at first": {"objective.imitation_steps": 0},
            "SubTB + VarGrad": both,
            "SubTB + VarGrad, no imitation at first": {**both, "objective.imitation_steps": 0},
            "SubTB + VarGrad, lambda 0.9": {**both, "objective.subtb_lambda": 0.9},
            "TB, log Z learnt": {**only, "objective.terms.tb": 1.0},
            "DB + VarGrad": {**only, "objective.terms.db": 1.0, "objective.terms.vargrad": 0.5},
            "no replay, hence no imitation": {"replay.samples": 0, "objective.imitation_steps": 0},
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
