"""Templates and their rendering to token ids, with a real tokenizer of transformers that has one id a character."""

import contextlib
import io

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from grading.blocks import find_blocks
from grading.text import last_boxed
from tasks.prompts import TEMPLATES, PromptError, load_template, render_prompt

PROBLEM = "Solve {x} for \\frac{a}{b}: {problem}?"
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {"<s>": 0} | {chr(i): i for i in [10, *range(32, 127)]}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", chat_template=CHAT)


def text_of(ids: list[int]) -> str:
    return "".join("<s>" if i == 0 else chr(i) for i in ids)


def test_plain_prompts_keep_the_tokenizers_own_beginning(tokenizer):
    ids = render_prompt(load_template("tiny"), "2+3=", tokenizer, chat=False)
    assert ids == [0, *map(ord, "2+3=")]
    assert all(type(i) is int for i in ids)


def test_braces_of_template_and_problem_stay_as_they_are(tokenizer):
    rendered = text_of(render_prompt(load_template("plain"), PROBLEM, tokenizer, chat=False))
    assert rendered == f"<s>{PROBLEM} You can use Python code to solve it. Give the final answer as \\boxed{{answer}}."


def test_chat_prompts_end_where_the_model_begins(tokenizer):
    rendered = text_of(render_prompt(load_template("plain-text"), "What is 2 * 3?", tokenizer, chat=True))
    assert rendered == "<user>What is 2 * 3? Give the final answer as \\boxed{answer}.</><assistant>"


@pytest.fixture(scope="module")
def spelled():
    """A tokenizer by the letter whose special tokens can be spelled, and that ends every text as T5's does."""
    vocabulary = {"<s>": 0, "</s>": 1, "<end>": 2, "<word>": 3} | {chr(i): i for i in [10, *range(32, 127)]}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="~"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.add_special_tokens(["<end>"])
    backend.add_tokens(["<word>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    chat = CHAT.replace("</>", "<end>").replace("m.content", "m.content|trim")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=chat)


def test_nothing_is_appended_to_a_prompt(spelled):
    assert spelled("a")["input_ids"] == [0, ord("a"), 1]
    assert render_prompt("{problem}=", "1+1", spelled, chat=False) == [0, *map(ord, "1+1=")]
    # What the template itself says at its end is there.
    assert render_prompt("{problem}</s>", "1", spelled, chat=False) == [0, ord("1"), 1]


@pytest.mark.parametrize("special", ["</s>", "<end>", "<s>"])
def test_a_special_token_that_the_problem_spells_stays_text(spelled, special):
    problem = f"What is {special}?"
    assert render_prompt("<s>{problem}<end>", problem, spelled, chat=False) == [0, 0, *map(ord, problem), 2]
    begin, end = "<user>", "<assistant>"
    assert render_prompt("{problem}!", problem, spelled, chat=True) == [
        *map(ord, begin), *map(ord, f"{problem}!"), 2, *map(ord, end)
    ]  # fmt: skip
    # Also where the chat template writes the same: only the problem is text.
    assert render_prompt("{problem}", special, spelled, chat=True) == [*map(ord, begin + special), 2, *map(ord, end)]


def test_a_problem_that_is_a_special_token_alone_keeps_the_beginning(spelled):
    assert render_prompt("{problem}", "<s>", spelled, chat=False) == [0, *map(ord, "<s>")]


def test_what_cannot_be_asked_is_explained(spelled):
    from copy import deepcopy

    refusing = deepcopy(spelled)
    refusing.chat_template = "{{ raise_exception('only in pairs') }}"
    with pytest.raises(PromptError, match="chat template cannot be filled: only in pairs"):
        render_prompt("{problem}", "1", refusing, chat=True)
    refusing.chat_template = "{% for"
    with pytest.raises(PromptError, match="chat template cannot be filled"):
        render_prompt("{problem}", "1", refusing, chat=True)
    with pytest.raises(PromptError, match="surrogate"):
        render_prompt("{problem}", "a \ud83d b", spelled, chat=False)


def test_added_words_that_are_not_special_are_tokens_wherever_they_stand(spelled):
    assert render_prompt("{problem}", "a <word>", spelled, chat=False) == [0, *map(ord, "a "), 3]


def test_a_chat_template_that_changes_such_a_problem_is_refused(spelled):
    from copy import deepcopy

    upper = deepcopy(spelled)
    upper.chat_template = CHAT.replace("m.content", "m.content|upper")
    with pytest.raises(PromptError, match="changes a problem that spells a special token"):
        render_prompt("{problem}", "a </s>", upper, chat=True)


def test_a_tokenizer_without_chat_template(tokenizer):
    from copy import deepcopy

    plain = deepcopy(tokenizer)
    plain.chat_template = None
    with pytest.raises(PromptError, match=r"tasks\.prompt\.chat"):
        render_prompt(load_template("plain"), "1", plain, chat=True)


def test_every_template_of_the_schema_is_shipped():
    names = {path.stem for path in TEMPLATES.glob("*.txt")}
    assert names == {"zerotir", "zerotir-text", "few-shot", "plain", "plain-text", "tiny"}
    for name in names:
        assert load_template(name).count("{problem}") == 1
        assert ("python" in load_template(name).lower()) == (name in {"zerotir", "few-shot", "plain"})


def test_the_papers_template():
    template = load_template("zerotir")
    for part in ("<think> </think>", "<answer> </answer>", "\\boxed{}", "User:"):
        assert part in template
    code = " In your reasoning-process, You can use python-code to solve your problem."
    assert template.endswith("{problem}\nAssistant: <think>")
    assert template.replace(code, "") == load_template("zerotir-text") != template


def test_the_shown_answers_have_the_form_of_a_rollout():
    """Code, its output as the rollout inserts it, an answer; and nothing that a base stop string would end before."""
    template = load_template("few-shot")
    assert template.endswith("User: {problem}\nAssistant:")
    [code, output] = find_blocks(template)
    assert (code.kind, output.kind) == ("python", "output")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.program)
    assert template[code.end : output.end] == f"\n```output\n{printed.getvalue()}```"
    assert printed.getvalue().strip() == last_boxed(template.partition("User: A rectangle")[0])


def test_a_template_of_the_users_own(tokenizer, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Q: {problem}\nA:\n\n")
    assert text_of(render_prompt(load_template(str(path)), "1+1", tokenizer, chat=False)) == "<s>Q: 1+1\nA:\n"


@pytest.mark.parametrize("content", ["no place", "{problem} and {problem}", "{ problem }"])
def test_the_place_of_the_problem_must_be_there_once(tokenizer, tmp_path, content):
    path = tmp_path / "bad.txt"
    path.write_text(content)
    with pytest.raises(PromptError, match=r"\{problem\} [02] times"):
        load_template(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [("zerotirr", r"did you mean zerotir\?"), ("qqq", "valid are few-shot, plain, "), (".", "no prompt temp")],
)
def test_an_unknown_template(tokenizer, name, message):
    with pytest.raises(PromptError, match=message):
        load_template(name)
