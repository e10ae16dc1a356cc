"""Sources of problems, and the order in which groups get them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.schema import ProblemsConfig
from tasks.problems import Problem, ProblemError, ProblemOrder, load_problems

PROBLEMS = [Problem(id=str(i), text=f"question {i}", answer=str(i)) for i in range(10)]
PINNED = ["1", "0", "2", "4", "9", "3", "8", "6", "7", "5"]


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


class TestRecipes:
    def test_two_digit_products_ask_what_is_a_times_b(self):
        problems = load_problems(ProblemsConfig(recipe="two_digit_products", size=300), seed=3)
        assert len(problems) == 300
        for problem in problems:
            words = problem.text.removesuffix("?").split(" ")
            a, b = int(words[2]), int(words[4])
            assert problem.text == f"What is {a} * {b}?"
            assert 10 <= a <= 99
            assert 10 <= b <= 99
            assert problem.answer == str(a * b)
        assert len({problem.text for problem in problems}) > 250

    def test_digit_sums_have_one_digit_answers(self):
        problems = load_problems(ProblemsConfig(recipe="digit_sums", size=200), seed=0)
        for problem in problems:
            assert len(problem.text) == 4
            assert problem.text[1::2] == "+="
            assert int(problem.text[0]) + int(problem.text[2]) == int(problem.answer) <= 9
        assert {problem.answer for problem in problems} == set("0123456789")

    def test_options_reach_a_recipe_of_reasoning_gym(self):
        config = ProblemsConfig(recipe="products", options={"min_digits": 1, "max_digits": 1}, size=50)
        assert all(int(problem.answer) <= 81 for problem in load_problems(config, seed=0))

    def test_the_same_in_another_process(self):
        config = ProblemsConfig(recipe="gsm_symbolic", size=20)
        program = (
            "import hashlib; from configs.schema import ProblemsConfig; from tasks.problems import load_problems\n"
            "print(hashlib.sha256(repr(list(load_problems(ProblemsConfig(recipe='gsm_symbolic', size=20), seed=5)))"
            ".encode()).hexdigest())"
        )
        import hashlib

        here = hashlib.sha256(repr(list(load_problems(config, seed=5))).encode()).hexdigest()
        there = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program], check=True, capture_output=True, text=True, timeout=120
        )
        assert there.stdout.strip() == here

    def test_neighbouring_seeds_share_no_run_of_problems(self):
        config = ProblemsConfig(recipe="two_digit_products", size=200)
        first, second = ([p.text for p in load_problems(config, seed)] for seed in (1, 2))
        assert len(set(first) & set(second)) < 50  # about 5 of 8,100 by chance

    def test_ids_are_unique_and_indices_bounded(self):
        problems = load_problems(ProblemsConfig(recipe="digit_sums", size=30), seed=0)
        assert len({problem.id for problem in problems}) == 30
        assert problems[-1] == problems[29]
        with pytest.raises(IndexError):
            problems[30]

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (ProblemsConfig(recipe="two_digit_product"), "did you mean 'two_digit_products'"),
            (ProblemsConfig(recipe="products", options={"max_digit": 2}), "max_digit"),
            (ProblemsConfig(recipe="products", options={"min_digits": 0}), "min_digits must be positive"),
            (ProblemsConfig(recipe="products", options={"size": 3}), "tasks.problems.size"),
            (ProblemsConfig(recipe="rubiks_cube"), "no gold answers"),
        ],
    )
    def test_errors(self, config, message):
        with pytest.raises(ProblemError, match=message):
            load_problems(config, seed=0)


class TestFilesAndDataSets:
    def test_json_lines_with_named_fields(self, tmp_path):
        rows = [{"id": f"p{i}", "question": f"{i}?", "gold": i, "level": 2} for i in range(3)]
        path = write_jsonl(tmp_path / "set.jsonl", rows)
        problems = load_problems(ProblemsConfig(file=path, problem_field="question", answer_field="gold"), seed=0)
        assert list(problems) == [Problem(id=f"p{i}", text=f"{i}?", answer=str(i)) for i in range(3)]

    def test_a_changed_file_is_read_anew(self, tmp_path):
        path = tmp_path / "set.jsonl"
        for text in ("first", "second one"):
            write_jsonl(path, [{"problem": text, "answer": "1"}])
            assert load_problems(ProblemsConfig(file=str(path)), seed=0)[0].text == text

    def test_parquet_without_ids(self, tmp_path):
        from datasets import Dataset

        path = tmp_path / "set.parquet"
        Dataset.from_list([{"problem": "a", "answer": "1"}, {"problem": "b", "answer": "2"}]).to_parquet(path)
        problems = load_problems(ProblemsConfig(file=str(path)), seed=0)
        assert list(problems) == [Problem("set-0", "a", "1"), Problem("set-1", "b", "2")]

    def test_data_set_and_split(self, tmp_path):
        folder = tmp_path / "sums"
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", [{"problem": "1+1", "answer": "2"}])
        write_jsonl(folder / "test.jsonl", [{"problem": "2+2", "answer": "4"}, {"problem": "3+3", "answer": "6"}])
        assert [p.answer for p in load_problems(ProblemsConfig(dataset=str(folder)), seed=0)] == ["2"]
        assert [p.answer for p in load_problems(ProblemsConfig(dataset=f"{folder}:test"), seed=0)] == ["4", "6"]
        with pytest.raises(ProblemError, match="dev"):
            load_problems(ProblemsConfig(dataset=f"{folder}:dev"), seed=0)

    def test_an_unknown_data_set_is_one_clear_error(self):
        with pytest.raises(ProblemError, match="no-such-owner/no-such-set"):
            load_problems(ProblemsConfig(dataset="no-such-owner/no-such-set"), seed=0)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ProblemError, match=r"no file .*absent\.jsonl"):
            load_problems(ProblemsConfig(file=str(tmp_path / "absent.jsonl")), seed=0)

    def test_an_unknown_kind_of_file(self, tmp_path):
        path = tmp_path / "set.csv"
        path.write_text("problem,answer\n1,2\n")
        with pytest.raises(ProblemError, match=r"expected one of \.jsonl"):
            load_problems(ProblemsConfig(file=str(path)), seed=0)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is empty"),
            ('{"problem": "a", "answer": "1"}\n{"problem": ', "can't be read"),
            ('{"problem": "a", "answers": "1"}\n', "no field 'answer': did you mean 'answers'"),
            ('{"question": "a", "answer": "1"}\n', "no field 'problem'.*it has question, answer"),
            ('{"problem": "a", "answer": "1"}\n{"problem": "b", "answer": null}\n', "row 1: field 'answer' is None"),
            ('{"problem": "a", "answer": "1"}\n{"problem": " ", "answer": "1"}\n', "row 1: field 'problem'"),
            ('{"problem": "a", "answer": ["1"]}\n', "field 'answer'"),
        ],
    )
    def test_bad_content(self, tmp_path, content, message):
        path = tmp_path / "set.jsonl"
        path.write_text(content)
        with pytest.raises(ProblemError, match=message):
            load_problems(ProblemsConfig(file=str(path)), seed=0)


class TestProblemOrder:
    def test_every_epoch_goes_through_all_problems_in_its_own_order(self):
        order = ProblemOrder(PROBLEMS, seed=1)
        epochs = [[order[epoch * 10 + i].id for i in range(10)] for epoch in range(3)]
        assert all(sorted(epoch) == [p.id for p in PROBLEMS] for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 3

    def test_a_resumed_dispatcher_gets_the_same_from_any_group_on(self):
        whole = [ProblemOrder(PROBLEMS, seed=1)[g] for g in range(35)]
        order = ProblemOrder(PROBLEMS, seed=1)
        assert [order[g] for g in reversed(range(35))] == whole[::-1]
        assert order[23] == whole[23]

    def test_the_order_is_pinned(self):
        """A resumed run after an upgrade must not see another order."""
        assert [ProblemOrder(PROBLEMS, seed=0)[g].id for g in range(10)] == PINNED

    def test_another_seed_gives_another_order(self):
        first, second = (ProblemOrder(PROBLEMS, seed) for seed in (1, 2))
        assert [first[g] for g in range(10)] != [second[g] for g in range(10)]

    def test_bad_input(self):
        with pytest.raises(ProblemError, match="no problems"):
            ProblemOrder([], seed=0)
        with pytest.raises(IndexError):
            ProblemOrder(PROBLEMS, seed=0)[-1]
