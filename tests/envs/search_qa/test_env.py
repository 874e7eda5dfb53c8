"""The environment: episodes, rewards, what the policy is shown, batching, and what can go wrong."""

import threading

import pytest
from make_records import agent_settings, request_for
from search_extras import need

from paw_fast import envs
from paw_fast.config import TrainConfig, env_config
from paw_fast.envs.base import Env
from paw_fast.envs.search_qa.datasets import Question
from paw_fast.envs.search_qa.env import NOT_UNDERSTOOD, NOTHING_FOUND, SearchEnv, read_command, show_passages
from paw_fast.envs.search_qa.query_batcher import QueryBatcher
from paw_fast.envs.search_qa.retrieval.records import Hit, Passage
from paw_fast.errors import UserError
from paw_fast.learner.packing import action_rows, observation_rows
from paw_fast.learner.sequences import build_sequences
from paw_fast.models import tiny
from paw_fast.rollout.agent_loop import AgentLoop
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.engines.base import Completion
from paw_fast.rollout.prompts import PromptTemplate, write_action
from paw_fast.sft.warm_start import as_trajectory

need("bm25s", "Stemmer")


class Library:
    """A retriever of one passage a query that remembers how it was asked."""

    num_passages = None

    def __init__(self):
        self.calls = []

    def search(self, queries, topk):
        self.calls.append(list(queries))
        return [
            [Hit(Passage(f"id of {q}", f"About {q}", f"All on {q}."), 1.0)] if q != "nothing" else [] for q in queries
        ]

    def close(self):
        pass


QUESTIONS = [Question(str(i), f"Question {i}?", ("Paris", "City of Light"), "test", ()) for i in range(4)]


def make_env(max_steps=5, format_reward=0.0):
    library = Library()
    splits = {"train": lambda: QUESTIONS, "unseen": lambda: QUESTIONS}
    return SearchEnv(splits, QueryBatcher(library, 3), max_steps, format_reward), library


def played(env, *commands, task=0):
    env.reset(env.tasks("train")[task])
    return [env.step(command) for command in commands]


def test_an_episode():
    env, library = make_env()
    assert isinstance(env, Env)
    first = env.reset(env.tasks("unseen")[1])
    assert (first.text, first.task) == ("Question 1?", "Question 1?")
    found = env.step("search[the  capital\nof France]")
    assert found.observation.text == (
        "<information>Doc 1(Title: About the capital of France) All on the capital of France.</information>"
    )
    assert (found.done, found.score, found.won, found.admissible) == (False, 0.0, False, True)
    last = env.step("answer[paris.]")
    assert (last.done, last.score, last.won) == (True, 1.0, True)
    assert last.scores == {"em": 1.0, "sub_em": 1.0, "f1": 1.0}
    assert library.calls == [["the capital of France"]]
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step("answer[x]")


def test_the_last_observation_does_not_tell_the_answer():
    """It would be learned by the world model."""
    env, _ = make_env()
    (step,) = played(env, "answer[Rome]")
    assert step.observation.text == ""
    assert step.scores["em"] == 0.0


@pytest.mark.parametrize(
    ("answer", "share", "f1"), [("the City of Light", 1.0, 1.0), ("City", 0.2, 0.5), ("Rome", 0.2, 0.0)]
)
def test_rewards(answer, share, f1):
    env, _ = make_env(format_reward=0.2)
    (step,) = played(env, f"answer[{answer}]")
    assert step.reward == share
    assert step.score == (share == 1.0)
    assert step.scores["f1"] == pytest.approx(f1)


def test_four_turns_then_an_answer_without_search():
    env, library = make_env(format_reward=0.2)
    steps = played(env, "search[a]", "search[b]", "search[c]", "search[d]", "answer[Paris]")
    assert [s.done for s in steps] == [False] * 4 + [True]
    assert steps[-1].won
    steps = played(env, "search[a]", "search[b]", "search[c]", "search[d]", "search[e]")
    assert steps[-1].done
    assert not steps[-1].won
    assert (steps[-1].reward, steps[-1].verdict[:19]) == (
        0.0,
        "No answer was given",
    )  # no reward for the form
    assert [q for call in library.calls for q in call] == ["a", "b", "c", "d"]  # the fifth is not asked


@pytest.mark.parametrize(
    "command", ["", "look", "search[]", "search[ ]", "answer[", "search a", "invalid[answer[Paris]]"]
)
def test_what_is_not_understood_costs_a_turn_and_says_how_it_goes(command):
    env, library = make_env()
    (step,) = played(env, command)
    assert (step.observation.text, step.done, step.admissible) == (NOT_UNDERSTOOD, False, False)
    assert library.calls == []


@pytest.mark.parametrize(
    ("last", "truncated"),
    [("search[again]", True), ("nonsense", True), ("answer[wrong]", False), ("answer[Paris]", False)],
)
def test_an_episode_is_truncated_that_runs_out_of_turns_without_an_answer(last, truncated):
    env, _ = make_env(max_steps=2)
    *_, step = played(env, "search[a]", last, task=1)
    assert (step.done, step.truncated) == (True, truncated)


def test_commands():
    assert read_command("Search[a [b] c]") == ("search", "a [b] c")
    assert read_command(" answer[x]\n") == ("answer", "x")
    assert read_command("answer[x] and more") is None


def test_nothing_found_and_several_passages():
    env, _ = make_env()
    (step,) = played(env, "search[nothing]")
    assert step.observation.text == f"<information>{NOTHING_FOUND}</information>"
    hits = [Hit(Passage("1", "A", "a a"), 2.0), Hit(Passage("2", "", "bb"), 1.0)]
    text, places = show_passages(hits)
    assert text == "<information>Doc 1(Title: A) a a\nDoc 2 bb</information>"
    assert [(text[start:end], name) for start, end, name in places] == [("Doc 1(Title: A) a a", "1"), ("Doc 2 bb", "2")]


def test_splits_and_tasks():
    env, _ = make_env()
    assert env.tasks("eval") == env.tasks("unseen") == env.tasks("valid_unseen")
    assert env.spawn().tasks("train") is env.tasks("train")
    with pytest.raises(UserError, match="there are train and unseen"):
        env.tasks("valid_seen")
    from paw_fast.types import Task

    with pytest.raises(UserError, match="has no question"):
        env.reset(Task("x"))


# ------------------------------------------------------------------------------------------------ the agent loop


class Scripted:
    """An engine that answers with the texts of a script, episode by episode; all that wait are answered at once."""

    policy_version = 0

    def __init__(self, chat, scripts):
        self.chat, self.scripts, self.waiting = chat, scripts, []

    def submit(self, request):
        self.waiting.append(request)

    def step(self):
        done = []
        for request in self.waiting:
            ids = tuple(self.chat.encode(self.scripts[request.episode].pop(0)))
            done.append(Completion(request.episode, ids, (0.0,) * len(ids), True, 0))
        self.waiting = []
        return done

    def release(self, episode):
        pass


@pytest.fixture(scope="module")
def chat():
    texts = ["<information>Doc 1(Title: About a) All on a.</information> <search> a </search> <answer> b </answer>"] * 9
    return ChatFormat(tiny.train_tokenizer(texts, 400))


def play(env, chat, scripts, **settings):
    template = PromptTemplate.load("compact", "search")
    engine = Scripted(chat, {number: list(script) for number, script in enumerate(scripts)})
    loop = AgentLoop(
        engine, [env.spawn() for _ in scripts], chat, template,
        agent_settings(max_steps=5, success_reward=1.0, invalid_penalty=0.25, **settings),
    )  # fmt: skip
    tasks = [request_for(task, i) for i, task in enumerate(env.tasks("train")[: len(scripts)])]
    return sorted(loop.play(tasks), key=lambda t: t.group)


def test_queries_of_all_episodes_go_out_together_and_once(chat):
    env, library = make_env()
    scripts = [[f"<search> {q} </search>", f"<search> {q}2 </search>", "<answer> Paris </answer>"] for q in "abb"]
    trajectories = play(env, chat, scripts)
    assert library.calls == [["a", "b"], ["a2", "b2"]]
    assert [t.won for t in trajectories] == [True] * 3
    assert env.take_metrics() == {"retrieval/queries": 6.0, "retrieval/known_share": pytest.approx(2 / 6)}
    assert env.take_metrics() == {"retrieval/queries": 0.0}


def test_returns_penalties_and_scores(chat):
    env, _ = make_env(format_reward=0.5)
    won, wrong, silent = play(env, chat, [
        ["no tags at all", "<answer> paris </answer>"], ["<answer> City </answer>"], ["<search> a </search>"] * 5,
    ])  # fmt: skip
    assert (won.episode_return, won.success_return, won.score) == (0.75, 1.0, 1.0)
    assert [t.valid for t in won.transitions] == [False, True]
    assert (wrong.episode_return, wrong.won, wrong.score, wrong.scores["f1"]) == (0.5, False, 0.0, 0.5)
    assert (silent.episode_return, silent.scores) == (0.0, {"em": 0.0, "sub_em": 0.0, "f1": 0.0})
    assert len(silent.transitions) == 5


@pytest.mark.parametrize("layout", ["trajectory", "window"])
def test_retrieved_text_is_never_the_policys_and_always_the_world_models(chat, layout):
    env, _ = make_env()
    script = ["<search> a </search>", "nonsense", "<search> b </search>", "<answer> Paris </answer>"]
    (trajectory,) = play(env, chat, [script], layout=layout, history=4)
    written, observed = [], []
    for sequence in build_sequences([trajectory], layout):
        for span in sequence.spans:
            written.append(chat.decode(sequence.ids[span.action[0] : span.action[1]]))
            observed.append(chat.decode([sequence.ids[i] for i in span.observation]))
            assert not set(span.observation) & set(range(*span.action))
        policy = action_rows(sequence).positions.tolist()
        assert policy == [i for span in sequence.spans for i in range(*span.action)]
        world_model = observation_rows(sequence, [1.0] * len(sequence.spans)).positions.tolist()
        assert world_model == [i for span in sequence.spans for i in span.observation]
    assert written == script
    assert observed == [
        "<information>Doc 1(Title: About a) All on a.</information>", NOT_UNDERSTOOD,
        "<information>Doc 1(Title: About b) All on b.</information>", "",
    ]  # fmt: skip


def test_the_observation_keeps_to_its_budget_of_tokens(chat):
    env, _ = make_env()
    script = [["<search> " + "a long query " * 9 + "</search>", "<answer> Paris </answer>"]]
    (whole,) = play(env, chat, script)
    full = sum(whole.transitions[0].observation_mask)
    (cut,) = play(env, chat, [["<search> " + "a long query " * 9 + "</search>", "<answer> Paris </answer>"]],
                  max_observation_tokens=full - 5)  # fmt: skip
    (same,) = play(env, chat, [["<search> " + "a long query " * 9 + "</search>", "<answer> Paris </answer>"]],
                   max_observation_tokens=full)  # fmt: skip
    assert sum(cut.transitions[0].observation_mask) <= full - 5
    assert cut.transitions[0].observation_text.startswith("<information>Doc 1")
    assert cut.transitions[0].observation_text.endswith("</information>")
    assert (cut.num_cut, same.num_cut) == (1, 0)
    assert same.transitions[0].observation_text == whole.transitions[0].observation_text


@pytest.mark.parametrize("layout", ["trajectory", "window"])
@pytest.mark.parametrize(("max_chars", "max_tokens"), [(0, 0), (0, 30), (40, 0), (60, 25)])
def test_imitation_sees_what_the_policy_sees(chat, layout, max_chars, max_tokens):
    env, _ = make_env()
    commands = ["search[" + "a long query" * 9 + "]", "search[b]", "answer[Paris]"]
    first = env.reset(env.tasks("train")[0])
    demo = (first, [(command, env.step(command).observation, True) for command in commands])
    limits = {"max_observation_chars": max_chars, "max_observation_tokens": max_tokens}
    config = TrainConfig(layout=layout, env=env_config("search", **{"history": 2, **limits}))
    template = PromptTemplate.load("compact", "search")
    imitated = as_trajectory(demo, chat, template, config)
    (lived,) = play(
        env, chat, [[write_action(c, "search") for c in commands]], layout=layout, history=2, **limits
    )  # fmt: skip
    for mine, theirs in zip(imitated.transitions, lived.transitions, strict=True):
        assert mine.prompt_ids == theirs.prompt_ids
        assert mine.observation_text == theirs.observation_text
    assert (lived.num_cut > 0) == bool(max_chars or max_tokens)


# ------------------------------------------------------------------------------------------------- the batcher


def test_the_batcher_forgets_the_oldest(monkeypatch):
    from paw_fast.envs.search_qa import query_batcher as module

    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    library = Library()
    batcher = QueryBatcher(library, 3)
    for query in ("a", "b", "a", "c", "a", "b"):
        batcher.enqueue(query)
        assert batcher.result(query)[0].passage.title == f"About {query}"
    assert library.calls == [["a"], ["b"], ["c"], ["b"]]  # "a" was used in between


def test_a_failed_search_is_asked_again():
    class Flaky(Library):
        def search(self, queries, topk):
            if not self.calls:
                self.calls.append([])
                raise ConnectionError
            return super().search(queries, topk)

    library = Flaky()
    batcher = QueryBatcher(library, 3)
    batcher.enqueue("a")
    with pytest.raises(ConnectionError):
        batcher.result("a")
    assert batcher.result("a")[0].passage.title == "About a"


# -------------------------------------------------------------------------------------- making it, and the expert


def test_the_expert_answers_every_generated_question(search_env):
    expert = envs.make_expert("search")
    for split in ("train", "unseen"):
        for task in search_env.tasks(split):
            observation = search_env.reset(task)
            expert.reset(observation)
            steps = 0
            done = False
            while not done:
                step = search_env.step(expert.act(observation))
                observation, done, steps = step.observation, step.done, steps + 1
            assert step.won
            assert steps <= {"one_hop": 2, "two_hop": 3, "three_hop": 4}[task.task_type]


def test_the_expert_reads_and_does_not_know(search_env):
    """With nothing to read it does not come to the answer."""
    expert = envs.make_expert("search")
    task = next(t for t in search_env.tasks("train") if t.task_type == "two_hop")
    first = search_env.reset(task)
    expert.reset(first)
    empty = type(first)(f"<information>{NOTHING_FOUND}</information>")
    commands = [expert.act(first), *(expert.act(empty) for _ in range(3))]
    assert commands == [commands[0]] * 4
    assert task.info["golden"][0] not in commands[0]


def test_published_questions_with_their_own_passages(test_data, tmp_path):
    qa = test_data / "qa"
    env = envs.make(
        "search", train=[str(qa / "hotpotqa_train.json")], eval=[f"{qa / 'hotpotqa_train.json'}:2"],
        corpus=qa / "hotpotqa_train_corpus.json", cache_dir=tmp_path,
    )  # fmt: skip
    assert len(env.tasks("train")) == len(env.tasks("unseen")) == 100
    expert = envs.make_expert("search")
    won = 0
    for task in env.tasks("train")[:20]:
        observation = env.reset(task)
        expert.reset(observation)
        done = False
        while not done:
            step = env.step(expert.act(observation))
            observation, done = step.observation, step.done
        won += step.won
    assert won == 20
    env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpus": "c.json"}, "passages but no questions"),
        ({"train": ["q.json"]}, "questions but no passages"),
        ({"train": ["q.json"], "corpus": "c.json", "retriever": "http://x"}, "exclude each other"),
        ({"topk": 0}, "--env.topk is 0"),
        ({"topk": 1000}, "--env.topk is 1000"),
        ({"max_steps": 0}, "--env.max-steps is 0, expected 1 or more"),
        ({"format_reward": 1.0}, "--env.format-reward is 1.0"),
        ({"num_train": 0}, "--env.num-train is 0"),
        ({"train": ["q.json"], "retriever": "nowhere"}, "expected an address"),
        ({"questions": 3}, "search has no setting 'questions'"),
    ],
)
def test_settings_that_are_refused(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        envs.make("search", cache_dir=tmp_path, **settings)
    assert message in str(error.value)


def test_questions_of_one_split_can_be_left_out(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "q", "answer": "x"}\n')
    (tmp_path / "c.json").write_text('{"T": "text"}')
    env = envs.make("search", eval=[str(tmp_path / "q.jsonl")], corpus=tmp_path / "c.json", cache_dir=tmp_path)
    assert len(env.tasks("unseen")) == 1
    with pytest.raises(UserError, match=r"give --env\.train FILE"):
        env.tasks("train")
    env.close()


def test_threads_may_search_one_index(search_env):
    retriever = search_env._batcher.retriever
    queries = [task.info["supporting"][0] for task in search_env.tasks("train")[:20]]
    expected = retriever.search(queries, 3)
    got = {}

    def ask(n):
        got[n] = retriever.search(queries, 3)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one == expected for one in got.values())


def test_what_is_left_out_of_questions_and_passages_is_said_once(tmp_path, caplog):
    (tmp_path / "q.jsonl").write_text('{"question": "q?", "answer": "x"}\n{"question": "r?", "answer": "the"}\n')
    (tmp_path / "c.jsonl").write_text('{"text": "a whale"}\n{"text": null}\n{"text": "the"}\n')
    for _ in range(2):
        env = envs.make("search", train=[str(tmp_path / "q.jsonl")], corpus=tmp_path / "c.jsonl", cache_dir=tmp_path)
        assert [task.info["question"] for task in env.tasks("train")] == ["q?"]
    said = [record.getMessage() for record in caplog.records if record.name == "paw_fast.envs"]
    assert [line.split(" (first")[0] for line in said] == [
        f"{tmp_path / 'c.jsonl'}: 1 with no text (null), left out",
        f"{tmp_path / 'c.jsonl'}: 1 of 2 passages have no indexed word: no query finds them",
        "--env.train: 1 with an answer of which normalisation leaves nothing: that answer is not used",
        "--env.train: 1 with no answer, left out",
    ]
