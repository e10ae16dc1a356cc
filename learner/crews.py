"""Which trainer a learner has."""

from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import RunConfig

if TYPE_CHECKING:
    from learner.crew import Crew
    from learner.emulated import EmulatedCrew

    type AnyCrew = Crew | EmulatedCrew


def make_crew(config: RunConfig, model: Path) -> "AnyCrew":
    """The trainer that `config` asks for, of the model in the folder `model`; all ranks of DeepSpeed's as one."""
    if config.learner.trainer == "emulated":
        from learner.emulated import EmulatedCrew

        return EmulatedCrew(model)
    # Takes seconds, and on a GPU its memory.
    from learner.crew import Crew
    from learner.trainer import Trainer

    return Crew(Trainer(config, model))
