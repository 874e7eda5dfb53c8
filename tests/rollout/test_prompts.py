"""Tests of prompt templates and of the parsing of actions."""

import pytest

from paw_fast.errors import UserError
from paw_fast.rollout.prompts import PromptTemplate, parse_action, policy_view
from paw_fast.types import Observation

SEEN = Observation("You are in a room.", ("go to desk 1", "look"), "put a mug in desk")


@pytest.mark.parametrize(
    ("text", "command", "well_formed"),
    [
        ("<think>x</think><action>Go to Desk 1</action>", "go to desk 1", True),
        ("<think>x</think> <action> look </action> <action>help</action>", "look", True),  # the first one counts
        ("<action>look</action>", "look", False),  # no thought
        ("</think><think><action>look</action>", "look", False),  # tags in the wrong order
        ("I will take the first exit on the left", "exit on the left", False),  # the last 20 characters
        ("<action>look", "<action>look", False),
        ("<think>走</think><action>look</action>", "look", False),
        ("<think>カ</think><action>look</action>", "look", False),
        ("", "", False),
    ],
)
def test_think_action(text, command, well_formed):
    parsed = parse_action(text, "think_action")
    expected = command if "exit" not in command else text.lower()[-20:].strip()
    assert (parsed.command, parsed.well_formed) == (expected, well_formed)


def test_action_only():
    assert parse_action(" Go to desk 1\n", "action").command == "go to desk 1"
    assert not parse_action("  ", "action").well_formed


@pytest.mark.parametrize("name", ["verl", "compact"])
def test_built_in_templates_contain_task_observation_and_history(name):
    template = PromptTemplate.load(name)
    history = [{"observation": "You see a bed.", "command": "go to bed 1"}]
    text = template.window(SEEN, "put a mug in desk", history, 1)
    for part in ("put a mug in desk", "You are in a room.", "You see a bed.", "go to bed 1"):
        assert part in text
    before, after = template.split_next(SEEN)
    assert SEEN.text not in before + after


def test_a_long_history_is_omitted():
    template = PromptTemplate.load("verl")
    history = [{"observation": "y" * 14000, "command": "look"}]
    text = template.window(SEEN, "t", history, 1)
    assert "yyy" not in text
    assert SEEN.text in text
    assert template.fit_window(SEEN, "t", history, 1) == (text, True)
    assert template.fit_window(SEEN, "t", [{"observation": "y", "command": "look"}], 1)[1] is False


def test_policy_view_uses_the_environments_form_and_truncates():
    assert policy_view(SEEN) == (SEEN, False)
    assert policy_view(SEEN, len(SEEN.text)) == (SEEN, False)
    short, cut = policy_view(SEEN, 7)
    assert (short.text, short.admissible, cut) == ("You are", SEEN.admissible, True)
    other = Observation("page", shown="the page")
    assert policy_view(other)[0].text == "the page"
    assert policy_view(other, 3) == (Observation("the"), True)


def test_a_template_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('first="{{ task }}"\nnext="<{{ observation }}>"\nwindow="w"\nwindow_first="f"\nstyle="action"\n')
    template = PromptTemplate.load(str(path))
    assert template.first(SEEN) == "put a mug in desk"
    assert template.split_next(SEEN) == ("<", ">")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('next="x"', "exactly once"),
        ('next="{{ obs }}"', "obs"),
        ('next="{{ observation "', "template"),
        ('next="{{ observation }}"\nstyle="loud"', "style is 'loud'"),
        ('next="{{ observation }}"\nstile="action"', "unknown key 'stile'"),
    ],
)
def test_errors_of_broken_templates(tmp_path, change, message):
    path = tmp_path / "mine.toml"
    path.write_text('first="f"\nwindow="w"\nwindow_first="f"\n' + change)
    with pytest.raises(UserError, match=r"mine\.toml") as error:
        PromptTemplate.load(str(path))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("next=\"{{ ''.__class__.__mro__ }}{{ observation }}\"", "unsafe"),
        ("next=\"{{ cycler.__init__.__globals__.os.system('false') }}{{ observation }}\"", "unsafe"),
        ('next="{{ history.append(1) }}{{ observation }}"', "unsafe"),
        ('next="{{ 1/0 }}{{ observation }}"', "'next' cannot be rendered: division by zero"),
        ('next="{% for i in range(999999999) %}x{% endfor %}{{ observation }}"', "Range too big"),
        ('next="{{ observation + 1 }}"', "'next' cannot be rendered"),
        ('next="{{ observation }}"\nmax_chars="many"', "max_chars is 'many', expected an integer"),
        ('next="{{ observation }}"\nstop="</action>"', "stop is '</action>', expected a list of strings"),
    ],
)
def test_templates_run_no_code_and_errors_are_one_line(tmp_path, change, message):
    path = tmp_path / "mine.toml"
    path.write_text('first="f"\nwindow="w"\nwindow_first="f"\n' + change)
    with pytest.raises(UserError, match=r"mine\.toml") as error:
        PromptTemplate.load(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_while_rendering_name_the_template(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('first="{{ 1 / (task | length - 1) }}"\nnext="{{ observation }}"\nwindow="w"\nwindow_first="f"\n')
    with pytest.raises(UserError, match=r"mine\.toml: 'first' cannot be rendered"):
        PromptTemplate.load(str(path))
    path.write_text(
        'first="{{ 1 / (17 - (task | length)) }}"\nnext="{{ observation }}"\nwindow="w"\nwindow_first="f"\n'
    )
    with pytest.raises(UserError, match=r"mine\.toml: 'first' cannot be rendered: division by zero"):
        PromptTemplate.load(str(path)).first(SEEN)


def test_a_template_that_is_not_utf_8(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b'first="\xff"')
    with pytest.raises(UserError, match=r"mine\.toml is not a text file: byte 7 is not UTF-8"):
        PromptTemplate.load(str(path))


def test_an_unknown_template_lists_the_built_in_ones():
    with pytest.raises(UserError, match="compact, verl"):
        PromptTemplate.load("verbose")
