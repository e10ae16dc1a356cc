"""Problems that stand in the training and in an evaluation set: with them, an evaluation measures memory."""

from collections.abc import Iterable

from tasks.held_out import problem_key
from tasks.problems import Problem, ProblemError


def overlap(training: Iterable[Problem], evaluation: Iterable[Problem]) -> list[tuple[Problem, Problem]]:
    """Returns the pairs of an evaluation problem and a training problem of the same text, in the order of `evaluation`.

    Texts are compared by `problem_key`.
    """
    known = {problem_key(problem.text): problem for problem in training}
    return [(problem, known[key]) for problem in evaluation if (key := problem_key(problem.text)) in known]


def refuse_overlap(training: Iterable[Problem], evaluation: Iterable[Problem], name: str) -> None:
    """Raises ProblemError, which names problems, where evaluation set `name` shares some with the training problems."""
    pairs = overlap(training, evaluation)
    if pairs:
        some = ", ".join(f"{asked.id} is {trained.id}" for asked, trained in pairs[:3])
        raise ProblemError(
            f"{len(pairs)} problems of the evaluation set {name!r} are training problems too ({some}; "
            f"{pairs[0][0].text[:60]!r}): take them out of one of the two"
        )
