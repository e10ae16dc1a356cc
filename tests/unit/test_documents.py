"""The documents say what the code does."""

import re
from argparse import ArgumentParser
from pathlib import Path

import pytest

from configs.field_reference import configuration_reference
from configs.loading import shipped_names
from configs.schema import AlgorithmConfig, FiltersConfig
from configs.training import CriticConfig
from launch.cli import COMMANDS

ROOT = Path(__file__).parents[2]


def test_the_configuration_reference_is_current():
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == configuration_reference(), "run scripts/document_configuration"


def test_every_metric_is_documented():
    documented = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs" / "metrics.md").read_text()))
    # Names are literal keys in the places that write metrics; the balance and the reward's parts get a prefix.
    for source in ("learner/step_metrics.py", "actors/actor.py"):
        text = (ROOT / source).read_text()
        names = set(re.findall(r'^\s+"([a-z_]+)":', text, re.MULTILINE))
        names |= set(re.findall(r'values\["([a-z_]+)"\]', text))
        assert names <= documented, f"{source}: {sorted(names - documented)}"
    from learner.tickets.filters import REASONS
    from learner.training.rank_trainer import CRITIC_METRICS, POLICY_METRICS

    assert set(POLICY_METRICS) | set(CRITIC_METRICS) <= documented
    assert {f"filtered_by_{reason.replace(' ', '_')}" for reason in REASONS} <= documented


def test_every_algorithm_field_and_filter_reason_is_explained():
    text = (ROOT / "docs" / "algorithms.md").read_text()
    sections = (AlgorithmConfig, CriticConfig, FiltersConfig)
    fields = {name for section in sections for name in section.model_fields}
    # Optimiser settings and numbers of minibatches are explained where they are listed.
    assert {name for name in fields if f"`{name}" not in text} <= {"optimizer"}
    from learner.tickets.filters import REASONS

    assert all(f"`{reason}`" in text for reason in REASONS)


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_between_documents_lead_somewhere(path: Path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_readme_names_the_shipped_configurations():
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in shipped_names())


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_commands_in_sentences_exist(path: Path):
    """Those in blocks are run: tests/newcomer/test_documents_run.py."""
    known = {command.name: ArgumentParser() for command in COMMANDS}
    for command in COMMANDS:
        for add in command.arguments:
            add(known[command.name])
    options = {
        name: {option for action in own._actions for option in action.option_strings} for name, own in known.items()
    }
    for written in re.findall(r"`(?:\w+=\S+ )?zerotir ([^`]+)`", path.read_text()):
        for name in words(written)[0].split("|"):
            if name.startswith("-"):
                continue
            assert name in known, f"{path.name}: zerotir {written}"
            given = {option.partition("=")[0] for option in words(written) if option.startswith("-") and option != "-"}
            assert given <= options[name], f"{path.name}: zerotir {written}"


def words(command: str) -> list[str]:
    return [word.strip("[],") for word in command.split()]
