"""The studies: the paper's tables and figures by name, the comparison of methods, and the ablations."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gfn_jax.studies.arithmetic import Arithmetic
from gfn_jax.studies.lessons import ahead, best, reaches, says, worth
from gfn_jax.studies.making import BASELINES, Maker, Preset, Settings
from gfn_jax.studies.study import Column, Job, Row, Study
from gfn_jax.studies.texts import distributions, rationales, sampled

# The comparison is one name for several tables.
GROUPS = {"compare": ("diversity", "labels", "tokens", "misspecified")}


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


def random_numbers(make: Maker) -> Study:
    """Figure 2."""
    gflownet = make.jobs("numbers/gflownet", "rng", make.tuned("random_numbers", "gflownet"), seconds=110)
    by_ppo = "rng:ppo" if make.preset == "tiny" else "rng:paper_ppo"
    ppo = make.jobs("numbers/ppo", by_ppo, make.tuned("random_numbers", "ppo"), seconds=60)
    valid, kl = "valid_mass", "kl_to_target"
    return Study(
        "fig2",
        "Can a language model draw a random number?",
        "Figure 2",
        "Uniform on 0..100. Probabilities are exact: every spelling of every number is scored. KL(q|p) is of q given "
        "that it is a number; KL(p|q) counts the mass on what is none. The paper estimates KL from 512,000 samples, "
        "whose noise floor alone is 9.77e-5.",
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
                rival=False,
            ),
            Row("PPO", ppo, paper={valid: "0.958"}),
            Row("GFlowNet", gflownet, paper={valid: "1.000", kl: "9.75e-5, sampled"}),
        ),
        lambda cells: reaches(cells, "GFlowNet", kl, "less", 1e-5, "an exact KL of 1e-5 nats given a number"),
        figure="distributions",
        x_title="the number",
        distributions=lambda results: distributions(results, {"base": gflownet, "PPO": ppo, "GFlowNet": gflownet}),
        texts=lambda results: sampled(results, gflownet + ppo, ("policy",), 12),
        tuned={"random_numbers": ("gflownet", "ppo")},
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
        texts=lambda results: sampled(results, policies[cold][:1], ("policy", "base", "diverse_beam"), 4),
    )
    return fig3, examples


def infilling(make: Maker) -> Study:
    """Table 2."""
    gflownet = make.jobs("infilling/gflownet", "infill", make.tuned("infilling", "gflownet"), seconds=240)
    by_rival = "infill:supervised" if make.preset == "tiny" else "infill:paper"
    supervised = make.jobs(
        "infilling/supervised", by_rival, {"algorithm": "sft", **make.tuned("infilling", "sft")}, seconds=120
    )
    kl = "kl"
    return Study(
        "table2",
        "A story's missing sentence",
        "Table 2",
        "The fourth of five sentences, given the others; KL and consistency are exact, on the generator's sentences.",
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
        texts=lambda results: sampled(results, gflownet[:1] + supervised[:1], ("policy",), 6),
        tuned={"infilling": ("gflownet", "sft")},
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

    e_step = make.tuned("subjectivity", "gflownet")
    em = {n: jobs("em", n, {"em.rounds": 1, **e_step, **make.tuned("subjectivity", "em")}, 120) for n in labels}
    direct = {
        n: jobs("direct", n, make.tuned("subjectivity", "direct"), 60, module=BASELINES, flags=("--what=direct",))
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
        ),
        accuracy,
        tuple(
            row
            for title, of, method in (
                ("base, zero-shot", direct, "zero_shot"),
                ("base, few-shot", direct, "few_shot"),
                ("supervised", direct, "policy"),
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
        tuned={"subjectivity": ("direct", "gflownet", "em")},
    )
    single = "accuracy_single"
    aggregated = [
        dataclasses.replace(row, paper={**row.paper, **({single: text} if text else {})})
        for title, of, method in (("GFlowNet", em, "e_step_1"), ("- seeded buffer", bare, "policy"))
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
