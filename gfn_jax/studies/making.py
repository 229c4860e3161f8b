"""How the jobs of studies are made, and what is said of all of them.

`:tiny` is the models that the project ships, `:paper` the paper's own with its hyperparameters. A row's settings are
its config's, then what tuning chose on validation (`Maker.tuned`), then the row's own, which its title names.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from gfn_jax.studies.study import LAUNCH, Job, config_words
from gfn_jax.studies.tuning import tuned

Preset = Literal["tiny", "paper"]
Settings = Mapping[str, Any]
BASELINES = "gfn_jax.commands.baselines"


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes the jobs of one preset, one a seed."""

    preset: Preset
    seeds: tuple[int, ...]

    def tuned(self, task: str, method: str) -> Settings:
        """What tuning chose, on the tiny models and for them alone; the paper's presets have the paper's settings."""
        return tuned(task, method) if self.preset == "tiny" else {}

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
                    (*flags, f"--config=configs/{config.replace(':', '.py:')}", *config_words(own)),
                    needs,
                    seconds if self.preset == "tiny" else 1000 * seconds,
                    2.0 if self.preset == "tiny" else 64.0,
                )
            )
        return tuple(made)
