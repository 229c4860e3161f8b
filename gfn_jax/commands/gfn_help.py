"""What `gfn --help` and `gfn COMMAND --help` say."""

from collections.abc import Mapping

TRAIN = """Trains what a config describes; several seeds, a small sweep.

    gfn train arith                                   # configs/arith.py, as its preset :tiny has it
    gfn train arith:supervised --optimizer.learning_rate=1e-3
    gfn train configs/own.py:preset --steps=40        # a file of yours
    gfn train arith --seed=0,1,2                      # one after the other, each in WORKDIR/seed-N
    gfn train arith --sweep.optimizer.learning_rate=1e-3,3e-3 --sweep.steps=40,80

    --KEY=VALUE         changes one value of the config; None unsets it where it is optional. `gfn configs arith`
                        lists the keys
    --seed=0,1,2        several runs: their mean, spread and 95 % interval, printed and in WORKDIR/summary.json
    --sweep.KEY=V,V     a run for each value (of several keys: for each combination, and each seed), measured on
                        validation questions alone and sorted by them
    --workdir=DIR       where the run writes, runs/CONFIG-PRESET by default (-seeds, -sweep); run again, it goes on
                        from there, and what is finished is not run again
    --workers=N         runs at once, of several (1); above 1 each has one thread of a CPU
    --print_config      prints the config as KEY=VALUE lines, and ends
    --dry_run           says what the run would take in memory and arithmetic, on any --mesh, and ends
    --sampler=N         draws rows for the run's learner (asynchronous.samplers), where asynchronous.local is False
    --distributed       joins the other processes of a cluster; not needed where the environment names them
    --debug             shows tracebacks; so does GFN_JAX_DEBUG=1

It is `python -m gfn_jax.launch --config=FILE:preset --config.KEY=VALUE`. What is wrong with the command, its config or
its data ends in one line `error: ...` and exit code 2; what goes wrong later, in one line and exit code 1. Ctrl-C and
SIGTERM save; the exit code is 128 + the signal."""

EVALUATE = """Measures a run's policy by its task's own evaluator, the base beside it.

    gfn evaluate runs/arith-tiny                              # its newest checkpoint, on the test split
    gfn evaluate runs/arith-tiny --split=validation --step=best
    gfn evaluate runs/arith-tiny --samples=20 --seeds=0,1,2   # of the samples; means and intervals over them
    gfn evaluate runs/arith-tiny --data.path=FOLDER           # another test set
    gfn evaluate runs/arith-tiny --adapter=OTHER --evaluation.temperature=1.0

The run may have finished, been interrupted, or be training still. --KEY=VALUE changes the run's config, in the sections
`evaluation`, `data`, `model`, `mesh` and the task's own: what is asked, not what was learnt. The table is printed, and
written with a value a question to WORKDIR/evaluation-SPLIT.json; with other settings than the run's
evaluation-SPLIT-DIGEST.json, or --out.
"""

SAMPLE = """Completions of a policy with log q and log R, in nats.

    gfn sample runs/arith-tiny                                        # of the first held-out questions
    gfn sample runs/arith-tiny --prompt="Question: 6 - 0 - 4 = ? Answer:" --samples=4
    gfn sample --model=gpt2 --prompt="Once upon a time"               # a base alone
    gfn sample --model=gpt2 --adapter=FOLDER --prompts=FILE --jsonl   # a base and a PEFT adapter

Of a run everything is as in that run: base, adapter, prompts, the tool, which tokens may be written and how many, what
stands before a prompt, the reward. A flag that is given overrides it. log R of a prompt of yours is the base's own
log p(Z Y | X), Y being --answer or the stop; of the task's questions it is the run's reward.
"""

EXPORT = """A run's adapter as a PEFT folder, or merged into its base, with a model card.

    gfn export runs/arith-tiny out/adapter
    gfn export runs/arith-tiny out/model --merged
    gfn export runs/arith-tiny out/best --step=best

Base, rank, scale, dtype and the card's results are the run's own; flags override.
"""

COMPARE = """Runs beside each other: means, spreads, intervals, paired differences, a plot.

    gfn compare runs/arith-tiny runs/arith-supervised
    gfn compare gflownet=runs/a-seeds ppo=runs/b-seeds --metrics=accuracy_5     # folders of seeds: one row each

Each argument is a run's workdir or a folder of `gfn train --seed=0,1,2`, with TITLE= before it if you like. For every
metric: the mean over seeds, their spread (standard deviation), a 95 % bootstrap interval over seeds and, where the runs
have left questions.json, questions; and the paired difference from the first row. Runs of different tasks or questions
are refused. --out=FOLDER (runs/compare) gets compare.json, and compare.png and .svg where matplotlib is installed.
"""

CONFIGS = """The configs, their presets, and what every key means.

    gfn configs                     # all of them
    gfn configs arith               # its presets, and the keys of :tiny: value, what it may be, meaning
    gfn configs arith:paper
    gfn configs configs/own.py
"""

DOCTOR = """Versions, devices, memory, and a self-test: whether every device computes what it should.

    gfn doctor

The self-test compiles one training step of the tiny model on each device, and compares its loss and gradient with
stored values. What is wrong ends in one line and exit code 1.
"""

CERTIFY = """How far a run's policy is from the posterior that it was trained towards.

    gfn certify runs/arith-tiny
    gfn certify runs/arith-tiny --adapter=runs/other/adapter --twist=flow --particles=64
    gfn certify runs/arith-tiny --adapter=none      # the base itself

Bounds on log Z from either side, hence intervals for KL(q | pi) and KL(pi | q). --out writes all of it as JSON.
"""

TUNE = """Settings of a method, chosen on validation questions; every trial is written down.

    gfn tune arith:tiny --algorithm=sft --trials=8 --workers=2

--config.KEY=VALUE changes one value of the config in all trials.
"""

REPRODUCE = """The paper's tables and figures: every job that they need, and a report of what came out.

    gfn reproduce --list                                  # what would run, in seconds and gigabytes
    gfn reproduce table4,fig3 --seeds=0,1,2 --workdir=runs/reproduce

It needs a checkout of the project. What is finished is used again, what was interrupted goes on.
"""

BENCHMARK = """How fast a step is, part by part, beside what its matrix products alone would take.

    gfn benchmark b                                       # a preset of configs/benchmark.py: a, b, tiny
    gfn benchmark a --config.model.width=768 --output=a.json
"""

BENCH = """PosteriorBench: samplers against posteriors that are known exactly.

    gfn bench --budget=smoke
"""

HELP: Mapping[str, str] = {
    "train": TRAIN,
    "evaluate": EVALUATE,
    "sample": SAMPLE,
    "export": EXPORT,
    "compare": COMPARE,
    "configs": CONFIGS,
    "doctor": DOCTOR,
    "certify": CERTIFY,
    "tune": TUNE,
    "reproduce": REPRODUCE,
    "benchmark": BENCHMARK,
    "bench": BENCH,
}
