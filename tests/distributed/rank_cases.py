"""Updates of a small policy on one process or on several, and the processes that run them."""

import dataclasses
import multiprocessing
import os
import socket
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch.multiprocessing.spawn import start_processes

from paw_fast.algorithms import world_model
from paw_fast.algorithms.base import make_algorithm
from paw_fast.config import TrainerConfig, algo_config, load_preset
from paw_fast.distributed import checkpoint as sharded
from paw_fast.distributed.learner import ShardedLearner
from paw_fast.distributed.ranks import join_ranks
from paw_fast.distributed.sharding import whole_tensor
from paw_fast.learner import Learner
from paw_fast.models import packed_attention
from paw_fast.models.policy import Policy, disable_dropout
from paw_fast.runs.checkpoint import load_checkpoint, save_checkpoint
from paw_fast.types import EpisodeId, Task, Trajectory, Transition

VOCAB = 90


@dataclass(frozen=True)
class Case:
    layout: str = "window"
    algo: str = "grpo"
    critic: str = "own"
    kl: float = 0.0
    replicate: int = 1
    tied: bool = True
    checkpointing: bool = False
    budget: int = 40
    num_episodes: int = 8
    minibatches: int = 1
    warmup: int = 0
    dtype: str = "float32"


def config_of(case, ranks=1):
    base = load_preset("tiny")
    return dataclasses.replace(
        base, layout=case.layout, token_budget=case.budget, steps=5,
        algo=dataclasses.replace(algo_config(case.algo, base.algo), minibatches=case.minibatches, kl_coef=case.kl),
        critic=dataclasses.replace(base.critic, backbone=case.critic, warmup_steps=case.warmup),
        paw=dataclasses.replace(base.paw, alpha=0.5, tau=1.0),
        optim=dataclasses.replace(base.optim, schedule="constant", learning_rate=1e-3),
        trainer=TrainerConfig(ranks, case.replicate),
    )  # fmt: skip


def model_of(case, seed=1):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=case.tied, initializer_range=0.2, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, case.dtype))
    model.set_attn_implementation(packed_attention.ATTENTION_NAME)
    if case.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        disable_dropout(model)
    return Policy(model, None)


def episodes_of(case, seed=0):
    """Random trajectories of 1 to 4 turns of different lengths, two to a group."""
    rng = np.random.default_rng(seed)
    draw = lambda low, high: tuple(int(i) for i in rng.integers(5, VOCAB, rng.integers(low, high)))  # noqa: E731
    out = []
    for number in range(case.num_episodes):
        prompt, turns = draw(3, 12), []
        for _ in range(int(rng.integers(1, 5))):
            action, observed = draw(1, 6), draw(2, 9)
            mask = tuple(i > 0 for i in range(len(observed)))
            turns.append(Transition(prompt, action, (-1.0,) * len(action), observed, mask, "c", "o", "s", 0.0, True))
            prompt = prompt + action + observed if case.layout == "trajectory" else draw(3, 12)
        reward = float(rng.integers(0, 2) * 10)
        turns[-1] = dataclasses.replace(turns[-1], reward=reward)
        who = EpisodeId(0, number // 2, number % 2)
        out.append(Trajectory(Task("t"), who, tuple(turns), reward, reward, reward > 0))
    return out


def learner_of(case, ranks=None, policy=None):
    config = config_of(case, ranks.size if ranks else 1)
    policy, reference = policy or model_of(case), model_of(case, seed=2) if case.kl else None
    if reference is not None:
        reference.model.requires_grad_(False)
    if ranks is None:
        return Learner(policy, reference, config)
    return ShardedLearner(ranks, policy, reference, config)


def whole(named):
    return {name: whole_tensor(tensor.detach()).clone() for name, tensor in named}


def run(case, ranks=None, steps=2, learner=None, first=0):
    """Token statistics, selected transitions, metrics and gradients of each step, and the weights after them."""
    learner = learner or learner_of(case, ranks)
    taken = []
    for step in range(first, first + steps):
        gradients = []
        optimizers = [learner.optimizer, *learner.critic.own_optimizers()]
        for optimizer in optimizers:
            _record(optimizer, gradients)
        batch = learner.make_batch(episodes_of(case, seed=step))
        stats = learner.compute_token_stats(batch)
        credit = make_algorithm(learner.config).credit(batch, stats)
        weights = world_model.select(batch, stats, learner.config, step)
        metrics = learner.update(batch, stats, credit, weights, step)
        for optimizer in optimizers:
            del optimizer.clip_gradients
        assert weights is not None
        taken.append(
            {"stats": stats, "selected": weights.selected, "lambdas": weights.lambdas, "metrics": metrics,
             "gradients": gradients}
        )  # fmt: skip
    return {
        "steps": taken, "weights": whole(learner.policy.model.named_parameters()),
        "critic": whole(learner.critic.named_parameters()),
    }  # fmt: skip


def _record(optimizer, gradients):
    original = optimizer.clip_gradients

    def clip(max_norm):
        gradients.extend(whole((i, p.grad) for i, p in enumerate(optimizer.trained) if p.grad is not None).items())
        return original(max_norm)

    optimizer.clip_gradients = clip


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def join(rank, size, port):
    """Makes this process rank `rank` of `size`, as a launcher's environment would."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    return join_ranks()


def save_learner(learner, run_dir, ranks=None):
    """Writes a checkpoint as a run does, in the format of one process or of several."""
    if ranks is None:
        return save_checkpoint(run_dir, 1, model=learner.policy.model, **learner.stateful_parts())
    model, folder = sharded.whole_model(learner.policy, learner.weights()), run_dir / "checkpoints" / "step_000001"
    if ranks.rank == 0:
        folder.mkdir(parents=True)
        model.save_pretrained(folder)
    ranks.all_gather(None)
    sharded.save(learner, folder / sharded.FOLDER, ranks.control)
    return folder


def go_on(case, folder, ranks=None):
    """The second step of a case, from a checkpoint."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, case.dtype))
    model.set_attn_implementation(packed_attention.ATTENTION_NAME)
    learner = learner_of(case, ranks, Policy(model, None))
    if ranks is None and not (folder / sharded.FOLDER).is_dir():
        load_checkpoint(folder).restore(**learner.stateful_parts())
    else:
        sharded.load(learner, folder, ranks.control if ranks else None)
    return run(case, steps=1, learner=learner, first=1)


def save_and_go_on(case, run_dir, ranks=None):
    """The second step of a case, after a checkpoint that it writes."""
    learner = learner_of(case, ranks)
    run(case, steps=1, learner=learner)
    save_learner(learner, run_dir, ranks)
    return run(case, steps=1, learner=learner, first=1)


def run_cases(rank, size, port, cases, path, saved, root):
    """One process of several: runs the cases by name, and those of `saved` from the checkpoints of other numbers of
    ranks below `root`; rank 0 saves what they give."""
    ranks = join(rank, size, port)
    found = {name: run(case, ranks) for name, case in cases.items()}
    for name, case in saved.items():
        found[name, size] = save_and_go_on(case, root / f"{name}_{size}", ranks)
        for before in (1, 2, 4):
            folder = root / f"{name}_{before}" / "checkpoints" / "step_000001"
            if folder.is_dir():
                found[name, before, size] = go_on(case, folder, ranks)
    if rank == 0:
        torch.save(found, path)
    ranks.leave()


def spawn(size, target, *args):
    """Runs `target(rank, size, port, *args)` in processes of a server that has imported the large packages once."""
    preload = ["paw_fast.distributed.leader", "transformers.models.llama.modeling_llama", "torch._dynamo"]
    multiprocessing.set_forkserver_preload(preload)
    start_processes(target, (size, free_port(), *args), nprocs=size, start_method="forkserver")
