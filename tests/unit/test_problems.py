"""Sources of problems, and the order in which groups get them."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.loading import load_config
from configs.tasks import ProblemsConfig
from tasks.held_out import is_held_out, problem_key
from tasks.problems import Problem, ProblemError, ProblemOrder, load_problems

DATA = Path(__file__).parents[3] / "shared" / "data"
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


class TestFilesAndDataSets:
    def test_json_lines_with_named_fields(self, tmp_path):
        rows = [{"id": f"p{i}", "question": f"{i}?", "gold": i, "level": 2} for i in range(3)]
        path = write_jsonl(tmp_path / "set.jsonl", rows)
        problems = load_problems(ProblemsConfig(file=path, problem_field="question", answer_field="gold"), seed=0)
        assert list(problems) == [Problem(id=f"p{i}", text=f"{i}?", answer=str(i)) for i in range(3)]

    @pytest.mark.parametrize("array", [False, True], ids=["lines", "array"])
    def test_answers_are_what_the_file_says(self, tmp_path, array):
        """Whatever else is in the column: a table would make floats and dates of these."""
        answers = ["1180591620717411303424", "9007199254740993", "0.5", "-3", "3.10", '"2024-11-05"', '"007"']
        answers.append("9" * 5000)
        rows = [f'{{"problem": "{number}?", "answer": {answer}}}' for number, answer in enumerate(answers)]
        path = tmp_path / "set.json"
        path.write_text("[" + ",\n".join(rows) + "]" if array else "\n".join(rows) + "\n\n")
        problems = load_problems(ProblemsConfig(file=str(path)), seed=0)
        assert [problem.answer for problem in problems] == [answer.strip('"') for answer in answers]

    def test_numbers_have_no_exponents_which_a_grader_takes_for_eulers_number(self, tmp_path):
        from datasets import Dataset

        path = write_jsonl(tmp_path / "set.jsonl", [{"problem": "a", "answer": 1e-5}, {"problem": "b", "answer": 1e16}])
        assert [p.answer for p in load_problems(ProblemsConfig(file=path), seed=0)] == ["0.00001", "10000000000000000"]
        (tmp_path / "set.json").write_text('[{"problem": "a", "answer": 1e3}, {"problem": "b", "answer": -2.5E-3}]')
        problems = load_problems(ProblemsConfig(file=str(tmp_path / "set.json")), seed=0)
        assert [problem.answer for problem in problems] == ["1000", "-0.0025"]
        Dataset.from_dict({"problem": ["a"], "answer": [1e-5]}).to_parquet(tmp_path / "set.parquet")
        problems = load_problems(ProblemsConfig(file=str(tmp_path / "set.parquet")), seed=0)
        assert [problem.answer for problem in problems] == ["0.00001"]

    def test_a_byte_order_mark_and_an_id_of_0_are_taken(self, tmp_path):
        path = tmp_path / "set.jsonl"
        path.write_text('{"id": 0, "problem": "a", "answer": "1"}\n', encoding="utf-8-sig")
        assert list(load_problems(ProblemsConfig(file=str(path)), seed=0)) == [Problem("0", "a", "1")]

    def test_floats_of_32_bits_are_refused(self, tmp_path):
        from datasets import Dataset, Features, Value

        path = tmp_path / "set.parquet"
        features = Features({"problem": Value("string"), "answer": Value("float32")})
        Dataset.from_dict({"problem": ["a"], "answer": [0.1]}, features=features).to_parquet(path)
        with pytest.raises(ProblemError, match="holds floats of less than 64 bits"):
            load_problems(ProblemsConfig(file=str(path)), seed=0)

    @pytest.mark.parametrize("large", [2**53 + 1, 2**70, -(2**60)])
    def test_integers_that_a_table_has_made_floats_are_refused(self, tmp_path, large):
        from datasets import Dataset

        path = tmp_path / "set.parquet"
        Dataset.from_dict({"problem": ["a", "b"], "answer": [0.5, float(large)]}).to_parquet(path)
        with pytest.raises(ProblemError, match=r"row 1: .* may be another number than was meant; store it as text"):
            load_problems(ProblemsConfig(file=str(path)), seed=0)

    def test_small_floats_and_exact_integers_of_a_table_are_taken(self, tmp_path):
        from datasets import Dataset

        path = tmp_path / "set.parquet"
        Dataset.from_dict({"problem": ["a", "b"], "answer": [2**62 + 1, 3]}).to_parquet(path)
        assert [p.answer for p in load_problems(ProblemsConfig(file=str(path)), seed=0)] == [str(2**62 + 1), "3"]
        Dataset.from_dict({"problem": ["a", "b"], "answer": [0.25, 3.0]}).to_parquet(path)
        assert [p.answer for p in load_problems(ProblemsConfig(file=str(path)), seed=0)] == ["0.25", "3.0"]
        Dataset.from_dict({"problem": ["a", "b"], "answer": [1.5, None]}).to_parquet(path)
        with pytest.raises(ProblemError, match="row 1"):
            load_problems(ProblemsConfig(file=str(path)), seed=0)

    def test_dates_of_a_table_are_refused_with_the_reason(self, tmp_path):
        from datetime import date

        from datasets import Dataset

        path = tmp_path / "set.parquet"
        Dataset.from_dict({"problem": ["a"], "answer": [date(2024, 11, 5)]}).to_parquet(path)
        with pytest.raises(ProblemError, match=r"row 0: .*date.*store it as the text that is to be compared"):
            load_problems(ProblemsConfig(file=str(path)), seed=0)

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
        test = ProblemsConfig(dataset=str(folder), split="test")
        assert [p.answer for p in load_problems(test, seed=0)] == ["4", "6"]
        with pytest.raises(ProblemError, match="dev"):
            load_problems(ProblemsConfig(dataset=str(folder), split="dev"), seed=0)

    def test_a_data_set_of_several_subsets(self, tmp_path):
        folder = tmp_path / "sums"
        folder.mkdir()
        for name in ("main", "hard"):
            write_jsonl(folder / f"{name}.jsonl", [{"problem": f"{name}?", "answer": "2"}])
        configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("main", "hard"))
        (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        config = ProblemsConfig(dataset=str(folder), subset="hard")
        assert [p.text for p in load_problems(config, seed=0)] == ["hard?"]
        with pytest.raises(ProblemError) as missing:
            load_problems(ProblemsConfig(dataset=str(folder)), seed=0)
        assert str(missing.value).endswith(
            "it has the subsets main, hard: name one (`subset`, or NAME:SUBSET:SPLIT on a command line)"
        )
        with pytest.raises(ProblemError, match="no subset 'mian': did you mean main"):
            load_problems(ProblemsConfig(dataset=str(folder), subset="mian"), seed=0)
        assert "load_dataset" not in str(missing.value)

    def test_csv_in_a_folder_is_refused(self, tmp_path):
        """The library would make 7 of 007, and of the first column an index where rows have a field more."""
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "train.csv").write_text("problem,answer\nq,007\n")
        with pytest.raises(ProblemError, match=r"holds CSV files, .*: name one as a file, as .*train\.csv"):
            load_problems(ProblemsConfig(dataset=str(tmp_path)), seed=0)

    def test_a_damaged_saved_folder(self, tmp_path):
        (tmp_path / "dataset_dict.json").write_text("{}")
        with pytest.raises(ProblemError, match="is damaged"):
            load_problems(ProblemsConfig(dataset=str(tmp_path)), seed=0)

    def test_a_folder_that_a_data_set_was_saved_to(self, tmp_path):
        from datasets import Dataset, DatasetDict

        rows = Dataset.from_list([{"problem": "a", "answer": "1"}])
        rows.save_to_disk(tmp_path / "one")
        DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "splits")
        for settings in ({"dataset": "one"}, {"dataset": "splits"}, {"dataset": "splits", "split": "test"}):
            source = ProblemsConfig.model_validate(settings | {"dataset": str(tmp_path / settings["dataset"])})
            assert [p.answer for p in load_problems(source, seed=0)] == ["1"]
        for settings, message in (
            ({"dataset": "one", "split": "train"}, "has no splits"),
            ({"dataset": "splits", "split": "tset"}, "no split 'tset': did you mean test"),
            ({"dataset": "splits", "subset": "main"}, "no subsets"),
        ):
            source = ProblemsConfig.model_validate(settings | {"dataset": str(tmp_path / settings["dataset"])})
            with pytest.raises(ProblemError, match=message):
                load_problems(source, seed=0)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"dataset": "a:main:test"}, "name its subset and its split in fields of their own"),
            ({"file": "a.jsonl", "split": "test"}, "subset and split belong to a data set"),
            ({"recipe": "gcd", "subset": "main"}, "subset and split belong to a data set"),
        ],
    )
    def test_subsets_and_splits_belong_to_data_sets(self, settings, message):
        with pytest.raises(ValueError, match=message):
            ProblemsConfig.model_validate(settings)

    def test_an_unknown_data_set_is_one_clear_error(self):
        with pytest.raises(ProblemError, match="no-such-owner/no-such-set"):
            load_problems(ProblemsConfig(dataset="no-such-owner/no-such-set"), seed=0)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ProblemError, match=r"absent\.jsonl: there is no such file"):
            load_problems(ProblemsConfig(file=str(tmp_path / "absent.jsonl")), seed=0)

    @pytest.mark.parametrize("name", ["set.txt", "set.parquet.gz", "set", "set.gz"])
    def test_an_unknown_kind_of_file(self, tmp_path, name):
        path = tmp_path / name
        path.write_text("problem,answer\n1,2\n")
        with pytest.raises(ProblemError, match=r"expected one of \.jsonl, \.json, \.csv, \.parquet"):
            load_problems(ProblemsConfig(file=str(path)), seed=0)

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_csv_is_text_whatever_it_looks_like(self, tmp_path, suffix):
        text = '\ufeff\nid, problem,answer \r\n7,"1, and\nmore",007\r\n8,b,1.50\n\n9,"say ""c""",1e5\n'
        path = tmp_path / f"set.csv{suffix}"
        path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
        assert list(load_problems(ProblemsConfig(file=str(path)), seed=0)) == [
            Problem("7", "1, and\nmore", "007"),
            Problem("8", "b", "1.50"),
            Problem("9", 'say "c"', "1e5"),
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("problem,answer\na,1,2\n", "line 2 ends a row of 3 fields, the first has 2"),
            ("problem,answer\na\n", "line 2 ends a row of 1 fields"),
            ("problem,answer,answer\na,1,2\n", "the field 'answer' is there twice"),
            ('problem,answer\n"a,1\n', "line 2 is not CSV"),
            ("problem;answer\na;1\n", "no field 'problem': did you mean problem;answer"),
            ("problem,answer\n", "has no rows"),
            ("\ufeff", "has no rows"),
            ("\n\n", "has no rows"),
            ("problem,answer\na,\n", "row 0: field 'answer' is ''"),
        ],
    )
    def test_bad_csv(self, tmp_path, text, message):
        path = tmp_path / "set.csv"
        path.write_text(text)
        with pytest.raises(ProblemError, match=message):
            load_problems(ProblemsConfig(file=str(path)), seed=0)

    def test_packed_json(self, tmp_path):
        path = tmp_path / "set.jsonl.gz"
        packed = gzip.compress(b'{"problem": "a", "answer": 1}\n')
        path.write_bytes(packed)
        assert list(load_problems(ProblemsConfig(file=str(path)), seed=0)) == [Problem("set-0", "a", "1")]
        for damaged in (packed[:-4], b"no gzip", packed[:12] + b"\xff" * 8 + packed[20:]):
            path.write_bytes(damaged)
            with pytest.raises(ProblemError, match="not a whole gzip file"):
                load_problems(ProblemsConfig(file=str(path)), seed=0)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is empty"),
            ('{"problem": "a", "answer": "1"}\n{"problem": ', "line 2 is not JSON"),
            ('{"problem": "a", "answers": "1"}\n', r"no field 'answer': did you mean answers\?"),
            ('{"question": "a", "answer": "1"}\n', "no field 'problem'.*valid are question, answer"),
            ('{"problem": "a", "answer": "1"}\n{"problem": "b", "answer": null}\n', "row 1: field 'answer' is None"),
            ('{"problem": "a", "answer": "1"}\n{"problem": " ", "answer": "1"}\n', "row 1: field 'problem'"),
            ('{"problem": "a", "answer": ["1"]}\n', "field 'answer' is .'1'., not a text or a number"),
            ('{"problem": "a", "answer": true}\n', "field 'answer' is True, not a text or a number"),
            ('{"problem": "a", "answer": "1"}\n{"problem": "b"}\n', "row 1: field 'answer' is None"),
            ('{"problem": "a", "answer": "1"}\n7\n', "line 2 is no object"),
            ('[{"problem": "a", "answer": "1"}, 7]', "entry 1 is no object"),
            ("[" * 100_000, "the array is not JSON"),
            ('{"problem": "a", "answer": NaN}\n', "line 1 is not JSON .NaN is no number"),
            ('{"problem": "a", "answer": 1e999999999}\n', "has more than 400 digits"),
            ('{"problem": "a", "answer": 1, "answer": 2}\n', "field 'answer' is there twice"),
            ('{\n"problem": "a",\n"answer": 1\n}', "one object a line is expected, or one array of objects"),
            ('{"problem": "a", "answer": [%s]}' % ("1, " * 9000 + "1"), r"is \['1', .{60,80} \.\.\., not a text"),
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
