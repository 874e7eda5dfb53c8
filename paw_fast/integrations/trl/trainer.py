"""Extends TRL's `GRPOTrainer` by the world-model loss of PaW.

    generation      TRL: prompts -> episodes with tools or environments -> rewards -> advantages
                      + entropies of the actions under the policy before the update
                      + transitions by the tool mask -> selection; group returns -> lambda
    loss            TRL: the policy loss, of log-probs that our kernels compute
                      + the world-model loss of the selected observation tokens, in the same forward

Shapes: B completions of a batch on this process, C tokens of the longest, M transitions.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer  # pyright: ignore[reportAttributeAccessIssue]  # where TRL is not installed
from trl.models.utils import disable_gradient_checkpointing

from paw_fast.algorithms.world_model import group_lambdas
from paw_fast.integrations.trl import transitions
from paw_fast.integrations.trl.lm_head import add_paw_head
from paw_fast.integrations.trl.settings import PawConfig, check_adapter, check_arguments, check_model, refuse
from paw_fast.kernels import LossSettings


class PawGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with the world-model loss of PaW (arXiv 2606.02388) added to its loss.

    Takes the arguments of `GRPOTrainer`, and `paw`, the settings of the world-model loss (default: `PawConfig()`).
    Every loss type of TRL works. The loss is that of TRL plus

        sum over selected observation tokens of  lambda_g * cmae(p) / N_WM

    where an observation is what a tool, an environment or a `rollout_func` with `env_mask` put into the completion, and
    N_WM the number of selected tokens of the optimizer step. Where an optimizer step needs several generated batches
    (gradient accumulation over more than `steps_per_generation`), each counts by its share, as in TRL's own losses.

    With `PawConfig(enabled=False)` the loss is TRL's. Raises `UserError` for settings that are not supported: see
    docs/howto/use_with_trl.md.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "paw"]

    def __init__(self, *args: Any, paw: PawConfig | None = None, **kwargs: Any) -> None:
        self.paw = PawConfig() if paw is None else paw
        given = inspect.signature(GRPOTrainer.__init__).bind_partial(self, *args, **kwargs).arguments
        sources = ("environment_factory", "tools", "rollout_func")
        check_arguments(given.get("args"), any(given.get(name) for name in sources), self.paw.enabled)
        self._observation_text: dict[tuple[int, ...], tuple[bool, ...]] = {}
        self._probes: dict[tuple[str, ...], list[list[int]]] = {}
        self._recorded: Tensor | None = None
        self._recording = self._warned = False
        self._returns: Tensor | None = None
        self._loss_inputs: Mapping[str, Any] | None = None
        self._head_output: Any = None
        super().__init__(*args, **kwargs)
        for name, enabled in {"deepspeed": self.is_deepspeed_enabled, "fsdp": self.is_fsdp_enabled}.items():
            if enabled:  # by `accelerate launch`, without a setting of GRPOConfig
                refuse(name)
        model = self.accelerator.unwrap_model(self.model)
        check_adapter(model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        check_model(base, self._is_vlm, self.aux_loss_enabled)
        settings = LossSettings(wm_loss=self.paw.loss, tau=self.paw.tau)
        add_paw_head(base, self.temperature, settings, float32=bool(self.args.cast_lm_head_to_fp32))

    # ------------------------------------------------------------------------------------------------- generation

    def _get_tool_suffix_ids(self, tool_messages: list[dict[str, Any]]) -> list[int]:
        """The tokens of a turn's tool messages. Notes which of them are text, and which chat markup."""
        ids = super()._get_tool_suffix_ids(tool_messages)
        names = tuple(message["name"] for message in tool_messages)
        if names not in self._probes:
            self._probes[names] = [
                super(PawGRPOTrainer, self)._get_tool_suffix_ids([{**m, "content": probe} for m in tool_messages])
                for probe in transitions.PROBES
            ]
        self._observation_text[tuple(ids)] = transitions.find_text(ids, self._probes[names])
        return ids

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Rewards of all processes by reward function. Keeps the returns, before they become advantages."""
        rewards = super()._calculate_rewards(*args, **kwargs)
        returns = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        self._returns = torch.where(rewards.isnan().all(1), torch.nan, returns)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._observation_text.clear()
        self._recorded, self._recording = None, self.paw.enabled
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._recording = False
        if "old_per_token_logps" in output and "tool_mask" in output:
            # The loss has no log-probs of observation tokens: a ratio to the old ones could overflow.
            output["old_per_token_logps"] = output["old_per_token_logps"] * output["tool_mask"]
        if self.paw.enabled:
            # Where TRL computed the old log-probs, the entropies came with them.
            entropies = self._recorded if "old_per_token_logps" in output else None
            output |= self._world_model_inputs(output, self._entropies(output) if entropies is None else entropies)
        return output

    @torch.no_grad()
    def _entropies(self, output: Mapping[str, Any]) -> Tensor:
        """Entropies [B, C] of the completions' tokens under the policy before the update."""
        training = self.model.training
        size = self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            _, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], 1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], 1),
                output["completion_ids"].shape[1],
                batch_size=size,
                compute_entropy=True,
            )
        assert entropies is not None
        return entropies

    def _world_model_inputs(self, output: Mapping[str, Any], entropies: Tensor) -> dict[str, Tensor]:
        """Selects transitions among those of all processes: wm_mask [B, C] of their tokens, wm_lambdas [B]."""
        device, width = output["completion_ids"].device, output["completion_ids"].shape[1]
        sequences = transitions.find_sequences(output, self._observation_text)
        means = transitions.action_entropies(sequences, output["prompt_mask"], entropies)
        targets = [bool(span.observation) for q in sequences for span in q.spans]
        first, here = self.accelerator.process_index, len(targets)
        counts = gather_object([here])
        has_target = np.array(gather_object(targets), dtype=bool)
        described = gather_object(transitions.describe(sequences)) if self.paw.deduplicate else []
        selected = transitions.select(
            np.array(gather_object(means.tolist()), dtype=np.float64), has_target, self.paw,
            (self.args.seed, 3, self.state.global_step), described,
        )  # fmt: skip
        lambdas = self._lambdas()
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["wm/lambda_mean"].append(float(lambdas.mean()))
        metrics["wm/target_share"].append(float(has_target.mean()) if len(has_target) else 0.0)
        metrics["wm/selected_share"].append(float(selected.sum() / max(1, has_target.sum())))
        start = sum(counts[:first])
        mask = transitions.observation_mask(sequences, output["prompt_mask"], width, selected[start : start + here])
        own = lambdas[first * len(sequences) : (first + 1) * len(sequences)]
        return {"wm_mask": mask.to(device), "wm_lambdas": torch.tensor(own, dtype=torch.float32, device=device)}

    def _lambdas(self) -> np.ndarray:
        """World-model weight of each completion of all processes, by the mean return of its group.

        Completions that no reward function scored count as the mean of the others of their group, or as 0.
        """
        assert self._returns is not None
        returns = self._returns.double().cpu().numpy()
        size = self.num_generations if self.model.training else self.num_generations_eval
        groups = np.arange(len(returns)) // size
        scored = ~np.isnan(returns)
        sums = np.bincount(groups, weights=np.where(scored, returns, 0.0))
        filled = np.where(scored, returns, (sums / np.maximum(1, np.bincount(groups, weights=scored)))[groups])
        largest = float(filled.max())
        if largest > self.paw.success_reward and self.paw.balance == "adaptive" and not self._warned:
            self._warned = True
            warnings.warn(
                f"an episode has the return {largest:g}, more than PawConfig.success_reward, "
                f"{self.paw.success_reward:g}: the world-model weight of its group is too small; set success_reward to "
                "the largest return possible",
                stacklevel=2,
            )
        return group_lambdas(filled, groups, self.paw.success_reward, self.paw.lambda_0, self.paw.balance)

    # ------------------------------------------------------------------------------------------------------- loss

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
        batch_size: int | None = None, compute_entropy: bool = False, compute_aux_loss: bool = False, **others: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        """Log-probs and entropies [B, C] by our kernels; in the loss, of sampled tokens alone (others are 0)."""
        if model is self.ref_model:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss,
                **others,
            )  # fmt: skip
        mask = attention_mask[:, -logits_to_keep:].bool()
        weights = None
        if self._loss_inputs is not None:
            if "tool_mask" in self._loss_inputs:
                mask = mask & self._loss_inputs["tool_mask"].bool()
            weights = self._loss_inputs.get("wm_weights")
        logprobs, entropies = [], []
        size = batch_size or len(input_ids)
        for start in range(0, len(input_ids), size):
            part = slice(start, start + size)
            with self.accelerator.autocast():
                out = model(
                    input_ids=input_ids[part], attention_mask=attention_mask[part], paw_mask=mask[part],
                    wm_weights=None if weights is None else weights[part],
                )  # fmt: skip
            logprobs.append(out.log_probs)
            entropies.append(out.entropy)
            if self._loss_inputs is not None:
                self._head_output = out
        all_entropies = torch.cat(entropies)
        if self._recording and self._recorded is None:
            self._recorded = all_entropies
        return torch.cat(logprobs), all_entropies if compute_entropy else None, None

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        self._loss_inputs = dict(inputs)
        if self.paw.enabled:
            num = max(1.0, self._num_wm_tokens(inputs))
            self._loss_inputs["wm_weights"] = inputs["wm_mask"] * inputs["wm_lambdas"][:, None] / num
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._loss_inputs = None
        out, self._head_output = self._head_output, None
        if not self.paw.enabled:
            return loss
        self._log_world_model(out)
        return loss + out.wm_loss

    def _num_wm_tokens(self, inputs: Mapping[str, Any]) -> float:
        """N_WM, the selected observation tokens of this optimizer step, over the number of processes.

        Gradients are averaged over processes, and summed over the micro-batches of a step.
        """
        share, parts = 1.0, [inputs]
        if self.model.training and self._buffered_inputs is not None:
            generated, steps = self.args.steps_per_generation, self.current_gradient_accumulation_steps
            if generated % steps == 0 and steps == self.args.gradient_accumulation_steps:
                start = self._step % generated // steps * steps
                parts = self._buffered_inputs[start : start + steps]
            else:
                parts, share = self._buffered_inputs, steps / generated
        total = torch.stack([part["wm_mask"].sum() for part in parts]).sum().float()
        return float(self.accelerator.reduce(total, "mean")) * share

    def _log_world_model(self, out: Any) -> None:
        training = self.model.training
        sums = torch.stack([out.wm_loss.detach(), out.wm_rows, out.wm_saturated, out.wm_error])
        loss, rows, saturated, error = self.accelerator.reduce(sums, "sum").tolist()
        metrics = self._metrics["train" if training else "eval"]
        # The mean over micro-batches, which is what is shown, is then the loss of the optimizer step.
        steps = self.current_gradient_accumulation_steps if training else 1
        metrics["wm/loss"].append(loss * steps / self.accelerator.num_processes)
        if rows:
            metrics["wm/clipped_token_ratio"].append(saturated / rows)
            metrics["wm/next_observation_error"].append(error / rows)
