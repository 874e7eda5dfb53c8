"""Tests of the transformers engine: exact log-probs, and sampling that does not depend on the batch."""

import copy
import random
from types import SimpleNamespace

import pytest
import torch

from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.engines.base import ActionRequest
from paw_fast.rollout.engines.transformers import TransformersEngine


def make(policy, chat, slots=8, max_length=256):
    return TransformersEngine(policy.model, chat, slots=slots, max_length=max_length)


def run(engine, requests):
    for request in requests:
        engine.submit(request)
    out = {}
    for _ in range(10_000):
        for completion in engine.step():
            out[completion.episode] = completion
        if len(out) == len(requests):
            return out
    raise AssertionError("the engine did not finish")


def prompts(count, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(5, 300) for _ in range(rng.randrange(1, 40))] for _ in range(count)]


def request(episode, prompt, turn=0, **kw):
    return ActionRequest(episode, prompt, (0, episode, turn), **{"max_tokens": 12, "temperature": 1.0, **kw})


def plain_logprobs(policy, prompt, action, temperature):
    """Log-probs from one eager forward pass of transformers in float64."""
    model = copy.deepcopy(policy.model).double()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model(torch.tensor([prompt + list(action)])).logits[0] / temperature
    rows = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    return rows.gather(1, torch.tensor(action)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_logprobs_are_those_of_a_plain_forward_pass(policy, chat, temperature):
    given = prompts(11)
    got = run(make(policy, chat, slots=16), [request(i, p, temperature=temperature) for i, p in enumerate(given)])
    for i, prompt in enumerate(given):
        expected = plain_logprobs(policy, prompt, got[i].action_ids, temperature)
        assert got[i].logprobs == pytest.approx(expected, abs=1e-4)


def test_cached_turns_equal_uncached_ones(policy, chat):
    """Turns that continue a prompt equal those of a new engine on the whole prompt (weights in float64)."""
    policy = Policy(copy.deepcopy(policy.model).double(), policy.tokenizer)
    kept = make(policy, chat)
    prompt = prompts(1)[0]
    for turn in range(4):
        done = run(kept, [request(0, prompt, turn), request(1, prompt[:3] + [9] * turn, turn)])[0]
        fresh = run(make(policy, chat), [request(0, prompt, turn)])[0]
        assert done.action_ids == fresh.action_ids
        assert done.logprobs == pytest.approx(fresh.logprobs, abs=1e-5)
        prompt = prompt + list(done.action_ids) + [7, 8, 9 + turn]


def test_sampling_does_not_depend_on_the_batch(policy, chat):
    given = prompts(9, seed=1)
    alone = {i: run(make(policy, chat), [request(i, p)])[i] for i, p in enumerate(given)}
    for slots in (1, 2, 9):
        order = list(range(9))
        random.Random(slots).shuffle(order)
        engine = make(policy, chat, slots=slots)
        for start in range(0, 9, slots):
            part = order[start : start + slots]
            got = run(engine, [request(i, given[i]) for i in part])
            for i in part:
                assert got[i].action_ids == alone[i].action_ids
                engine.release(i)


def test_frequencies_follow_the_distribution(policy, chat):
    """Chi-squared test of the first tokens of 4,000 episodes, over tokens with a probability above 1 %."""
    prompt = prompts(1, seed=5)[0]
    with torch.no_grad():
        model = policy.model
        model.set_attn_implementation("eager")
        probabilities = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double(), -1)
        model.set_attn_implementation("paw_packed")
    counts = torch.zeros(len(probabilities))
    engine = make(policy, chat, slots=200)
    for start in range(0, 4000, 200):
        got = run(engine, [request(i, prompt, max_tokens=1) for i in range(start, start + 200)])
        for i, completion in got.items():
            counts[completion.action_ids[0]] += 1
            engine.release(i)
    big = probabilities > 0.01
    expected = probabilities[big] * 4000
    chi2 = ((counts[big] - expected) ** 2 / expected).sum().item()
    assert int(big.sum()) > 5
    assert chi2 < int(big.sum()) + 5 * (2 * int(big.sum())) ** 0.5


def test_new_weights_are_used_after_an_update(policy, chat):
    engine, prompt = make(policy, chat), prompts(1)[0]
    before = run(engine, [request(0, prompt)])[0]
    longer = prompt + list(before.action_ids) + [5]
    with torch.no_grad():
        policy.model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    try:
        engine.update_weights(4)
        changed = run(engine, [request(0, longer, 1)])[0]
        fresh = run(make(policy, chat), [request(0, longer, 1)])[0]
        assert set(changed.policy_versions) == {4}
        assert len(changed.policy_versions) == len(changed.action_ids)
        assert changed.logprobs == pytest.approx(fresh.logprobs, abs=1e-5)
        assert changed.action_ids == fresh.action_ids
    finally:
        with torch.no_grad():
            policy.model.model.layers[0].mlp.up_proj.weight.mul_(-1)


def test_episodes_wait_for_free_slots(policy, chat):
    engine = make(policy, chat, slots=2)
    for i, p in enumerate(prompts(5)):
        engine.submit(request(i, p))
    seen = []
    for _ in range(200):
        for completion in engine.step():
            seen.append(completion.episode)
            engine.release(completion.episode)
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_the_end_token_and_stop_strings_end_an_action(policy, chat):
    engine = make(policy, chat, slots=64)
    got = run(engine, [request(i, [20, 30], max_tokens=60) for i in range(64)])
    for completion in got.values():
        ended = completion.action_ids[-1] in chat.stop_ids
        assert completion.stopped == ended
        assert ended or len(completion.action_ids) == 60
        assert not set(completion.action_ids[:-1]) & chat.stop_ids
    text = chat.decode(max((c.action_ids for c in got.values()), key=len))
    piece = text[3:5]
    engine = make(policy, chat, slots=64)
    got = run(engine, [request(i, [20, 30], max_tokens=60, stop=(piece,)) for i in range(64)])
    cut = [c for c in got.values() if c.stopped and c.action_ids[-1] not in chat.stop_ids]
    assert cut
    for completion in cut:
        assert piece in chat.decode(completion.action_ids)
        assert piece not in chat.decode(completion.action_ids[:-1])


def test_a_prompt_that_is_too_long_is_an_error(policy, chat):
    with pytest.raises(ValueError, match="expected at most 256 tokens in total"):
        make(policy, chat).submit(request(0, [1] * 250))


@pytest.mark.parametrize("hole", [False, True])
def test_ids_without_a_token_are_not_sampled(tokenizer, hole):
    """With a vocabulary padded by 100 ids that are more probable than the others, and with a gap.

    The log-probs are those of the whole vocabulary, as in the trainer.
    """
    known = len(tokenizer)
    if hole:
        tokenizer = HoleyTokenizer(tokenizer, 40)
    model = tiny.build_model(known + 100, hidden=48, layers=1, heads=4, kv_heads=2, ffn=96, seed=3)
    model.config.tie_word_embeddings = False
    model.lm_head = torch.nn.Linear(48, known + 100)
    with torch.no_grad():
        model.lm_head.bias[known:] = 3.0
    policy = Policy(model, tokenizer)
    engine = TransformersEngine(model, ChatFormat(tokenizer), slots=50, max_length=64)
    got = run(engine, [request(i, [20, 30], max_tokens=20) for i in range(50)])
    seen = {token for c in got.values() for token in c.action_ids}
    assert max(seen) < known
    assert len(seen) > known // 2
    assert (40 in seen) == (not hole)
    for completion in list(got.values())[:5]:
        expected = plain_logprobs(policy, [20, 30], completion.action_ids, 1.0)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)


class HoleyTokenizer:
    """A tokenizer without a token for one id."""

    def __init__(self, real, hole):
        self._real, self._hole = real, hole

    def get_vocab(self):
        return {token: i for token, i in self._real.get_vocab().items() if i != self._hole}

    def __getattr__(self, name):
        return getattr(self._real, name)


def test_the_largest_draw_gives_a_known_token(policy, chat):
    """The largest draw below 1 selects the last known token with positive probability."""
    engine = make(policy, chat)
    size = policy.lm_head.weight.shape[0]
    engine._unknown = torch.arange(size - 50, size)
    run = SimpleNamespace(request=request(0, [5]), draws=SimpleNamespace(random=lambda: 1 - 2**-53))
    logits = torch.zeros(1, size)
    logits[0, size - 60 : size - 50] = -torch.inf
    assert engine._sample(logits, [run])[0] == [size - 61]


def test_an_evaluation_without_the_vllm_of_the_run_uses_transformers(small_config, start, monkeypatch, capfd):
    from paw_fast.rollout import factory

    monkeypatch.setattr(factory.importlib.util, "find_spec", lambda name: None)
    engine = factory.make_evaluation_engine(start, small_config(engine="vllm"))
    assert isinstance(engine, TransformersEngine)
    assert "vLLM, which the run used, is not installed here" in " ".join(capfd.readouterr().err.split())
    factory.make_evaluation_engine(start, small_config(engine="transformers"))
    assert capfd.readouterr().err == ""
