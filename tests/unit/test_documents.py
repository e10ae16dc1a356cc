"""The documents say what the code does."""

import re
from pathlib import Path

import pytest

from configs.loading import shipped_names
from configs.reference import configuration_reference

ROOT = Path(__file__).parents[2]


def test_the_configuration_reference_is_current():
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == configuration_reference(), "run scripts/document_configuration"


def test_every_metric_is_documented():
    documented = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs" / "metrics.md").read_text()))
    # Names are literal keys in the three places that write metrics; the balance and the reward's parts get a prefix.
    for source in ("learner/report.py", "actors/actor.py"):
        text = (ROOT / source).read_text()
        names = set(re.findall(r'^\s+"([a-z_]+)":', text, re.MULTILINE))
        names |= set(re.findall(r'values\["([a-z_]+)"\]', text))
        assert names <= documented, f"{source}: {sorted(names - documented)}"
    from learner.trainer import NO_METRICS

    assert set(NO_METRICS) <= documented


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda path: path.name
)
def test_links_between_documents_lead_somewhere(path: Path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_readme_names_the_shipped_configurations():
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in shipped_names())
