"""What a step says of its batch, and how people read it."""

import numpy as np

from bus.messages import Failure, Metrics, Trajectory, VersionSpan, WeightVersion
from launch.views import step_line, summary
from learner.step_metrics import batch_metrics
from learner.tickets.ledger import Batch
from tests import factories


def trajectory(*spans: tuple[tuple[int, int], int, int]) -> Trajectory:
    """Each span: (epoch, n), start, end."""
    versions = tuple(VersionSpan(version=WeightVersion(epoch=e, n=n), start=a, end=b) for (e, n), a, b in spans)
    length = versions[-1].end
    mask = np.zeros(length, np.uint8)
    for span in versions:
        mask[span.start : span.end] = 1
    times = {"started_at": 70.0, "first_token_at": 80.0, "published_at": 100.0}
    return factories.trajectory(
        1, length, mask=mask, versions=versions, reward=1.0, reward_parts={"correct": 1.0}, **times
    )


def batch(*members: Trajectory | Failure) -> Batch:
    trained = tuple(member for member in members if isinstance(member, Trajectory))
    return Batch(version=5, trained=(trained,) if trained else (), taken=(members,), filtered={})


def test_versions_are_counted_once_however_many_spans_they_have():
    # Tool output stands between two spans of one version.
    one = trajectory(((0, 4), 0, 3), ((0, 4), 7, 9), ((0, 4), 12, 20))
    two = trajectory(((0, 4), 0, 3), ((0, 5), 3, 9), ((0, 5), 12, 20))
    assert batch_metrics(batch(one), None)["versions_per_response"] == 1.0
    assert batch_metrics(batch(one, two), None)["versions_per_response"] == 1.5


def test_ages_end_when_the_batch_is_complete_and_a_replay_has_none():
    failure = Failure(ticket=2, group=0, reason="r", attempts=1, actor="a", published_at=110.0)
    values = batch_metrics(batch(trajectory(((0, 5), 0, 9)), failure), taken_at=130.0)
    assert (values["age_seconds"], values["trained_age_seconds"], values["failed_age_seconds"]) == (30.0, 30.0, 20.0)
    again = batch_metrics(batch(trajectory(((0, 5), 0, 9)), failure), taken_at=None)
    assert again == {name: value for name, value in values.items() if not name.endswith("age_seconds")}


def test_the_line_of_a_step_has_a_dash_for_what_was_not_measured():
    metrics = Metrics(role="learner", id="learner", step=3, time=0.0, values={"accuracy": 0.5, "step_seconds": 61.0})
    assert step_line(metrics, 20) == (
        "step   3/20  accuracy  50%  code    -  calls ok    -  tokens    -  staleness -  KL -  61 s (waited - s)"
    )


def test_the_summary_takes_means_over_the_steps_that_measured(tmp_path):
    values = [{"accuracy": 0.5}, {}, {"accuracy": 0.7}]
    lines = [
        f'{{"seq": {n}, "time": 0, "role": "learner", "id": "learner", "step": {n}, "accuracy": {value["accuracy"]}}}\n'
        if value
        else f'{{"seq": {n}, "time": 0, "role": "learner", "id": "learner", "step": {n}}}\n'
        for n, value in enumerate(values, start=1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    text = summary(tmp_path, [])
    assert "accuracy" in text
    assert "60.0% (first 3 steps)" in text
    assert "code_ratio" not in text


def test_a_batch_that_nothing_was_trained_on_tells_its_counts():
    assert batch_metrics(Batch(version=0, trained=(), taken=(), filtered={}), 0.0) == {
        "trajectories": 0,
        "failures": 0,
        "filtered": 0,
        "trained_trajectories": 0,
        "incomplete_groups": 0,
    }
