"""The report as one page of HTML: nothing is fetched, nothing is run, and all figures are in it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gfn_jax.studies.cells import Cell, Line, Table
from gfn_jax.studies.found import Facts
from gfn_jax.studies.html import command, definitions, details, document, figure, scrolling, text
from gfn_jax.studies.section import Section

TITLE = "GFlowNet fine-tuning of language models: the paper’s tables and figures, reproduced"
HOW_TO_READ = (
    "The first line of a section is drawn from its numbers by a rule in the code, whatever they are.",
    "Numbers in italics are the paper’s: other models, other test sets. Their order may be compared, not their size.",
    "Intervals are percentiles of a bootstrap that draws seeds and, where the answers to single questions are known, "
    "questions. Over few seeds alone they are too narrow: of 3, 5 and 10 seeds, an interval of 95 % holds the truth in "
    "about 75, 84 and 90 % of all repetitions. The seeds’ own values are in the CSV files.",
    "What is bold is so by a comparison with every other row, each by itself: no correction is made for their number.",
)
# Of a certificate's measures, those that a row has room for.
MEASURES = {"kl_q_pi": "KL(q | π)", "kl_pi_q": "KL(π | q)", "reverse_ess": "reverse ESS", "forward_ess": "forward ESS"}


def page(sections: Sequence[Section], facts: Facts, tuned: Sequence[Mapping[str, Any]], remark: str) -> str:
    """The whole page.

    Args:
        sections: of the studies, in order.
        facts: what was run where.
        tuned: contents of the tuning's files.
        remark: what is to be said of the whole, or "".
    """
    contents = "".join(
        f'<li><a href="#{one.study.name}">{text(one.study.title)}</a><span>{text(one.lesson)}</span></li>'
        for one in sections
    )
    tuning = f'<li><a href="#tuning">Hyperparameters</a><span>{_count(tuned)}</span></li>' if tuned else ""
    body = [
        f"<header><h1>{TITLE}</h1>",
        f'<p class="quiet">{text(about(facts))}</p></header>',
        f"<p>{text(remark)}</p>" if remark else "",
        f'<nav aria-label="Contents"><ol>{contents}{tuning}<li><a href="#made">How this was made</a></li></ol></nav>',
        details("How to read it", "<ul>", *(f"<li>{text(one)}</li>" for one in HOW_TO_READ), "</ul>"),
        *map(_section, sections),
        _tuning(tuned) if tuned else "",
        _made(facts),
    ]
    return document(TITLE, body)


def about(facts: Facts) -> str:
    """What a report is of, in a line."""
    small = ", the project’s own small models and worlds" if facts.preset == "tiny" else ""
    seeds = ", ".join(map(str, facts.seeds))
    return f"Preset {facts.preset}{small}; seeds {seeds}; {facts.date}; {facts.machine}."


def _section(one: Section) -> str:
    parts = [
        f'<section id="{one.study.name}">',
        f"<h2>{text(one.study.title)}</h2>",
        f'<p class="quiet">The twin of {text(one.study.paper)}.</p>' if one.study.paper else "",
        f'<p class="lesson">{text(one.lesson)}</p>',
        f"<p>{text(one.setting)}</p>",
        figure(one.figure.inline, one.caption) if one.figure else "",
        _table(one.table, one.study.title),
        "".join(f'<p class="quiet"><sup>{i}</sup> {text(note)}</p>' for i, note in enumerate(one.table.notes, 1)),
        f'<p class="quiet">{text(one.legend)}</p>',
        *(_texts(title, lines) for title, lines in one.texts),
        certificate_table(one.certificates) if one.certificates else "",
        _commands(one),
        "</section>",
    ]
    return "\n".join(filter(None, parts))


def _table(table: Table, title: str) -> str:
    return scrolling(("", *table.header, "seeds"), map(_line, table.lines), title)


def _line(line: Line) -> str:
    mark = f"<sup>{line.note}</sup>" if line.note else ""
    rows = []
    if line.cells:
        cells = "".join(map(_cell, line.cells))
        rows.append(f'<tr><th scope="row">{text(line.title)}{mark}</th>{cells}<td>{line.seeds}</td></tr>')
    if line.paper:
        name, kind = ("paper", "paper beneath") if line.cells else (f"{text(line.title)}{mark}", "paper")
        cells = "".join(f"<td>{text(value)}</td>" for value in (*line.paper, ""))
        rows.append(f'<tr class="{kind}"><th scope="row">{name}</th>{cells}</tr>')
    return "".join(rows)


def _cell(cell: Cell) -> str:
    mean = f"<b>{cell.mean}</b>" if cell.leads else cell.mean
    return f"<td>{mean}{f' <small>{cell.interval}</small>' if cell.interval else ''}</td>"


def _texts(title: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<h3>{text(title)}</h3><ol class="texts">{items}</ol>'


def certificate_table(certificates: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a run: the divergences and effective shares with their limits, the verdict and its warnings."""
    rows = []
    for name, one in certificates.items():
        means = "".join(f"<td>{_measured(one['means'].get(measure))}</td>" for measure in MEASURES)
        words = "".join(f"<br>Warning: {escape(warning)}" for warning in one["warnings"])
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{means}</tr>')
        verdict = f"<div>{escape(one['verdict'])}{words}</div>"
        rows.append(f'<tr><td class="words" colspan="{1 + len(MEASURES)}">{verdict}</td></tr>')
    percent = f"{100 * (1 - next(iter(certificates.values()))['risk']):g} %"
    whose = "the policy is" if len(certificates) == 1 else f"{len(certificates)} of these runs are"
    return details(
        f"Certificates: how far {whose} from the posterior",
        f'<p class="quiet">q is the policy, π ∝ R its target; nats. Limits of {percent}, for the queries asked.</p>',
        scrolling(("run", *MEASURES.values()), rows, "Certificates"),
    )


def _measured(found: Mapping[str, float | None] | None) -> str:
    if found is None or found["estimate"] is None:
        return "-"
    low, high = ("-" if value is None else f"{value:.3g}" for value in (found["low"], found["high"]))
    return f"{found['estimate']:.3g} <small>[{low}, {high}]</small>"


def _commands(one: Section) -> str:
    return details(
        f"Commands: this section, and its {len(one.runs)} runs",
        f'<p class="quiet">All of it:</p>{command(one.command)}',
        f'<p class="quiet">What that runs; {text(one.took)}:</p>',
        *map(command, one.runs),
    )


def _tuning(tuned: Sequence[Mapping[str, Any]]) -> str:
    words = (
        "What was tried for every tuned method. Scores are on validation questions; the trial that was taken is bold."
    )
    trials = "".join(map(_trials, tuned))
    return f'<section id="tuning"><h2>Hyperparameters</h2><p>{words}</p>{trials}</section>'


def _trials(one: Mapping[str, Any]) -> str:
    title = f"{one['task']}: {one['method']}"
    rows = []
    for trial in one["trials"]:
        seeds = ", ".join(map(str, trial["scores"]))
        texts = [_overrides(trial["overrides"]), f"{trial['score']:.4g}", seeds, f"{trial['seconds']:.0f}"]
        if trial["overrides"] == one["chosen"]:
            texts = [f"<b>{text}</b>" for text in texts]
        cells = "".join(f"<td>{text}</td>" for text in texts[1:])
        rows.append(f'<tr><th scope="row">{texts[0]}</th>{cells}</tr>')
    table = scrolling(("trial", "score", "seeds", "seconds"), rows, title)
    return details(f"{escape(title)}, {len(rows)} trials", f"<p>Taken: {_overrides(one['chosen'])}</p>", table)


def _overrides(values: Mapping[str, Any]) -> str:
    texts = (f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items())
    return ", ".join(f"<code>{escape(text)}</code>" for text in texts) or "as the config is"


def _made(facts: Facts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    entries = {
        "Command": f"{command(facts.command)}",
        "Preset": escape(facts.preset),
        "Seeds": ", ".join(map(str, facts.seeds)),
        "Date": escape(facts.date),
        "Machine": escape(facts.machine),
        "Versions": escape(versions),
        "Paper": "Hu et al., “Amortizing intractable inference in large language models”, ICLR 2024, "
        '<a href="https://arxiv.org/abs/2310.04363">arXiv:2310.04363</a>',
    }
    return f'<section id="made"><h2>How this was made</h2>{definitions(entries.items())}</section>'


def _count(tuned: Iterable[Mapping[str, Any]]) -> str:
    counts = [len(one["trials"]) for one in tuned]
    return f"On validation questions; methods: {len(counts)}, trials: {sum(counts)}."
