"""Which trainer a learner has."""

from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import RunConfig

if TYPE_CHECKING:
    from learner.training.crew import Crew
    from learner.training.emulated_crew import EmulatedCrew

    type AnyCrew = Crew | EmulatedCrew


def make_crew(config: RunConfig, model: Path) -> "AnyCrew":
    """The trainer that `config` asks for, of the model in the folder `model`; all ranks of DeepSpeed's as one."""
    if config.learner.trainer == "emulated":
        from learner.training.emulated_crew import EmulatedCrew

        return EmulatedCrew(model)
    # Takes seconds, and on a GPU its memory.
    from learner.training.crew import Crew
    from learner.training.trainer import Trainer

    return Crew(Trainer(config, model))
