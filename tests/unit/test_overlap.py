"""Problems that are asked and trained on: found however they are written."""

import pytest

from configs.tasks import ProblemsConfig
from tasks.overlap import overlap, refuse_overlap
from tasks.problems import Problem, ProblemError, load_problems
from tests.unit.test_problems import DATA


class TestOverlap:
    TRAINING = (Problem("t0", "What is $2 + 3$?", "5"), Problem("t1", "What is 2 + 4?", "6"))

    def test_the_same_problem_is_found_in_another_dress(self):
        evaluation = [
            Problem("e0", "what is 2+3", "5"),
            Problem("e1", "What is 2 + 5?", "7"),
            Problem("e2", "2 + 4?", "6"),
        ]
        assert overlap(self.TRAINING, evaluation) == [(evaluation[0], self.TRAINING[0])]

    def test_signs_and_numbers_make_a_difference(self):
        for text in ("What is 2 - 3?", "What is 23?", "What is 2 + 33?", "What is -2 + 3?"):
            assert overlap(self.TRAINING, [Problem("e", text, "1")]) == []

    def test_an_overlap_is_refused_by_name(self):
        evaluation = [Problem("e0", "What is 2 + 4?", "6")]
        with pytest.raises(ProblemError, match=r"1 problems of the evaluation set 'sums' .*e0 is t1; 'What is 2 \+ 4"):
            refuse_overlap(self.TRAINING, evaluation, "sums")
        refuse_overlap(self.TRAINING, [Problem("e0", "What is 2 + 6?", "8")], "sums")

    @pytest.mark.skipif(not DATA.is_dir(), reason="the problem sets in ../shared/data are not on this machine")
    def test_the_measured_sets_share_what_they_share(self):
        math, aime = (
            load_problems(ProblemsConfig(file=str(DATA / f"{name}.jsonl")), seed=0) for name in ("math500", "aime24")
        )
        assert len(overlap(math, math)) == 500
        assert overlap(math, aime) == []
