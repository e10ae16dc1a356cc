"""Files and data sets as sources of problems: what is read stays as it is written, and what cannot be read says why."""

import gzip
from pathlib import Path

import pytest

from configs.tasks import ProblemsConfig
from tasks.problems import Problem, ProblemError, load_problems
from tests.unit.rows import write_jsonl

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def test_json_lines_with_named_fields(tmp_path):
    rows = [{"id": f"p{i}", "question": f"{i}?", "gold": i, "level": 2} for i in range(3)]
    path = write_jsonl(tmp_path / "set.jsonl", rows)
    problems = load_problems(ProblemsConfig(file=path, problem_field="question", answer_field="gold"), seed=0)
    assert list(problems) == [Problem(id=f"p{i}", text=f"{i}?", answer=str(i)) for i in range(3)]


@pytest.mark.parametrize("array", [False, True], ids=["lines", "array"])
def test_answers_are_what_the_file_says(tmp_path, array):
    """Whatever else is in the column: a table would make floats and dates of these."""
    answers = ["1180591620717411303424", "9007199254740993", "0.5", "-3", "3.10", '"2024-11-05"', '"007"']
    answers.append("9" * 5000)
    rows = [f'{{"problem": "{number}?", "answer": {answer}}}' for number, answer in enumerate(answers)]
    path = tmp_path / "set.json"
    path.write_text("[" + ",\n".join(rows) + "]" if array else "\n".join(rows) + "\n\n")
    problems = load_problems(ProblemsConfig(file=str(path)), seed=0)
    assert [problem.answer for problem in problems] == [answer.strip('"') for answer in answers]


def test_numbers_have_no_exponents_which_a_grader_takes_for_eulers_number(tmp_path):
    from datasets import Dataset

    path = write_jsonl(tmp_path / "set.jsonl", [{"problem": "a", "answer": 1e-5}, {"problem": "b", "answer": 1e16}])
    assert [p.answer for p in load_problems(ProblemsConfig(file=path), seed=0)] == ["0.00001", "10000000000000000"]
    (tmp_path / "set.json").write_text('[{"problem": "a", "answer": 1e3}, {"problem": "b", "answer": -2.5E-3}]')
    problems = load_problems(ProblemsConfig(file=str(tmp_path / "set.json")), seed=0)
    assert [problem.answer for problem in problems] == ["1000", "-0.0025"]
    Dataset.from_dict({"problem": ["a"], "answer": [1e-5]}).to_parquet(tmp_path / "set.parquet")
    problems = load_problems(ProblemsConfig(file=str(tmp_path / "set.parquet")), seed=0)
    assert [problem.answer for problem in problems] == ["0.00001"]


def test_a_byte_order_mark_and_an_id_of_0_are_taken(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"id": 0, "problem": "a", "answer": "1"}\n', encoding="utf-8-sig")
    assert list(load_problems(ProblemsConfig(file=str(path)), seed=0)) == [Problem("0", "a", "1")]


def test_floats_of_32_bits_are_refused(tmp_path):
    from datasets import Dataset, Features, Value

    path = tmp_path / "set.parquet"
    features = Features({"problem": Value("string"), "answer": Value("float32")})
    Dataset.from_dict({"problem": ["a"], "answer": [0.1]}, features=features).to_parquet(path)
    with pytest.raises(ProblemError, match="holds floats of less than 64 bits"):
        load_problems(ProblemsConfig(file=str(path)), seed=0)


@pytest.mark.parametrize("large", [2**53 + 1, 2**70, -(2**60)])
def test_integers_that_a_table_has_made_floats_are_refused(tmp_path, large):
    from datasets import Dataset

    path = tmp_path / "set.parquet"
    Dataset.from_dict({"problem": ["a", "b"], "answer": [0.5, float(large)]}).to_parquet(path)
    with pytest.raises(ProblemError, match=r"row 1: .* may be another number than was meant; store it as text"):
        load_problems(ProblemsConfig(file=str(path)), seed=0)


def test_small_floats_and_exact_integers_of_a_table_are_taken(tmp_path):
    from datasets import Dataset

    path = tmp_path / "set.parquet"
    Dataset.from_dict({"problem": ["a", "b"], "answer": [2**62 + 1, 3]}).to_parquet(path)
    assert [p.answer for p in load_problems(ProblemsConfig(file=str(path)), seed=0)] == [str(2**62 + 1), "3"]
    Dataset.from_dict({"problem": ["a", "b"], "answer": [0.25, 3.0]}).to_parquet(path)
    assert [p.answer for p in load_problems(ProblemsConfig(file=str(path)), seed=0)] == ["0.25", "3.0"]
    Dataset.from_dict({"problem": ["a", "b"], "answer": [1.5, None]}).to_parquet(path)
    with pytest.raises(ProblemError, match="row 1"):
        load_problems(ProblemsConfig(file=str(path)), seed=0)


def test_dates_of_a_table_are_refused_with_the_reason(tmp_path):
    from datetime import date

    from datasets import Dataset

    path = tmp_path / "set.parquet"
    Dataset.from_dict({"problem": ["a"], "answer": [date(2024, 11, 5)]}).to_parquet(path)
    with pytest.raises(ProblemError, match=r"row 0: .*date.*store it as the text that is to be compared"):
        load_problems(ProblemsConfig(file=str(path)), seed=0)


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "set.jsonl"
    for text in ("first", "second one"):
        write_jsonl(path, [{"problem": text, "answer": "1"}])
        assert load_problems(ProblemsConfig(file=str(path)), seed=0)[0].text == text


def test_parquet_without_ids(tmp_path):
    from datasets import Dataset

    path = tmp_path / "set.parquet"
    Dataset.from_list([{"problem": "a", "answer": "1"}, {"problem": "b", "answer": "2"}]).to_parquet(path)
    problems = load_problems(ProblemsConfig(file=str(path)), seed=0)
    assert list(problems) == [Problem("set-0", "a", "1"), Problem("set-1", "b", "2")]


def test_data_set_and_split(tmp_path):
    folder = tmp_path / "sums"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"problem": "1+1", "answer": "2"}])
    write_jsonl(folder / "test.jsonl", [{"problem": "2+2", "answer": "4"}, {"problem": "3+3", "answer": "6"}])
    assert [p.answer for p in load_problems(ProblemsConfig(dataset=str(folder)), seed=0)] == ["2"]
    test = ProblemsConfig(dataset=str(folder), split="test")
    assert [p.answer for p in load_problems(test, seed=0)] == ["4", "6"]
    with pytest.raises(ProblemError, match="dev"):
        load_problems(ProblemsConfig(dataset=str(folder), split="dev"), seed=0)


def test_a_data_set_of_several_subsets(tmp_path):
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


def test_csv_in_a_folder_is_refused(tmp_path):
    """The library would make 7 of 007, and of the first column an index where rows have a field more."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("problem,answer\nq,007\n")
    with pytest.raises(ProblemError, match=r"holds CSV files, .*: name one as a file, as .*train\.csv"):
        load_problems(ProblemsConfig(dataset=str(tmp_path)), seed=0)


def test_a_damaged_saved_folder(tmp_path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(ProblemError, match="is damaged"):
        load_problems(ProblemsConfig(dataset=str(tmp_path)), seed=0)


def test_a_folder_that_a_data_set_was_saved_to(tmp_path):
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
def test_subsets_and_splits_belong_to_data_sets(settings, message):
    with pytest.raises(ValueError, match=message):
        ProblemsConfig.model_validate(settings)


def test_an_unknown_data_set_is_one_clear_error():
    with pytest.raises(ProblemError, match="no-such-owner/no-such-set"):
        load_problems(ProblemsConfig(dataset="no-such-owner/no-such-set"), seed=0)


def test_a_missing_file(tmp_path):
    with pytest.raises(ProblemError, match=r"absent\.jsonl: there is no such file"):
        load_problems(ProblemsConfig(file=str(tmp_path / "absent.jsonl")), seed=0)


@pytest.mark.parametrize("name", ["set.txt", "set.parquet.gz", "set", "set.gz"])
def test_an_unknown_kind_of_file(tmp_path, name):
    path = tmp_path / name
    path.write_text("problem,answer\n1,2\n")
    with pytest.raises(ProblemError, match=r"expected one of \.jsonl, \.json, \.csv, \.parquet"):
        load_problems(ProblemsConfig(file=str(path)), seed=0)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_csv_is_text_whatever_it_looks_like(tmp_path, suffix):
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
def test_bad_csv(tmp_path, text, message):
    path = tmp_path / "set.csv"
    path.write_text(text)
    with pytest.raises(ProblemError, match=message):
        load_problems(ProblemsConfig(file=str(path)), seed=0)


def test_packed_json(tmp_path):
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
def test_bad_content(tmp_path, content, message):
    path = tmp_path / "set.jsonl"
    path.write_text(content)
    with pytest.raises(ProblemError, match=message):
        load_problems(ProblemsConfig(file=str(path)), seed=0)
