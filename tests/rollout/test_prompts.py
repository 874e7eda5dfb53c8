"""Templates, and the parsing rules of actions."""

import pytest

from paw_fast.errors import UserError
from paw_fast.rollout.prompts import PromptTemplate, parse_action, shown
from paw_fast.types import Observation

SEEN = Observation("You are in a room.", ("go to desk 1", "look"), "put a mug in desk")


@pytest.mark.parametrize(
    ("text", "command", "well_formed"),
    [
        ("<think>x</think><action>Go to Desk 1</action>", "go to desk 1", True),
        ("<think>x</think> <action> look </action> <action>help</action>", "look", True),  # the first one counts
        ("<action>look</action>", "look", False),  # no thought
        ("</think><think><action>look</action>", "look", False),  # tags the wrong way round
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
def test_shipped_templates_show_what_the_policy_needs(name):
    template = PromptTemplate.load(name)
    history = [{"observation": "You see a bed.", "command": "go to bed 1"}]
    text = template.window(SEEN, "put a mug in desk", history, 1)
    for part in ("put a mug in desk", "You are in a room.", "You see a bed.", "go to bed 1"):
        assert part in text
    before, after = template.split_next(SEEN)
    assert SEEN.text not in before + after


def test_a_long_history_falls_back_to_the_template_without():
    template = PromptTemplate.load("verl")
    history = [{"observation": "y" * 14000, "command": "look"}]
    text = template.window(SEEN, "t", history, 1)
    assert "yyy" not in text
    assert SEEN.text in text
    assert template.window_or_less(SEEN, "t", history, 1) == (text, True)
    assert template.window_or_less(SEEN, "t", [{"observation": "y", "command": "look"}], 1)[1] is False


def test_an_observation_is_shown_in_the_environments_form_and_cut_to_the_limit():
    assert shown(SEEN) == (SEEN, False)
    assert shown(SEEN, len(SEEN.text)) == (SEEN, False)
    short, cut = shown(SEEN, 7)
    assert (short.text, short.admissible, cut) == ("You are", SEEN.admissible, True)
    other = Observation("page", shown="the page")
    assert shown(other)[0].text == "the page"
    assert shown(other, 3) == (Observation("the"), True)


def test_a_template_of_the_users_own(tmp_path):
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
def test_a_broken_template_says_what_is_wrong(tmp_path, change, message):
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
        ('next="{{ observation }}"\nmax_chars="many"', "max_chars is 'many', expected a number"),
        ('next="{{ observation }}"\nstop="</action>"', "stop is '</action>', expected a list of texts"),
    ],
)
def test_a_template_runs_no_code_and_its_errors_are_one_line(tmp_path, change, message):
    path = tmp_path / "mine.toml"
    path.write_text('first="f"\nwindow="w"\nwindow_first="f"\n' + change)
    with pytest.raises(UserError, match=r"mine\.toml") as error:
        PromptTemplate.load(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_template_that_fails_later_names_itself_too(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('first="{{ 1 / (task | length - 1) }}"\nnext="{{ observation }}"\nwindow="w"\nwindow_first="f"\n')
    with pytest.raises(UserError, match=r"mine\.toml: 'first' cannot be rendered"):
        PromptTemplate.load(str(path))
    path.write_text(
        'first="{{ 1 / (17 - (task | length)) }}"\nnext="{{ observation }}"\nwindow="w"\nwindow_first="f"\n'
    )
    with pytest.raises(UserError, match=r"mine\.toml: 'first' cannot be rendered: division by zero"):
        PromptTemplate.load(str(path)).first(SEEN)


def test_a_template_of_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b'first="\xff"')
    with pytest.raises(UserError, match=r"mine\.toml is not a text file: byte 7 is not UTF-8"):
        PromptTemplate.load(str(path))


def test_a_template_that_is_not_there():
    with pytest.raises(UserError, match="compact, verl"):
        PromptTemplate.load("verbose")
