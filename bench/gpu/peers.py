"""What the kernels are compared with: torch by hand, torch.compile, and the libraries that are installed.

A peer is named, says what it computes, and gives a call. Those of paw_loss and linear_paw_loss are forward and
backward. Libraries are asked for what comes nearest: most know no policy loss and no entropy, and compute a
cross-entropy instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from paw_fast import kernels as K

LIBRARIES = ("liger-kernel", "quack-kernels", "cut-cross-entropy")
EVERYTHING = "loss, dlogits, logp, entropy, kl, flags"


@dataclass(frozen=True)
class Peer:
    """`call` runs once and returns the tensors that are checked for NaN; `restore` puts back what it overwrote."""

    name: str
    outputs: str
    call: Callable[[], tuple[Tensor, ...]]
    restore: Callable[[], object] | None = None


@dataclass(frozen=True)
class Case:
    """Logits [N, V] and their rows; `leaf` and `work` are copies, to be differentiated and overwritten."""

    logits: Tensor
    leaf: Tensor
    work: Tensor
    rows: K.LossRows


def make_case(num: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Case:
    logits = torch.randn(num, vocab, device=device, dtype=dtype)
    rows = make_rows(num, vocab, device)
    old = K.token_logprobs(logits, rows.targets).logprobs + 0.1 * torch.randn(num, device=device)
    rows = K.LossRows(rows.targets, rows.kinds, rows.weights, old, rows.advantages)
    return Case(logits, logits.clone().requires_grad_(), logits.clone(), rows)


def make_rows(num: int, vocab: int, device: torch.device) -> K.LossRows:
    """Policy and world-model rows in turn."""
    return K.LossRows(
        torch.randint(0, vocab, (num,), device=device),
        1 + torch.arange(num, device=device).remainder(2).to(torch.uint8),
        torch.full((num,), 1.0 / num, device=device),
        torch.full((num,), -10.0, device=device),
        torch.randn(num, device=device),
    )


def eager_token_logprobs(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    x = logits.float()
    logprobs = torch.log_softmax(x, -1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], entropies, torch.logsumexp(x, -1)


def eager_loss(logits: Tensor, rows: K.LossRows) -> tuple[Tensor, Tensor]:
    """The clipped surrogate and CMAE with the entropy as a statistic, as a trainer writes it by hand."""
    x = logits.float()
    logprobs = torch.log_softmax(x, -1)
    entropies = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
    logp = logprobs.gather(-1, rows.targets[:, None])[:, 0]
    ratio = torch.exp(logp - rows.old_logprobs)
    surrogate = -torch.minimum(rows.advantages * ratio, rows.advantages * ratio.clamp(0.8, 1.2))
    world_model = 1 - torch.exp(logp).clamp(max=0.2)
    return (torch.where(rows.kinds == K.POLICY, surrogate, world_model) * rows.weights).sum(), entropies


def missing() -> list[str]:
    from importlib import metadata

    found = []
    for name in LIBRARIES:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(name)
    return found


def token_peers(case: Case, compiled: Callable[..., tuple[Tensor, ...]] | None) -> list[Peer]:
    """token_logprobs, after our own."""
    x, targets = case.logits, case.rows.targets
    peers = [Peer("torch eager", "logp, entropy, lse", lambda: eager_token_logprobs(x, targets))]
    if compiled is not None:
        peers.append(Peer("torch.compile", "logp, entropy, lse", lambda: compiled(x, targets)))
    if x.is_cuda:
        try:
            from quack.cross_entropy import cross_entropy_fwd

            peers.append(
                Peer("quack cross_entropy_fwd", "logp, lse", lambda: cross_entropy_fwd(x, targets, return_lse=True))
            )
        except ImportError:
            pass
    return peers


def loss_peers(case: Case, compiled: Callable[..., tuple[Tensor, Tensor]] | None) -> list[Peer]:
    """paw_loss, after our own."""
    leaf, rows = case.leaf, case.rows

    def run(loss_of: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            leaf.grad = None
            loss = loss_of()
            loss.backward()
            assert leaf.grad is not None
            return loss.detach(), leaf.grad

        return call

    def restore() -> None:
        leaf.data.copy_(case.logits)

    by_hand = "loss, dlogits, entropy"
    peers = [Peer("torch eager", by_hand, run(lambda: eager_loss(leaf, rows)[0]))]
    if compiled is not None:
        peers.append(Peer("torch.compile", by_hand, run(lambda: compiled(leaf, rows)[0])))
    if not leaf.is_cuda:
        return peers
    ce = "cross-entropy, dlogits"
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy
        from liger_kernel.transformers.grpo_loss import triton_grpo_loss

        peers.append(Peer("liger cross_entropy", ce, run(lambda: liger_cross_entropy(leaf, rows.targets)), restore))
        batch, vocab = 8, leaf.shape[1]

        def grpo() -> Tensor:
            """[B, L + 1, V] logits; the last of each sequence has no target."""
            cut = lambda t: t.view(batch, -1)[:, :-1].contiguous()  # noqa: E731
            losses = triton_grpo_loss(
                leaf.view(batch, -1, vocab), cut(rows.old_logprobs), None, cut(rows.targets), rows.advantages[:batch],
                temperature=1.0, beta=0.0, eps_low=0.2, eps_high=0.2, inplace=True,
            )[0]  # fmt: skip
            return losses.sum()

        peers.append(Peer("liger triton_grpo_loss", "policy loss, dlogits, clip flags", run(grpo), restore))
    except ImportError:
        pass
    try:
        from quack.cross_entropy import cross_entropy

        peers.append(Peer("quack cross_entropy", ce, run(lambda: cross_entropy(leaf, rows.targets, reduction="sum"))))
        peers.append(
            Peer(
                "quack cross_entropy in place", ce,
                run(lambda: cross_entropy(leaf, rows.targets, reduction="sum", inplace_backward=True)), restore,
            )
        )  # fmt: skip
    except ImportError:
        pass
    return peers


def linear_peers(x: Tensor, w: Tensor, rows: K.LossRows) -> list[Peer]:
    """linear_paw_loss, after our own. "bare products" are the three that no implementation can do without."""

    def run(loss_of: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            x.grad = w.grad = None
            loss = loss_of()
            loss.backward()
            assert x.grad is not None
            assert w.grad is not None
            return loss.detach(), x.grad, w.grad

        return call

    @torch.no_grad()
    def products() -> tuple[Tensor, ...]:
        logits = x @ w.T
        return torch.mm(logits, w), torch.mm(logits.T, x)

    gradients = "cross-entropy, d_hidden, d_weight"
    peers = [
        Peer("bare products", "nothing", products),
        Peer("torch eager", "loss, d_hidden, d_weight", run(lambda: eager_loss(x @ w.T, rows)[0])),
    ]
    if not x.is_cuda:
        return peers
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as liger

        peers.append(Peer("liger fused linear", gradients, run(lambda: liger(x, w, rows.targets))))
    except ImportError:
        pass
    try:
        from quack.linear_cross_entropy import chunked_linear_cross_entropy as quack

        peers.append(Peer("quack chunked linear", gradients, run(lambda: quack(x, w, rows.targets))))
    except ImportError:
        pass
    try:
        from cut_cross_entropy import linear_cross_entropy as cce

        peers.append(Peer("cut-cross-entropy", gradients, run(lambda: cce(x, w, rows.targets))))
    except ImportError:
        pass
    return peers
