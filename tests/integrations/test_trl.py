"""PaW in TRL's trainer, with the released package: its loss against TRL's, against ours, and against float64."""

import copy
import importlib.util
import inspect
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="needs the extra trl")
pytestmark = pytest.mark.filterwarnings("default")  # TRL and transformers deprecate each other's arguments

from datasets import Dataset  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from paw_fast.algorithms.base import Credit  # noqa: E402
from paw_fast.algorithms.world_model import WorldModelWeights, select_transitions, token_weights  # noqa: E402
from paw_fast.errors import UserError  # noqa: E402
from paw_fast.integrations.trl import PawConfig, PawGRPOTrainer, transitions  # noqa: E402
from paw_fast.kernels import LossSettings  # noqa: E402
from paw_fast.learner import packing  # noqa: E402
from paw_fast.learner.forward_backward import backward, compute_token_stats  # noqa: E402
from paw_fast.learner.loss_rows import build_tables  # noqa: E402
from paw_fast.models.packed_attention import ATTENTION_NAME  # noqa: E402
from paw_fast.models.policy import Policy  # noqa: E402
from paw_fast.types import TokenStats  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def load_example():
    spec = importlib.util.spec_from_file_location("trl_grpo", ROOT / "examples" / "trl_grpo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["trl_grpo"] = module
    spec.loader.exec_module(module)
    return module


example = load_example()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """The example's tiny model, which calls the tool of the corridor."""
    path = tmp_path_factory.mktemp("tiny")
    model, tokenizer = example.build_tiny(example.Corridor)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def make(model_path, tmp_path, kind=PawGRPOTrainer, paw=None, model=None, factory=example.Corridor, **settings):
    settings = {
        "output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": 160, "max_tool_calling_iterations": 4, "learning_rate": 1e-4, "logging_steps": 1,
        "report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "disable_tqdm": True, **settings,
    }  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": factory.QUESTION}], "task": task} for task in range(16)]
    more = {"paw": paw} if kind is PawGRPOTrainer else {}
    trainer = kind(
        model or model_path, args=GRPOConfig(**settings), train_dataset=Dataset.from_list(rows),
        environment_factory=factory, **more,
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer


def generate(trainer, seed=0):
    """A generated batch in order: two groups of four episodes of different length, with made-up advantages."""
    torch.manual_seed(seed)
    rows = [dict(trainer.train_dataset[i]) for i in (0, 0, 0, 0, 2, 2, 2, 2)]
    inputs = trainer._generate_and_score_completions(rows)
    inputs["advantages"] = torch.randn(8)
    assert inputs["tool_mask"].eq(0).any(), "the model has called no tool"
    return inputs


@pytest.fixture(scope="module")
def paw_trainer(model_path, tmp_path_factory):
    trainer = make(model_path, tmp_path_factory.mktemp("paw"), paw=PawConfig(alpha=0.5))
    trainer._metrics["train"].clear()
    return trainer


@pytest.fixture(scope="module")
def batch(paw_trainer):
    """A generated batch, where two episodes have been won: the weights of the two groups differ."""
    original = paw_trainer._calculate_rewards.__func__

    def rewards(self, *args, **kwargs):
        won = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0.5])[:, None]
        monkey.setattr(GRPOTrainer, "_calculate_rewards", lambda *a, **k: won)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(PawGRPOTrainer, "_calculate_rewards", rewards)
        return generate(paw_trainer)


def gradients(trainer, inputs):
    """Loss and gradient of a batch, as one micro-batch, by parameter name."""
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    loss = loss.detach()
    found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return float(loss), found


def assert_close(found, expected, rtol):
    """Gradients by name, to `rtol` of the largest value."""
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 0
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=0, atol=rtol * largest, msg=lambda m, n=name: n + m
        )


# ------------------------------------------------------------------------------------------------ PaW off: TRL's loss

VARIANTS = [
    *({"loss_type": name} for name in ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")),
    {"beta": 0.1},
    {"entropy_coef": 0.05, "_entropy_bonus_enabled": True},
    {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    {"top_entropy_quantile": 0.3},
    {"off_policy_mask_threshold": 1e-4},
]


@pytest.fixture(scope="module")
def off_and_trl(model_path, tmp_path_factory):
    settings = {"beta": 0.1, "temperature": 0.8}
    off = make(model_path, tmp_path_factory.mktemp("off"), paw=PawConfig(enabled=False), **settings)
    trl = make(model_path, tmp_path_factory.mktemp("trl"), kind=GRPOTrainer, **settings)
    inputs = generate(trl)
    with torch.no_grad():
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        old = trl._get_per_token_logps_and_entropies(trl.model, ids, mask, inputs["completion_ids"].shape[1])[0]
    torch.manual_seed(1)
    inputs["old_per_token_logps"] = old + 0.3 * torch.randn_like(old) * inputs["tool_mask"]
    inputs["ref_per_token_logps"] = inputs["ref_per_token_logps"] + 0.3 * torch.randn_like(old)
    return off, trl, inputs


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(f"{k}={x}" for k, x in v.items() if k[0] != "_"))
def test_without_paw_loss_and_gradient_are_those_of_trl(off_and_trl, variant, monkeypatch):
    off, trl, inputs = off_and_trl
    for name, value in {"beta": 0.0, **variant}.items():
        monkeypatch.setattr(off, name, value)
        monkeypatch.setattr(trl, name, value)
    (loss, found), (expected_loss, expected) = gradients(off, inputs), gradients(trl, inputs)
    assert abs(expected_loss) > 1e-4
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert_close(found, expected, 1e-5)


def test_without_paw_two_steps_leave_the_weights_of_trl(model_path, tmp_path):
    found, expected = (
        make(model_path, tmp_path, kind=kind, paw=PawConfig(enabled=False), learning_rate=1e-3, seed=3)
        for kind in (PawGRPOTrainer, GRPOTrainer)
    )
    for trainer in (found, expected):
        trainer.train()
    rewards = [[row["reward"] for row in t.state.log_history if "reward" in row] for t in (found, expected)]
    assert rewards[0] == rewards[1]
    for (name, mine), (_, other) in zip(found.model.named_parameters(), expected.model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-5, msg=lambda m, n=name: n + m)
    assert not any(key.startswith("wm/") for row in found.state.log_history for key in row)


def test_lora_without_paw_equals_trl_and_with_paw_trains_the_adapter(model_path, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)

    def build(kind, paw=None):
        trainer = kind(
            model_path, args=off_args(tmp_path), train_dataset=rows(), environment_factory=example.Corridor,
            peft_config=lora, **({"paw": paw} if paw else {}),
        )  # fmt: skip
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        return trainer

    off, trl, on = (
        build(PawGRPOTrainer, PawConfig(enabled=False)),
        build(GRPOTrainer),
        build(PawGRPOTrainer, PawConfig()),
    )
    inputs = generate(on)
    (loss, found), (expected_loss, expected) = gradients(off, inputs), gradients(trl, inputs)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert_close(found, expected, 1e-5)
    assert all("lora" in name for name in found)
    assert float(sum((g - found[n]).abs().sum() for n, g in gradients(on, inputs)[1].items())) > 0


def off_args(tmp_path):
    return GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_generations=4, max_completion_length=160,
        max_tool_calling_iterations=4, report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip


def rows():
    one = {"prompt": [{"role": "user", "content": example.Corridor.QUESTION}]}
    return Dataset.from_list([{**one, "task": task} for task in range(16)])


# ----------------------------------------------------------------------------------------------- PaW on: our loss


def our_policy(trainer):
    """paw-fast's policy with the trainer's weights, on packed sequences."""
    model = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model))
    model.forward = type(model).forward.__get__(model)
    model.set_attn_implementation(ATTENTION_NAME)
    return Policy(model, trainer.processing_class)


def pack_all(sequences, tables, weights=None):
    return packing.pack(sequences, tables, range(len(sequences)), torch.device("cpu"), weights)


def our_stats(policy, sequences):
    """Old log-probs and mean entropies of the M transitions, by paw-fast's learner."""
    batch = pack_all(sequences, [packing.action_rows(q) for q in sequences])
    flat = compute_token_stats(policy, batch, 1.0, 64)[:2]
    lengths = [s.action[1] - s.action[0] for q in sequences for s in q.spans]
    old = [part.numpy() for part in flat[0].split(lengths)]
    return TokenStats(old, None, None, [flat[1]])


def test_with_paw_loss_selection_and_gradient_are_ours(paw_trainer, batch):
    sequences = transitions.find_sequences(batch, paw_trainer._observation_text)
    policy = our_policy(paw_trainer)
    stats = our_stats(policy, sequences)
    has_target = np.array([bool(s.observation) for q in sequences for s in q.spans])
    picked = np.flatnonzero(has_target)[select_transitions(stats.entropies[has_target], 0.5)]
    selected = np.isin(np.arange(len(has_target)), picked)
    assert 0 < selected.sum() < has_target.sum() < len(has_target)
    mask = transitions.observation_mask(sequences, batch["prompt_mask"], batch["wm_mask"].shape[1], selected)
    assert torch.equal(mask, batch["wm_mask"])

    lambdas = np.array([0.5] * 4 + [0.875] * 4)
    assert batch["wm_lambdas"].tolist() == lambdas.tolist()
    advantages = [np.full(len(stats.old_logprobs[s.transition]), float(batch["advantages"][q.trajectory]), np.float32)
                  for q in sequences for s in q.spans]  # fmt: skip
    credit = Credit(advantages, np.ones(8, dtype=bool))
    weights = WorldModelWeights(lambdas, selected, has_target)
    tables = build_tables(sequences, stats, credit, weights)
    on_device = token_weights(weights, sequences, policy.device)
    result = backward(policy, pack_all(sequences, tables, on_device), LossSettings(), 64)
    loss, found = gradients(paw_trainer, batch)
    assert loss == pytest.approx(float(result.losses.double().sum()), abs=1e-5)
    assert_close(found, {n: p.grad for n, p in policy.model.named_parameters()}, 1e-5)

    # The world-model part alone.
    policy.model.zero_grad()
    part = backward(policy, pack_all(*with_rows(sequences, build_tables(sequences, stats, None, weights)),
                                     on_device), LossSettings(), 64)  # fmt: skip
    assert paw_trainer._metrics["train"]["wm/loss"] == [pytest.approx(float(part.losses.double().sum()), abs=1e-6)]


def with_rows(sequences, tables):
    kept = [(q, t) for q, t in zip(sequences, tables, strict=True) if len(t.positions)]
    return [q for q, _ in kept], [t for _, t in kept]


@pytest.mark.parametrize("loss", ["cmae", "mae", "ce"])
def test_with_paw_the_added_loss_is_that_of_the_formula_in_float64(paw_trainer, batch, loss, model_path, tmp_path):
    trainer = make(model_path, tmp_path, paw=PawConfig(alpha=0.5, loss=loss))
    model = copy.deepcopy(trainer.model).double()
    model.forward = type(model).forward.__get__(model)
    total, count = torch.zeros((), dtype=torch.float64), int(batch["wm_mask"].sum())
    for row in range(8):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        logprobs = model(torch.cat([prompt, completion])[None]).logits[0].log_softmax(-1)
        for at, token in enumerate(completion.tolist()):
            if batch["wm_mask"][row, at]:
                logp = logprobs[len(prompt) + at - 1, token]
                value = {"cmae": 1 - logp.exp().clamp(max=0.2), "mae": 1 - logp.exp(), "ce": -logp}[loss]
                total = total + (0.5 if row < 4 else 0.875) * value / count
    total.backward()
    with_paw, without = gradients(trainer, batch), gradients(trainer, {**batch, "wm_lambdas": torch.zeros(8)})
    assert with_paw[0] - without[0] == pytest.approx(float(total.detach()), abs=1e-6)
    added = {name: gradient - without[1][name] for name, gradient in with_paw[1].items()}
    assert_close(added, {n: p.grad.float() for n, p in model.named_parameters()}, 2e-5)


def test_selection_takes_the_actions_of_highest_entropy(paw_trainer, batch):
    """By hand, from the logits in float64."""
    model = copy.deepcopy(paw_trainer.model).double()
    model.forward = type(model).forward.__get__(model)
    means, observed = [], []
    for row in range(8):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        length = int(batch["completion_mask"][row].sum())
        completion, sampled = batch["completion_ids"][row, :length], batch["tool_mask"][row, :length].tolist()
        with torch.no_grad():
            logprobs = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        start = 0
        while 0 in sampled[start:]:
            end = start + sampled[start:].index(0)
            last = end + [*sampled[end:], 1].index(1)
            means.append(float(entropies[start:end].mean()))
            observed.append((row, end, last))
            start = last
    wanted = sorted(range(len(means)), key=lambda i: -means[i])[: len(means) // 2]
    is_selected = [bool(batch["wm_mask"][row, start:end].any()) for row, start, end in observed]
    assert [i for i, one in enumerate(is_selected) if one] == sorted(wanted)


def test_micro_batches_and_several_optimizer_steps_share_denominators(model_path, tmp_path, batch):
    """Two micro-batches of an optimizer step add up to one; each of two optimizer steps has its own N_WM."""
    whole = make(model_path, tmp_path, paw=PawConfig())
    zero = {**batch, "advantages": torch.zeros(8)}
    split = {k: v.split(4) if v.dim() else (v, v) for k, v in zero.items()}
    parts = [{k: v[i] for k, v in split.items()} for i in range(2)]
    expected_loss, expected = gradients(whole, zero)

    two = make(model_path, tmp_path, paw=PawConfig(), per_device_train_batch_size=4, gradient_accumulation_steps=2)
    two._buffered_inputs = parts
    found = []
    for step in range(2):
        two._step = step
        found.append(gradients(two, parts[step]))
    assert sum(loss for loss, _ in found) == pytest.approx(expected_loss, abs=1e-6)
    assert_close({n: found[0][1][n] + found[1][1][n] for n in expected}, expected, 1e-5)

    several = make(model_path, tmp_path, paw=PawConfig(), per_device_train_batch_size=4, steps_per_generation=2)
    several._buffered_inputs = parts
    counts = [int(part["wm_mask"].sum()) for part in parts]
    assert counts[0] != counts[1]
    for step in range(2):
        several._step = step
        assert several._num_wm_tokens(parts[step]) == counts[step]


def test_bfloat16_autocast(model_path, tmp_path, batch, paw_trainer):
    half = make(model_path, tmp_path, paw=PawConfig(alpha=0.5), bf16=True)
    (loss, found), (expected_loss, expected) = gradients(half, batch), gradients(paw_trainer, batch)
    assert loss == pytest.approx(expected_loss, abs=0.02)
    assert_close(found, expected, 0.1)


# --------------------------------------------------------------------------------------------------- transitions


def test_only_the_text_of_tools_is_predicted(model_path, tmp_path):
    trainer = make(model_path, tmp_path, paw=PawConfig(selection="all"))
    inputs = generate(trainer)
    for row, messages in enumerate(list(trainer._logs["completion"])[-8:]):
        text = "".join(m["content"] for m in messages if m["role"] == "tool")
        ids = inputs["completion_ids"][row][inputs["wm_mask"][row].bool()]
        assert trainer.processing_class.decode(ids) == text
        everything = trainer.processing_class.decode(inputs["completion_ids"][row])
        assert ("<tool_response>" in everything) == bool(text)


def test_sequences_by_hand():
    inputs = {
        "prompt_ids": torch.tensor([[0, 7], [8, 9]]), "prompt_mask": torch.tensor([[0, 1], [1, 1]]),
        "completion_ids": torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 0, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]),
        "tool_mask": torch.tensor([[1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1]]),
    }  # fmt: skip
    first, second = transitions.find_sequences(inputs, {(2, 3): (False, True)})
    assert first.ids == (7, 1, 2, 3, 4, 5, 6)
    assert [(s.transition, s.action, s.observation) for s in first.spans] == [
        (0, (1, 2), (3,)), (1, (4, 5), (5,)), (2, (6, 7), ()),
    ]  # fmt: skip
    assert [(s.transition, s.action, s.observation) for s in second.spans] == [(3, (2, 4), ())]
    entropies = torch.tensor([[1.0, 9, 9, 2, 9, 3], [4, 6, 9, 9, 9, 9]])
    assert transitions.action_entropies([first, second], inputs["prompt_mask"], entropies).tolist() == [1, 2, 3, 5]
    selected = np.array([True, False, False, False])
    mask = transitions.observation_mask([first, second], inputs["prompt_mask"], 6, selected)
    assert mask.tolist() == [[0, 0, 1, 0, 0, 0], [0] * 6]
    everything = transitions.describe([first, second])
    assert (everything[1].prompt_ids, everything[1].action_ids, everything[1].observation_ids) == (
        (7, 1, 2, 3),
        (4,),
        (5,),
    )


def test_deduplicate_and_no_observation_at_all():
    inputs = {
        "prompt_ids": torch.tensor([[7], [7]]), "prompt_mask": torch.ones(2, 1),
        "completion_ids": torch.tensor([[1, 2], [1, 2]]), "completion_mask": torch.ones(2, 2),
        "tool_mask": torch.tensor([[1, 0], [1, 0]]),
    }  # fmt: skip
    described = transitions.describe(transitions.find_sequences(inputs, {}))
    has_target, entropies = np.array([True, True]), np.array([1.0, 2.0])
    once = transitions.select(entropies, has_target, PawConfig(deduplicate=True), (0,), described)
    assert once.tolist() == [True, False]
    assert transitions.select(entropies, has_target, PawConfig(alpha=0.5), (0,)).tolist() == [False, True]
    assert not transitions.select(entropies, ~has_target, PawConfig(), (0,)).any()


def test_weights_of_unscored_and_excessive_returns(paw_trainer, monkeypatch):
    monkeypatch.setattr(paw_trainer, "_warned", False)
    nan = math.nan
    monkeypatch.setattr(paw_trainer, "_returns", torch.tensor([0.5, nan, 0.25, nan, nan, nan, nan, nan]))
    assert paw_trainer._lambdas().tolist() == [0.625] * 4 + [1.0] * 4
    monkeypatch.setattr(paw_trainer, "_returns", torch.tensor([3.0] * 8))
    with pytest.warns(UserWarning, match="return 3, more than PawConfig.success_reward, 1"):
        assert paw_trainer._lambdas().tolist() == [0.0] * 8


# ------------------------------------------------------------------------------------------------------ training


def check_history(trainer, steps):
    history = [row for row in trainer.state.log_history if "wm/loss" in row]
    assert len(history) == steps
    for row in history:
        assert float(row["wm/loss"]) > 0
        assert 0 < float(row["wm/next_observation_error"]) <= 1
    generated = [row for row in history if "reward" in row]  # with num_iterations, not every step generates
    for row in generated:
        assert 0 < float(row["wm/selected_share"]) <= 1
        assert float(row["tools/call_frequency"]) > 0
    return len(generated)


def test_trains_with_accumulation_checkpointing_and_evaluation(model_path, tmp_path):
    trainer = make(
        model_path, tmp_path, paw=PawConfig(deduplicate=True), per_device_train_batch_size=4, max_steps=3,
        gradient_accumulation_steps=2, gradient_checkpointing=True, num_iterations=2, beta=0.05,
        per_device_eval_batch_size=4, learning_rate=1e-3,
    )  # fmt: skip
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert check_history(trainer, 3) == 2
    assert any(not torch.equal(before[n], p) for n, p in trainer.model.named_parameters())
    trainer.eval_dataset = trainer.train_dataset.select(range(2))
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    assert "eval_wm/loss" in trainer.state.log_history[-1]


def test_trains_on_alfworld(tmp_path, monkeypatch, small_env):
    monkeypatch.setattr(example.AlfworldEnv, "games", small_env)
    trainer = example.make_trainer("alfworld", steps=2, output_dir=str(tmp_path), disable_tqdm=True)
    trainer.train()
    assert check_history(trainer, 2) == 2
    shown = json.dumps(list(trainer._logs["completion"]))
    assert "You arrive at" in shown or "Nothing happens" in shown


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_vllm": True, "vllm_mode": "server"}, "vllm_mode='server' is not supported: use vllm_mode='colocate'"),
        ({"use_liger_kernel": True}, "use_liger_kernel=True is not supported"),
        ({"fp16": True, "bf16": False}, "fp16=True is not supported: use bf16=True"),
        ({"torch_compile": True}, "torch_compile=True is not supported"),
    ],
)
def test_settings_of_trl_are_refused_by_name(settings, message, tmp_path):
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **{"bf16": False, **settings})
    with pytest.raises(UserError, match=message):
        PawGRPOTrainer("no model is loaded", args=args, train_dataset=rows(), environment_factory=example.Corridor)


def test_adapters_with_virtual_tokens_are_refused(model_path, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(UserError, match="PROMPT_TUNING adds virtual tokens, which is not supported: use LoRA"):
        PawGRPOTrainer(
            model_path, args=off_args(tmp_path), train_dataset=rows(), environment_factory=example.Corridor,
            peft_config=prompt,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["deepspeed", "fsdp"])
def test_sharding_by_the_launcher_is_refused(name, model_path, tmp_path, monkeypatch):
    original = GRPOTrainer.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        setattr(self, f"is_{name}_enabled", True)

    init.__signature__ = inspect.signature(original)
    monkeypatch.setattr(GRPOTrainer, "__init__", init)
    with pytest.raises(UserError, match=f"{name} is not supported: the kernels read the whole LM head"):
        make(model_path, tmp_path)


def test_no_observations_are_refused_unless_paw_is_off(model_path, tmp_path):
    with pytest.raises(UserError, match="no observations to predict: pass environment_factory"):
        PawGRPOTrainer(model_path, lambda prompts, **_: [0.0] * len(prompts), off_args(tmp_path), rows())
    off = PawConfig(enabled=False)
    PawGRPOTrainer(model_path, lambda prompts, **_: [0.0] * len(prompts), off_args(tmp_path), rows(), paw=off)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0.0}, r"alpha is 0.0, expected a number in \(0, 1\]"),
        ({"tau": "0.2"}, "tau is '0.2', expected a number"),
        ({"selection": "top"}, "selection is 'top', expected entropy, surprise, lowest, random or all"),
        ({"enabled": "no"}, "enabled is 'no', expected True or False"),
        ({"success_reward": 0.0}, "success_reward is 0.0, expected more than 0"),
        ({"update": "alternate"}, "update='alternate' is not supported in other trainers"),
        ({"horizon": 2}, "horizon is 2: .* use 1"),
        ({"target": "noise"}, "target='noise' is not supported in other trainers"),
        ({"selection": "surprise"}, "selection='surprise' is not supported in other trainers"),
        ({"token_fraction": 0.5}, "token_fraction is 0.5: .* use 1"),
    ],
)
def test_settings_of_paw_are_checked(values, message):
    with pytest.raises(UserError, match=f"PawConfig: {message}"):
        PawConfig(**values)


def test_defaults_are_those_of_the_package():
    from paw_fast import config

    ours = config.PawConfig()
    assert {name: getattr(PawConfig(), name) for name in vars(ours)} == vars(ours)
