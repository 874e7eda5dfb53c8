"""The episodes page: numbers, marks that need no colour, escaping."""

import re
from html.parser import HTMLParser

import pytest

from paw_fast.runs.episodes_page import EpisodesView, EpisodeView, ObservedToken, TurnView, write_episodes_page

TOKENS = (ObservedToken("You", 0.1, 0.95), ObservedToken(" see", 0.6, 0.004), ObservedToken(" <b>\n", 0.3, 0.2))


def view(tokens=TOKENS, tau=0.2, before="warm start", **episode):
    turns = (
        TurnView("go to <shelf> 1", True, 0.0, 0.4, 0.25, True, tokens),
        TurnView("stop", False, -0.1, 0.4, 0.3, False, ()),
    )
    fields = {"task_id": "task/1", "task_type": "pick_two", "intro": "Welcome.", "outcome": "won"} | episode
    return EpisodesView(
        "run", before, "step_000005", tau, "entropy selection of 0.75", "2 episodes",
        (EpisodeView(**fields, episode_return=9.9, group=0, world_model_weight=0.5, turns=turns),),
    )  # fmt: skip


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.spans, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "span" and "title" in dict(attrs):
            self.spans.append((dict(attrs)["title"], dict(attrs)["class"]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def write(tmp_path):
    def made(view):
        source = write_episodes_page(view, tmp_path / "episodes.html").read_text(encoding="utf-8")
        page = Page(source)
        assert page.open == []
        assert not {"script", "link", "img", "iframe"} & set(page.tags)
        assert not re.search(r"https?://", source)
        return page

    return made


def test_numbers_and_marks(write):
    page = write(view())
    shown = page.spans[5:]  # after the samples of the legend
    before, now = shown[:3], shown[3:]
    assert before == [("10.0 %", "p3 l"), ("60.0 %", "p1 k"), ("30.0 %", "p2 k")]
    assert now == [("95.0 %", "k"), ("0.4 %", "p4 l"), ("20.0 %", "p2 k")]  # p = tau is clipped
    for words in (
        "before: mean probability 0.33, 1 of 3 tokens below 0.2",
        "now: mean probability 0.38, 1 of 3 tokens below 0.2",
        "entropy 0.40 → 0.25 nats , reward 0 , ◆ selected",
        "entropy 0.40 → 0.30 nats , reward -0.1 , invalid",
        "No observation follows.",
        "won 9.9 1 of 2 0.33 → 0.38",
        "pick two, won, return 9.9, group 1, lambda of the group 0.50",
        "You see <1 <b>",
        "entropy selection of 0.75",
    ):
        assert words in page.words, words


def test_tokens_that_changed_most(write):
    words = write(view()).words
    rose, fell = words.split("Rose most")[1].split("Fell most")
    assert "You after: go to <shelf> 1 10.0 → 95.0 %" in rose
    assert "see after: go to <shelf> 1 60.0 → 0.4 %" in fell


def test_without_a_policy_of_before(write):
    tokens = tuple(ObservedToken(token.text, None, token.now) for token in TOKENS)
    page = write(view(tokens, before=""))
    assert "now (step_000005)" in page.words
    assert "before" not in page.words
    assert len(page.spans) == 5 + 3


def test_losses_without_tau_clip_nothing(write):
    page = write(view(tau=None))
    assert [classes for _, classes in page.spans[5:8]] == ["p3 l", "p1", "p2 l"]  # framed below 50 %
    assert "clipped" not in page.words


def test_everything_is_escaped(write):
    evil = "<script>alert(1)</script>"
    tokens = (ObservedToken(evil, 0.1, 0.1), ObservedToken("", 0.1, 0.1), ObservedToken("\x00\u202e&", 0.9, 0.9))
    changes = {"task_id": evil, "task_type": evil, "intro": evil, "outcome": evil}
    page = write(view(tokens, before=evil, **changes))
    assert "script" not in page.tags
    assert page.words.count(evil) >= 7
    assert "▯▯&" in page.words
