"""Every shipped configuration loads, and whatever is wrong gets one clear sentence."""

import pytest

from configs.loading import ConfigError, dump_config, load_config, parse_config, shipped_names


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configurations_load_and_survive_a_round_trip(name: str, tmp_path):
    config = load_config(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(str(copy)) == config
    assert config.name == name


def test_the_shipped_set_is_complete():
    assert shipped_names() == [
        "emulated",
        "harder-mix",
        "harder-mix-text",
        "quickstart",
        "quickstart-text",
        "tiny",
        "zerotir-32b",
        "zerotir-7b",
    ]


@pytest.mark.parametrize("name", ["quickstart", "harder-mix"])
def test_a_baseline_differs_in_tools_and_prompt_alone(name: str):
    tools, text = load_config(name).model_dump(), load_config(f"{name}-text").model_dump()
    assert text["rollout"].pop("max_tool_calls") == 0
    assert tools["rollout"].pop("max_tool_calls") > 0
    for values in (tools, text):
        del values["name"], values["tasks"]["prompt"]["template"]
    assert tools == text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.optimiser.lr=1", "unknown field learner.optimiser: did you mean optimizer?"),
        ("learner.steps=many", r"learner.steps: .*integer.* \(got 'many'\)"),
        ("learner.steps=0", r"learner.steps: .*greater than 0 \(got 0\)"),
        ("rollout.top_p=0.9", "top_p must be 1"),
        ("rollout.temperature=.nan", "rollout.temperature"),
        ("learner.algorithm.gamma=0.5", "^tiny: learner.algorithm.gamma has no effect with advantage reinforce"),
        (
            "learner.algorithm={advantage: gae, grpo_std: false}",
            "grpo_std has no effect with advantage gae, only with grpo",
        ),
        ("learner.algorithm={loss: ppo, token_weights: false}", "token_weights has no effect with loss ppo"),
        ("learner.steps", "write it as field.name=value"),
        ("name=2024-13-45", "the value is not YAML"),
        ("learner.steps=010", "learner.steps=010: 010 is the number 8 in YAML"),
        ("learner.steps=01_0", "01_0 is the number 8 in YAML"),
        ("learner.batch_timeout_s=1:30.5", "1:30.5 is the number 90.5 in YAML"),
        ('learner.steps=!!int ""', "an empty text is no number"),
        ("learner.steps=!!int [1]", "that is no number"),
        ("learner=!!map [1]", "that is no mapping"),
        ("learner=!!bool x", "the value is not YAML"),
        ("name=" + "[" * 5000, "the value is not YAML"),
        ("name.x=1", "name is a value, not a section"),
        ("tasks.problems.file=x.jsonl", "name exactly one of recipe, mix, file and dataset"),
        (
            "tasks.problems={mix: {gcd: {weigth: 2}}}",
            "unknown field tasks.problems.mix.gcd.weigth: did you mean weight",
        ),
        ("tasks.problems={mix: {gcd: {weight: 0}}}", r"tasks.problems.mix.gcd.weight: .*greater than 0"),
    ],
)
def test_a_bad_override_is_explained(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", [override])


def test_a_missing_file_and_a_wrong_name_are_explained(tmp_path):
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        load_config("quickstrat")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(str(tmp_path / "absent.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(str(broken))
    broken.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not UTF-8 text"):
        load_config(str(broken))
    broken.write_text("- 1")
    with pytest.raises(ConfigError, match="top level must be a mapping"):
        load_config(str(broken))


def test_numbers_in_scientific_notation_are_numbers():
    assert load_config("tiny", ["learner.optimizer.lr=1e-6"]).learner.optimizer.lr == 1e-6


def test_a_configuration_of_another_version_is_refused():
    text = dump_config(load_config("tiny"))
    assert parse_config(text) == load_config("tiny")
    with pytest.raises(ConfigError, match="not a configuration of this version"):
        parse_config(text.replace("max_staleness", "max_age"))


def test_everything_that_is_wrong_is_said_unknown_fields_first(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "modle: {path: random-tiny}\nname: x\ntasks: {problems: {recipe: gcd}}\nseed: a\nlearner: {stepz: 2}\n"
    )
    with pytest.raises(ConfigError) as error:
        load_config(str(path))
    first, *lines = str(error.value).splitlines()
    assert first.endswith("wrong.yaml: 3 errors")
    # Not also that `model` is missing.
    assert sorted(lines[:2]) == [
        "  unknown field learner.stepz: did you mean steps?",
        "  unknown field modle: did you mean model?",
    ]
    assert lines[2].startswith("  seed: ")


def test_a_field_that_is_missing_and_misspelt_nowhere_is_missing(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("name: x\ntasks: {problems: {recipe: gcd}}\n")
    with pytest.raises(ConfigError, match=r"wrong\.yaml: model is missing$"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 010\n",
            "line 1: 010 is the number 8 in YAML: write that, or the one that is meant, or quotes for text",
        ),
        (
            "seed: 1:30\n",
            "line 1: 1:30 is the number 90 in YAML: write that, or the one that is meant, or quotes for text",
        ),
        ("name: x\nname: y\n", "line 2: the key 'name' is there twice"),
        ("learner:\n  steps: 3\n  critic: {lr: 1}\n  steps: 4\n", "line 4: the key 'steps' is there twice"),
        ("name: [x\n", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("name: 2024-13-45\n", "month must be in 1..12"),
    ],
)
def test_yaml_that_says_two_things_or_none(tmp_path, text: str, message: str):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(str(path))
    assert str(error.value).endswith(f"is not YAML that can be used: {message}")


def test_a_configuration_on_a_base_holds_what_differs(tmp_path):
    (tmp_path / "my run.yaml").write_text(
        "base: quickstart\nlearner: {optimizer: {lr: 3.0e-6}}\ntasks: {problems: {file: mine.jsonl}}\n"
    )
    base, own = load_config("quickstart"), load_config(str(tmp_path / "my run.yaml"), ["seed=7"])
    assert (own.name, own.seed) == ("my-run", 7)
    assert own.learner.optimizer.lr == 3e-6
    # One source, and nothing of the base's.
    assert own.tasks.problems.model_dump(exclude_defaults=True) == {"file": "mine.jsonl"}
    expected = base.model_dump()
    expected["learner"]["optimizer"]["lr"] = 3e-6
    expected["tasks"]["problems"] = own.tasks.problems.model_dump()
    assert own.model_dump() == {**expected, "name": "my-run", "seed": 7}


def test_a_base_may_be_a_file_beside_it_that_has_one_itself(tmp_path):
    (tmp_path / "first.yaml").write_text("base: tiny\nname: one\nlearner: {steps: 7}\nrollout: {max_tool_calls: 0}\n")
    (tmp_path / "second.yaml").write_text("base: first.yaml\nlearner: {steps: 8}\n")
    config = load_config(str(tmp_path / "second.yaml"))
    assert (config.name, config.learner.steps, config.rollout.max_tool_calls) == ("second", 8, 0)
    assert config.model == load_config("tiny").model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: tinny\n", "no configuration named 'tinny': did you mean tiny"),
        ("base: absent.yaml\n", r"cannot read .*absent\.yaml"),
        ("base: [tiny]\n", r"base is \['tiny'\]: name a shipped configuration or a YAML file"),
        ("base: own.yaml\n", r"own\.yaml is its own base, by way of .*own\.yaml"),
        ("base: tiny\nlerner: {steps: 3}\n", "unknown field lerner: did you mean learner"),
        ("base: tiny\nlearner: 3\n", "learner: Input should be"),
    ],
)
def test_a_base_that_cannot_be(tmp_path, text: str, message: str):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(tmp_path / "own.yaml"))
