"""Sources of problems, and the order in which groups get them."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs.loading import load_config
from configs.tasks import ProblemsConfig
from tasks.held_out import is_held_out, problem_key
from tasks.problems import Problem, ProblemError, ProblemOrder, load_problems
from tests.unit.rows import write_jsonl

DATA = Path(__file__).parents[3] / "shared" / "data"
PROBLEMS = [Problem(id=str(i), text=f"question {i}", answer=str(i)) for i in range(10)]
PINNED = ["1", "0", "2", "4", "9", "3", "8", "6", "7", "5"]


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

    @pytest.mark.parametrize("recipe", ["two_digit_products", "digit_sums"])
    def test_no_problem_is_for_training_and_for_evaluation(self, recipe):
        """Whatever the seeds: a checkpoint may be evaluated by another configuration than it was trained with."""
        config = ProblemsConfig(recipe=recipe, size=3000)
        training = {p.text for seed in (0, 1) for p in load_problems(config, seed)}
        evaluation = {p.text for seed in (0, 5) for p in load_problems(config, seed, evaluation=True)[:300]}
        assert not training & evaluation
        assert len(evaluation) > 5
        # Each is drawn as the recipe draws: most of the first draws are kept.
        assert len(training) > 0.85 * {"two_digit_products": 3800, "digit_sums": 50}[recipe]

    def test_spelling_does_not_move_a_problem_to_the_other_side(self):
        texts = [f"What is {a} * {b}?" for a in range(10, 40) for b in range(10, 40)]
        held_out = [is_held_out(text) for text in texts]
        assert sum(held_out) == pytest.approx(90, abs=36)  # 4 standard deviations
        for spell in (str.upper, lambda text: f" ${text[:-1]}$ .\n", lambda text: text.replace(" ", "  ")):
            assert [is_held_out(spell(text)) for text in texts] == held_out

    def test_numbers_are_not_joined_and_long_texts_cost_no_more_than_their_length(self):
        assert problem_key("Compute 1 1/2.") != problem_key("Compute 11/2.")
        assert problem_key("Compute 5!") != problem_key("Compute 5")
        assert problem_key("What is  2 + 3 ?") == problem_key("what is 2+3")
        for text in ("." * 10**6 + "x", " " * 10**6 + "x", "$ " * 10**6):
            problem_key(text)

    def test_a_recipe_with_too_few_problems_says_so(self):
        config = ProblemsConfig(
            recipe="products", options={"min_digits": 1, "max_digits": 1, "min_terms": 1, "max_terms": 1}
        )
        assert len({p.text for p in load_problems(config, seed=0)[:100]}) == 10
        with pytest.raises(ProblemError, match="too few problems: of 500 draws none is for evaluation"):
            load_problems(config, seed=0, evaluation=True)[0]

    def test_ids_are_unique_and_indices_bounded(self):
        problems = load_problems(ProblemsConfig(recipe="digit_sums", size=30), seed=0)
        assert len({problem.id for problem in problems}) == 30
        assert problems[-1] == problems[29]
        with pytest.raises(IndexError):
            problems[30]

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (ProblemsConfig(recipe="two_digit_product"), r"did you mean two_digit_products\?"),
            (ProblemsConfig(recipe="products", options={"max_digit": 2}), "max_digit"),
            (ProblemsConfig(recipe="products", options={"min_digits": 0}), "min_digits must be positive"),
            (ProblemsConfig(recipe="products", options={"size": 3}), "tasks.problems.size"),
            (ProblemsConfig(recipe="rubiks_cube"), "no gold answers"),
        ],
    )
    def test_errors(self, config, message):
        with pytest.raises(ProblemError, match=message):
            load_problems(config, seed=0)


class TestMixes:
    MIX = ProblemsConfig.model_validate(
        {
            "mix": {
                "gcd": {"weight": 3, "options": {"min_value": 10, "max_value": 99}},
                "two_digit_products": {},
            },
            "size": 800,
        }
    )

    def test_recipes_come_in_their_weights_with_their_options(self):
        problems = load_problems(self.MIX, seed=0)
        kinds = [problem.id.rpartition("-")[0] for problem in problems]
        assert len(problems) == len({problem.id for problem in problems}) == 800
        assert set(kinds) == {"gcd", "two_digit_products"}
        assert kinds.count("gcd") == pytest.approx(600, abs=50)  # 4 standard deviations
        gcd = next(problem for problem in problems if problem.id.startswith("gcd"))
        numbers = [int(word.strip(",.")) for word in gcd.text.split() if word.strip(",.").isdigit()]
        assert all(10 <= number <= 99 for number in numbers)

    def test_a_function_of_the_seed_and_the_number_alone(self):
        first, again, other = (load_problems(self.MIX, seed) for seed in (1, 1, 2))
        assert [again[i] for i in reversed(range(100))] == [first[i] for i in range(100)][::-1]
        kinds = [[problem.id.partition("-")[0] for problem in problems[:100]] for problems in (first, other)]
        assert kinds[0] != kinds[1]

    def test_the_shipped_mix_has_numbers_for_answers(self):
        problems = load_problems(load_config("harder-mix").tasks.problems, seed=0)
        sample = [problems[i] for i in range(300)]
        assert {problem.id.rpartition("-")[0] for problem in sample} == set(
            load_config("harder-mix").tasks.problems.mix
        )
        for problem in sample:
            float(problem.answer)

    def test_files_are_mixed_with_recipes_by_weight_and_come_in_turn(self, tmp_path):
        path = write_jsonl(tmp_path / "set.jsonl", [{"id": f"row{i}", "q": f"{i}?", "answer": i} for i in range(7)])
        mix = {"mine": {"file": path, "problem_field": "q", "weight": 3}, "two_digit_products": {}}
        config = ProblemsConfig.model_validate({"mix": mix, "size": 400})
        problems = load_problems(config, seed=0)
        ids = [problem.id for problem in problems]
        mine = [id for id in ids if id.startswith("row")]
        assert len(mine) == pytest.approx(300, abs=36)  # 4 standard deviations
        assert mine == [f"row{i % 7}" for i in range(len(mine))]
        assert [problems[i].id for i in reversed(range(400))] == ids[::-1]
        assert all(id.startswith("two_digit_products-") for id in set(ids) - set(mine))

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ({"file": "a.jsonl", "dataset": "b"}, "exclude each other"),
            ({"file": "a.jsonl", "options": {"x": 1}}, "exclude each other"),
        ],
    )
    def test_a_mixed_source_is_one(self, source, message):
        with pytest.raises(ValueError, match=message):
            ProblemsConfig.model_validate({"mix": {"mine": source}})

    @pytest.mark.parametrize(
        ("mix", "message"),
        [
            ({"mine": {"file": "absent.jsonl"}}, "absent.jsonl: there is no such file"),
            ({"gdc": {}}, r"no recipe 'gdc': did you mean gcd\?"),
            ({"gcd": {}, "lcm": {"options": {"maximum": 3}}}, "recipe 'lcm' refuses its options: .*maximum"),
            ({"gcd": {}, "rubiks_cube": {}}, "recipe 'rubiks_cube' has no gold answers"),
        ],
    )
    def test_errors_name_the_recipe(self, mix, message):
        with pytest.raises(ProblemError, match=message):
            load_problems(ProblemsConfig.model_validate({"mix": mix}), seed=0)


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
