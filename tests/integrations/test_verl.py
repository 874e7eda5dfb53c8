"""PaW in verl: its own losses and DataProto on the CPU, against verl's loss, ours, and numbers by hand.

Not run here: verl's trainer as a whole, whose Ray workers need GPUs.
"""

import importlib.util
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="needs verl")
pytestmark = pytest.mark.filterwarnings("default")  # verl's packages deprecate each other's arguments

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of verl's and Ray's modules, when they are imported
    from paw_fast.integrations import verl as integration
from tensordict import TensorDict  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.utils.torch_functional import logprobs_from_logits  # noqa: E402
from verl.workers.config import ActorConfig, PolicyLossConfig  # noqa: E402
from verl.workers.utils.losses import ppo_loss  # noqa: E402

from paw_fast import kernels  # noqa: E402
from paw_fast.algorithms import world_model  # noqa: E402
from paw_fast.errors import UserError  # noqa: E402
from paw_fast.integrations.verl import PawConfig, add_world_model, configure, world_model_weights  # noqa: E402
from paw_fast.integrations.verl.loss import world_model_loss  # noqa: E402
from paw_fast.kernels import POLICY, WORLD_MODEL, LossRows, LossSettings  # noqa: E402

VOCAB = 23
PROMPTS = (3, 2, 4, 3)
# s: a sampled token, o: one of an observation. The last response has no observation, the third ends with one.
RESPONSES = ("ssoosso", "sossoooss", "ssooo", "sss")


@pytest.fixture(autouse=True)
def defaults():
    configure()
    yield
    configure()


def make_batch(seed=0):
    """A DataProto as verl's rollouts give it (prompts padded left, responses right), and logits for all its tokens."""
    torch.manual_seed(seed)
    rows, left, right = len(PROMPTS), max(PROMPTS), max(map(len, RESPONSES))
    shape = (rows, right)
    mask, valid = torch.zeros(shape, dtype=torch.long), torch.zeros(rows, left + right, dtype=torch.long)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        valid[row, left - prompt : left + len(response)] = 1
        mask[row, : len(response)] = torch.tensor([int(mark == "s") for mark in response])
    ids = torch.randint(0, VOCAB, (rows, left + right)) * valid
    scores = torch.zeros(shape)
    scores[0, len(RESPONSES[0]) - 1] = 1.0  # one of the two of the first group has won
    logits = [torch.randn(p + len(r), VOCAB) * 2 for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    batch = DataProto.from_dict(
        tensors={
            "prompts": ids[:, :left], "responses": ids[:, left:], "input_ids": ids, "attention_mask": valid,
            "position_ids": (valid.cumsum(1) - 1).clamp(min=0), "response_mask": mask, "token_level_scores": scores,
            "advantages": torch.randn(shape) * mask, "entropys": torch.rand(shape) * 3,
        },
        non_tensors={"uid": np.array(["a", "a", "b", "b"], dtype=object)}, meta_info={"temperature": 1.0},
    )  # fmt: skip
    logprobs = response_logprobs(logits, batch.batch)
    batch.batch["old_log_probs"] = logprobs.detach() + 0.3 * torch.randn(shape)
    return batch, logits


def token_ids(tensors, row):
    return tensors["input_ids"][row][tensors["attention_mask"][row].bool()]


def model_output(logits, tensors):
    """Log-probs and entropies of every next token, in verl's nested form without padding."""
    logprobs = [
        logprobs_from_logits(one, token_ids(tensors, row).roll(-1), inplace_backward=False)
        for row, one in enumerate(logits)
    ]
    entropies = [-(one.softmax(-1) * one.log_softmax(-1)).sum(-1) for one in logits]
    return {
        "log_probs": torch.nested.as_nested_tensor(logprobs, layout=torch.jagged),
        "entropy": torch.nested.as_nested_tensor(entropies, layout=torch.jagged),
    }


def response_logprobs(logits, tensors):
    from verl.workers.utils.padding import no_padding_2_padding

    return no_padding_2_padding(model_output(logits, tensors)["log_probs"], tensors)


def actor(mode="paw", **settings):
    return ActorConfig(
        strategy="fsdp", rollout_n=2, ppo_micro_batch_size_per_gpu=2, policy_loss=PolicyLossConfig(loss_mode=mode),
        **settings,
    )  # fmt: skip


def verl_loss(batch, logits, config, rows=None, dp_size=1):
    """Loss and gradient by logits, of verl's `ppo_loss`, on some rows of a batch as a micro-batch."""
    rows = list(range(len(logits))) if rows is None else rows
    leaves = [logits[row].clone().requires_grad_() for row in rows]
    tensors = batch.batch[rows]
    data = TensorDict(dict(tensors.items()), batch_size=len(rows))
    sampled = int(batch.batch["response_mask"].sum())
    tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=sampled, global_batch_size=len(logits))
    output = model_output(leaves, data)
    if not config.entropy_coeff:
        output.pop("entropy")
    loss, metrics = ppo_loss(config, output, data)
    loss.backward()
    return float(loss.detach()), [leaf.grad for leaf in leaves], metrics


def assert_equal(found, expected, atol=1e-6):
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=atol)
    assert max(float(one.abs().max()) for one in expected[1]) > 1e-3


VARIANTS = [
    {}, {"entropy_coeff": 0.1}, {"loss_agg_mode": "seq-mean-token-mean"}, {"loss_agg_mode": "seq-mean-token-sum"},
    {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3},
]  # fmt: skip


@pytest.mark.parametrize("inner", ["vanilla", "gspo", "cispo"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("off", ["disabled", "nothing selected", "lambda 0"])
def test_without_paw_loss_and_gradient_are_those_of_verl(inner, variant, off):
    """Disabled, and enabled with a batch in which no observation has a weight."""
    batch, logits = make_batch()
    expected = verl_loss(batch, logits, actor(inner, **variant))
    if off == "disabled":
        configure(PawConfig(enabled=False), inner)
    else:
        configure(PawConfig(lambda_0=1.0, success_reward=1e-6) if off == "lambda 0" else PawConfig(), inner)
        if off == "lambda 0":
            batch.batch["token_level_scores"][:, 0] = 1.0
            add_world_model(batch, integration.settings.paw)
        else:
            batch.batch["rollout_is_weights"] = (
                torch.ones(batch.batch["response_mask"].shape) * batch.batch["response_mask"]
            )
    assert_equal(verl_loss(batch, logits, actor(**variant)), expected)


def our_loss(batch, logits, paw, weights, **settings):
    """The same by paw-fast's kernel: rows of logits before each token with a loss."""
    tensors, rows, positions = batch.batch, [], []
    mask = tensors["response_mask"]
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        for at in range(len(response)):
            weight = 1.0 / int(mask.sum()) if mask[row, at] else float(weights[row, at])
            if weight:
                kind = POLICY if mask[row, at] else WORLD_MODEL
                rows.append((int(tensors["responses"][row, at]), kind, weight, float(tensors["old_log_probs"][row, at]),
                             float(tensors["advantages"][row, at])))  # fmt: skip
                positions.append((row, prompt + at - 1))
    packed = torch.stack([logits[row][at] for row, at in positions])
    targets, kinds, scale, old, advantages = (torch.tensor(column) for column in zip(*rows, strict=True))
    table = LossRows(targets, kinds.to(torch.uint8), scale.float(), old.float(), advantages.float())
    loss = kernels.paw_loss(packed, table, LossSettings(wm_loss=paw.loss, tau=paw.tau, dual_clip=3.0, **settings)).loss
    gradients = [torch.zeros_like(one) for one in logits]
    for (row, at), gradient in zip(positions, packed, strict=True):
        gradients[row][at] += gradient
    return float(loss), gradients


@pytest.mark.parametrize("loss", ["cmae", "mae", "ce"])
@pytest.mark.parametrize("balance", ["adaptive", "fixed"])
def test_with_paw_loss_and_gradient_are_ours(loss, balance):
    paw = PawConfig(alpha=0.5, loss=loss, balance=balance, tau=0.1)
    batch, logits = make_batch()
    configure(paw)
    metrics = add_world_model(batch, paw)
    found = verl_loss(batch, logits, actor())
    weights = torch.where(batch.batch["response_mask"].bool(), 0.0, batch.batch["rollout_is_weights"])
    assert_equal(found, our_loss(batch, logits, paw, weights))
    assert 0 < metrics["wm/selected_share"] < 1
    p = response_logprobs(logits, batch.batch)[weights != 0].exp()
    assert found[2]["actor/wm_next_observation_error"].values[0] == pytest.approx(float(1 - p.mean()), abs=1e-6)
    assert found[2]["actor/wm_clipped_token_ratio"].values[0] == pytest.approx(float((p >= 0.1).float().mean()))


def test_the_weights_are_those_of_the_algorithm():
    """Six transitions with an observation; by hand: the mean entropies, the highest half of them, lambda / N_WM."""
    batch, _ = make_batch()
    entropies = batch.batch["entropys"] = torch.zeros(4, 9)
    # Means of the actions: row 0: 2.0, 0.5; row 1: 1.0, 1.5 (the last has no observation); row 2: 0.7; row 3: none.
    for row, at, value in ((0, 0, 3.0), (0, 1, 1.0), (0, 4, 0.5), (0, 5, 0.5), (1, 0, 1.0), (1, 2, 2.0), (1, 3, 1.0),
                           (1, 7, 9.0), (1, 8, 9.0), (2, 0, 0.7), (2, 1, 0.7), (3, 0, 9.0)):  # fmt: skip
        entropies[row, at] = value
    metrics = add_world_model(batch, PawConfig(alpha=0.5))
    # 5 transitions with an observation: floor(0.5 * 5) = 2 are selected: rows 0 (2 tokens) and 1 (3 tokens).
    expected = torch.zeros(4, 9)
    expected[0, 2:4] = expected[1, 4:7] = 0.5 / 5  # the mean return of their group is 0.5
    mask = batch.batch["response_mask"].bool()
    torch.testing.assert_close(batch.batch["rollout_is_weights"], torch.where(mask, 1.0, expected))
    assert metrics == {
        "wm/lambda_mean": 0.75, "wm/target_share": 5 / 7, "wm/selected_share": 2 / 5, "wm/num_tokens": 5.0
    }  # fmt: skip
    means = np.array([2.0, 0.5, 1.0, 1.5, 0.7])
    assert world_model.select_transitions(means, 0.5).tolist() == [True, False, False, True, False]


def test_the_loss_does_not_depend_on_micro_batches_or_processes():
    paw = PawConfig(alpha=1.0, loss="mae")
    batch, logits = make_batch()
    configure(paw)
    add_world_model(batch, paw)
    whole = verl_loss(batch, logits, actor())
    parts = [verl_loss(batch, logits, actor(), rows) for rows in ([0, 1], [2], [3])]
    assert_equal((sum(part[0] for part in parts), [g for part in parts for g in part[1]]), whole)
    ranks = [verl_loss(batch, logits, actor(), rows, dp_size=2) for rows in ([0, 3], [1, 2])]
    # DDP and FSDP average gradients over the two ranks.
    assert sum(one[0] for one in ranks) / 2 == pytest.approx(whole[0], abs=1e-5)
    by_row = dict(zip([0, 3, 1, 2], [g / 2 for one in ranks for g in one[1]], strict=True))
    assert_equal((whole[0], [by_row[row] for row in range(4)]), whole)


def test_several_optimizer_steps_share_the_weights():
    one, other = make_batch()[0], make_batch()[0]
    add_world_model(one, PawConfig())
    add_world_model(other, PawConfig(), num_updates=2)
    mask = one.batch["response_mask"].bool()
    torch.testing.assert_close(other.batch["rollout_is_weights"][~mask], 2 * one.batch["rollout_is_weights"][~mask])


def test_verls_own_token_weights_and_rejections_are_kept():
    batch, logits = make_batch()
    own = batch.batch["rollout_is_weights"] = torch.rand(4, 9) + 0.5
    expected = verl_loss(batch, logits, actor("vanilla"))
    sampled = batch.batch["response_mask"].clone()
    paw = PawConfig(alpha=1.0, lambda_0=1e-12)
    configure(paw)
    add_world_model(batch, paw)
    torch.testing.assert_close(batch.batch["rollout_is_weights"][sampled.bool()], own[sampled.bool()])
    assert_equal(verl_loss(batch, logits, actor()), expected)
    # A rejected response: its mask is cleared; its observations are predicted still, its actions never.
    batch, logits = make_batch()
    batch.batch["response_mask"][1] = 0
    add_world_model(batch, PawConfig(alpha=1.0), sampled_mask=sampled)
    weights = batch.batch["rollout_is_weights"][1]
    assert (weights[sampled[1].bool()] == 0).all()
    assert weights.count_nonzero() == RESPONSES[1].count("o")


def test_equal_transitions_are_used_once():
    batch, _ = make_batch()
    for name in ("prompts", "responses", "input_ids", "attention_mask", "response_mask", "entropys"):
        batch.batch[name][1] = batch.batch[name][0]
    metrics = add_world_model(batch, PawConfig(alpha=1.0, deduplicate=True))
    assert (batch.batch["rollout_is_weights"][1][~batch.batch["response_mask"][1].bool()] == 0).all()
    assert metrics["wm/num_tokens"] == RESPONSES[0].count("o") + RESPONSES[2].count("o")


@pytest.mark.parametrize("kind", ["cmae", "mae", "ce"])
def test_the_world_model_loss_in_float64(kind):
    logits = torch.randn(12, VOCAB, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(0, VOCAB, (12,)), torch.rand(12, dtype=torch.float64)
    weights[3] = 0
    p = logits.softmax(-1)[range(12), targets]
    expected = {"cmae": 1 - p.clamp(max=0.05), "mae": 1 - p, "ce": -p.log()}[kind]
    found = world_model_loss(logits.log_softmax(-1)[range(12), targets], weights, kind, 0.05)
    torch.testing.assert_close(found, (expected * weights).sum())
    gradients = [torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (found, (expected * weights).sum())]
    torch.testing.assert_close(*gradients)


def test_what_cannot_be_computed_is_refused():
    batch, logits = make_batch()
    with pytest.raises(UserError, match="found no token weights in the batch"):
        verl_loss(batch, logits, actor())
    batch.meta_info["temperature"] = 0.7
    with pytest.raises(UserError, match=r"temperature is 0\.7"):
        add_world_model(batch, PawConfig())
    batch.meta_info["temperature"] = 1.0
    batch.batch.pop("entropys")
    with pytest.raises(UserError, match="has no entropies"):
        add_world_model(batch, PawConfig())
    add_world_model(batch, PawConfig(selection="all"))
    batch.batch.pop("token_level_scores")
    with pytest.raises(UserError, match="no token_level_scores"):
        add_world_model(batch, PawConfig())
    with pytest.raises(UserError, match="needs the prompts"):
        world_model_weights(torch.ones(1, 1), torch.ones(1, 1), None, torch.zeros(1, 1), ["a"],
                            PawConfig(deduplicate=True, selection="all"))  # fmt: skip
    with pytest.raises(UserError, match="Unsupported loss mode: nope"):
        configure(inner="nope")
    with pytest.raises(UserError, match="itself"):
        configure(inner="paw")
    with pytest.raises(UserError, match="alpha is 2"):
        PawConfig(alpha=2.0)


# ------------------------------------------------------------------------------------------------- verl's trainers


class Store:
    """Holds nested tensors by name, in place of TransferQueue's service, which needs a Ray cluster."""

    def __init__(self, fields):
        self.fields = fields

    def kv_batch_get(self, keys, partition_id, select_fields):
        kept = {name: self.fields[name] for name in select_fields if name in self.fields}
        return TensorDict(kept, batch_size=len(keys))

    def kv_batch_put(self, keys, partition_id, fields):
        self.fields.update(fields.items())
        return self.meta(keys, partition_id)

    @staticmethod
    def meta(keys, partition_id="train"):
        from transfer_queue import KVBatchMeta

        return KVBatchMeta(partition_id=partition_id, keys=list(keys), tags=[{} for _ in keys])


@pytest.mark.skipif(importlib.util.find_spec("transfer_queue") is None, reason="needs TransferQueue")
@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_the_trainers_put_the_weights_of_the_hook_into_the_batch(mode, monkeypatch):
    """verl's own `_compute_advantage` (GRPO), with the batch in a dict."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1 import get_trainer_cls, trainer_base

    from paw_fast.integrations.verl import trainer as ours

    batch, _ = make_batch()
    lengths = [len(response) for response in RESPONSES]

    def nested(tensor):
        return torch.nested.as_nested_tensor(
            [row[:n] for row, n in zip(tensor, lengths, strict=True)], layout=torch.jagged
        )

    tensors = batch.batch
    store = Store({
        "response_mask": nested(tensors["response_mask"]), "rm_scores": nested(tensors["token_level_scores"]),
        "entropy": nested(tensors["entropys"]), "old_log_probs": nested(tensors["old_log_probs"]),
        "uid": torch.tensor([0, 0, 1, 1]),
    })  # fmt: skip
    for module in (ours, trainer_base):
        monkeypatch.setattr(module, "tq", store)
    cls = get_trainer_cls(f"paw_{mode}")
    assert issubclass(cls, get_trainer_cls(mode))
    one = object.__new__(cls)
    one.global_steps = 1
    one.config = OmegaConf.create({
        "algorithm": {"adv_estimator": "grpo", "use_kl_in_reward": False, "gamma": 1.0, "lam": 1.0},
        "actor_rollout_ref": {"rollout": {"n": 2, "temperature": 1.0},
                              "actor": {"ppo_mini_batch_size": 2, "data_loader_seed": 42}},
    })  # fmt: skip
    configure(PawConfig(alpha=0.5))
    metrics = {}
    keys = ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]
    one._compute_advantage(store.meta(keys), metrics)
    expected = add_world_model(batch, PawConfig(alpha=0.5))
    found = store.fields["rollout_is_weights"].to_padded_tensor(0)
    valid = tensors["attention_mask"][:, -9:].bool()
    torch.testing.assert_close(found[valid], batch.batch["rollout_is_weights"][valid])
    assert metrics == pytest.approx(expected)
    assert store.fields["advantages"].to_padded_tensor(0).abs().max() > 0


def test_the_loss_is_registered():
    assert core_algos.get_policy_loss_fn("paw") is integration.paw_policy_loss
