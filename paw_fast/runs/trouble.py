"""Finds out from a step's metrics that training is in trouble, and says it in words once.

| problem | said when |
| --- | --- |
| invalid actions | more than `MANY_INVALID` of the actions are invalid |
| no reward variance | no group's returns differ and every advantage is 0 |
| entropy | below `LOW_ENTROPY` nats and below half of that of the first step seen |
| KL | more than `HIGH_KL` nats per token from the reference policy |
| ratio | more than `MANY_CLIPPED` of the action tokens are clipped |
| token limit | more than `MANY_OUT_OF_TOKENS` of the episodes were ended by the token limit |
| transcript | the share of actions that continue the transcript grew by more than `CONTINUED_GROWTH` |
| text | the loss on text of no environment grew by more than `TEXT_GROWTH` nats per token, from below `TEXT_KNOWN` |
"""

from __future__ import annotations

from collections.abc import Mapping

MANY_INVALID = 0.5
LOW_ENTROPY = 0.02
HIGH_KL = 1.0
MANY_CLIPPED = 0.3
MANY_OUT_OF_TOKENS = 0.2
CONTINUED_GROWTH = 0.02
TEXT_GROWTH = 0.1
TEXT_KNOWN = 5.0
"""Nats per token: a model with a larger loss on prose, such as a `tiny` one, knows no language that it could forget."""
QUIET_STEPS = 10
"""A problem is said again only after so many steps without it."""


class TroubleWatch:
    """Remembers which problems have been said.

    >>> watch = TroubleWatch()
    >>> watch.begun(1, {"episode/invalid_action_rate": 0.98})
    ['98% of actions are invalid: see episodes/step_000001.txt']
    >>> watch.begun(2, {"episode/invalid_action_rate": 0.97})
    []
    """

    def __init__(self) -> None:
        self._last_seen: dict[str, int] = {}
        self._first_entropy: float | None = None
        self._first_continued: float | None = None

    def begun(self, step: int, metrics: Mapping[str, float], *, written: bool = True) -> list[str]:
        """The problems that begin in this step. `written`: whether its episodes are in `episodes/`."""
        found = self._found(step, metrics, written)
        new = [
            text for name, text in found.items()
            if name not in self._last_seen or step - self._last_seen[name] > QUIET_STEPS
        ]  # fmt: skip
        self._last_seen |= dict.fromkeys(found, step)
        return new

    def _found(self, step: int, metrics: Mapping[str, float], written: bool) -> dict[str, str]:
        found = {}
        if (invalid := metrics.get("episode/invalid_action_rate", 0.0)) > MANY_INVALID:
            where = f": see episodes/step_{step:06d}.txt" if written else ": --episodes-to-write 2 shows some"
            found["invalid"] = f"{invalid:.0%} of actions are invalid{where}"
        if metrics.get("policy/group_spread_share") == 0 and metrics.get("policy/advantage_abs_mean") == 0:
            found["variance"] = "no group has reward variance: nothing to learn from"
        entropy = metrics.get("policy/entropy")
        if entropy is not None:
            first = self._first_entropy = entropy if self._first_entropy is None else self._first_entropy
            if entropy < LOW_ENTROPY and entropy < first / 2:
                found["entropy"] = (
                    f"entropy fell to {entropy:.3f} nats (from {first:.2f}): the policy hardly explores; raise "
                    "--rollout.temperature or --algo.entropy-coef, or lower --optim.learning-rate"
                )
        if (kl := metrics.get("policy/kl", 0.0)) > HIGH_KL:
            found["kl"] = (
                f"KL from the reference policy is {kl:.1f} nats per token: lower --optim.learning-rate or raise "
                "--algo.kl-coef"
            )
        if (clipped := metrics.get("policy/clip_fraction", 0.0)) > MANY_CLIPPED:
            found["clipped"] = (
                f"{clipped:.0%} of probability ratios are clipped: the updates are too large; lower "
                "--optim.learning-rate"
            )
        if (cut := metrics.get("episode/token_limit_rate", 0.0)) > MANY_OUT_OF_TOKENS:
            found["tokens"] = (
                f"{cut:.0%} of episodes were cut at the token limit: raise --rollout.max-sequence-tokens or "
                "--rollout.max-episode-tokens"
            )
        return found | self._side_effects(metrics)

    def _side_effects(self, metrics: Mapping[str, float]) -> dict[str, str]:
        found = {}
        growth = metrics.get("episode/eval_continued_transcript_growth", 0.0)
        if (continued := metrics.get("episode/continued_transcript_rate")) is not None:
            if self._first_continued is None:
                self._first_continued = continued
            growth = max(growth, continued - self._first_continued)
        if growth > CONTINUED_GROWTH:
            found["continued"] = continued_warning(growth)
        more = metrics.get("text/eval_loss_growth", 0.0)
        if text_grew(metrics.get("text/eval_loss", 0.0) - more, more):
            found["text"] = text_warning(more)
        return found


def continued_warning(growth: float) -> str:
    """The problem that the policy writes observations itself, in words."""
    return (
        f"{100 * growth:.0f} points more of the actions than before continue the transcript (the policy writes an "
        "observation itself): lower --paw.lambda-0, or take --paw.loss cmae"
    )


def text_grew(before: float, growth: float) -> bool:
    """Whether the loss on other text grew so much, from a value `before`, that a warning is due.

    >>> text_grew(3.0, 0.2), text_grew(3.0, 0.05), text_grew(6.9, 0.2)
    (True, False, False)
    """
    return growth > TEXT_GROWTH and before < TEXT_KNOWN


def text_warning(growth: float) -> str:
    """The problem that a policy forgets other text, in words."""
    return (
        f"the loss on text that is of no environment grew by {growth:.2f} nats per token: the policy forgets what it "
        "knew; lower --optim.learning-rate or --paw.lambda-0, or raise --algo.kl-coef"
    )
