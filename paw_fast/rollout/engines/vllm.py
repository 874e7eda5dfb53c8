"""Continuous batching with vLLM (0.27 to 0.33) in this process. The only module that uses vLLM's API.

Each action is one vLLM request. The next request of an episode starts with the tokens of the previous one, so its
keys and values come from the prefix cache. When the weights are updated, the requests in flight are aborted, the prefix
cache is reset (which a probe verifies), and the requests are submitted again with the tokens sampled so far.

On a GPU shared with the trainer the engine sleeps during updates (level 2: neither weights nor cache are kept):

    sleep ──> the trainer updates ──> wake weights ──> load weights ──> wake cache ──> reset and probe the cache

Weights must not be written before they are awake, and the cache wakes last, so that it and what loading needs for a
moment do not exist at once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paw_fast.errors import UserError
from paw_fast.extras import vllm_hint
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.engines.base import ActionRequest, Completion, EngineError, unknown_ids
from paw_fast.rollout.engines.vllm_check import broken_companions
from paw_fast.rollout.engines.vllm_worker import EXTENSION
from paw_fast.rollout.weight_sync import WeightSource

_PROBE_BLOCKS = 4
_MAX_PROBE_STEPS = 10_000
_live: list[VllmEngine] = []


@dataclass(frozen=True)
class VllmSettings:
    """Settings of vLLM.

    slots: maximum number of requests in flight.
    max_length: maximum number of tokens of a prompt and its action together.
    dtype: data type of weights and activations.
    tensor_parallel: number of GPUs that share one copy of the model.
    memory_share: share of the GPU memory that vLLM uses (None: 0.9). On the CPU: share of the free memory for keys and
        values (None: 0.25); no more than the slots can need is used.
    seed: seed for requests without one.
    trust_remote_code: whether to run Python code that comes with the model.
    sleep: whether `sleep` frees the memory, with vLLM's sleep mode; it needs CUDA.

    >>> VllmSettings(slots=8, max_length=512).tensor_parallel
    1
    """

    slots: int
    max_length: int
    dtype: str = "float32"
    tensor_parallel: int = 1
    memory_share: float | None = None
    seed: int = 0
    trust_remote_code: bool = False
    sleep: bool = False


@dataclass
class _Running:
    request: ActionRequest
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def completion(self, stopped: bool) -> Completion:
        columns = (tuple(self.ids), tuple(self.logprobs), stopped, tuple(self.versions))
        return Completion(self.request.episode, *columns)


class VllmEngine:
    """Samples actions with vLLM. See `RolloutEngine` for the methods.

    Args:
        folder: a folder with the config.json of the model. Weights in it are not used.
        chat: chat format, for the end of actions.
        source: where to read the weights.
        settings: settings of vLLM.
        version: version of the weights to load first.

    Raises `UserError` if vLLM is not installed or does not start, and `EngineError` if this process already has a vLLM
    engine.
    """

    def __init__(self, folder: Path, chat: ChatFormat, source: WeightSource, settings: VllmSettings, version: int = 0):
        if _live:
            raise EngineError("this process already has a vLLM engine: vLLM keeps its state in globals")
        if settings.sleep and not torch.cuda.is_available():
            raise UserError("--rollout.sleep on: vLLM's sleep mode needs CUDA, which torch does not find")
        self.chat, self.source, self.settings = chat, source, settings
        self.policy_version = version
        self._running: dict[int, _Running] = {}
        self._episode_of: dict[str, int] = {}
        self._requests = 0
        self._asleep = False
        self._cached_prompt: list[int] = []
        with _preserve_process_state():
            if settings.tensor_parallel > 1 and not torch.cuda.is_available():
                # By default vLLM requires one NUMA node per worker.
                os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", _split_cores(settings.tensor_parallel))
            vllm = _import_vllm()
            self._params, self._delta = vllm.SamplingParams, vllm.sampling_params.RequestOutputKind.DELTA
            try:
                self._engine = vllm.v1.engine.llm_engine.LLMEngine.from_engine_args(
                    vllm.engine.arg_utils.EngineArgs(**_engine_args(folder, settings))
                )
                self._restriction = _restriction(chat, self._engine.vllm_config.model_config.get_vocab_size())
                self._block = self._engine.vllm_config.cache_config.block_size
                self._load(version)
                self._cached_tokens([0])  # fails now if vLLM cannot run the model, e.g. because of its head size
                _live.append(self)
            except (ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
                raise UserError(f"vLLM {vllm.__version__} does not start: {_first_line(error)}") from error

    def submit(self, request: ActionRequest) -> None:
        if len(request.prompt_ids) + request.max_tokens > self.settings.max_length:
            raise ValueError(
                f"got a prompt of {len(request.prompt_ids)} tokens and an action of up to {request.max_tokens}, "
                f"expected at most {self.settings.max_length} tokens in total"
            )
        if request.episode in self._running:
            raise ValueError(f"episode {request.episode} already has an action in flight")
        self._running[request.episode] = run = _Running(request)
        if not self._asleep:
            self._add(run)

    def _add(self, run: _Running) -> None:
        """Submits a vLLM request for the remaining tokens of an action."""
        request = run.request
        self._requests += 1
        name = f"{request.episode}.{self._requests}"
        params = self._sampling(
            temperature=request.temperature,
            max_tokens=request.max_tokens - len(run.ids),
            seed=_seed((*request.seed, len(run.ids)) if run.ids else request.seed),
            stop_token_ids=sorted(self.chat.stop_ids),
            **self._restriction,
        )
        self._episode_of[name] = request.episode
        self._engine.add_request(name, {"prompt_token_ids": request.prompt_ids + run.ids}, params)

    def _sampling(self, **values: Any) -> Any:
        return self._params(
            logprobs=0, detokenize=False, ignore_eos=True, skip_special_tokens=False, output_kind=self._delta, **values
        )

    def step(self) -> list[Completion]:
        if not self._running or self._asleep:
            return []
        done = []
        for output in self._engine.step():
            episode = self._episode_of.get(output.request_id)
            run = None if episode is None else self._running.get(episode)
            if run is None or episode is None:
                continue
            part = output.outputs[0]
            for token, entry in zip(part.token_ids, part.logprobs or (), strict=True):
                run.ids.append(token)
                run.logprobs.append(entry[token].logprob)
                run.versions.append(self.policy_version)
                if self.chat.ends_action(run.ids, run.request.stop):
                    break
            stopped = bool(run.ids) and self.chat.ends_action(run.ids, run.request.stop)
            if stopped or output.finished:
                if not output.finished:
                    self._engine.abort_request([output.request_id])
                del self._running[episode], self._episode_of[output.request_id]
                self._save_probe(run)
                done.append(run.completion(stopped))
        return done

    def _save_probe(self, run: _Running) -> None:
        """Stores the start of a prompt that is now in the prefix cache, to check later that the cache was reset."""
        start = (run.request.prompt_ids + run.ids)[: _PROBE_BLOCKS * self._block + 1]
        if len(start) > self._block:
            self._cached_prompt = start

    def release(self, episode: int) -> None:
        if self._running.pop(episode, None) is not None:
            names = [name for name, one in self._episode_of.items() if one == episode]
            self._engine.abort_request(names)
            for name in names:
                del self._episode_of[name]

    def update_weights(self, policy_version: int) -> None:
        # Requests in flight continue from their tokens with the new weights; keys and values are recomputed.
        if not self._asleep:
            self._abort()
        self._load(policy_version)
        for run in self._running.values():
            self._add(run)

    def sleep(self) -> None:
        if self._asleep or not self.settings.sleep:
            return
        self._abort()
        self._engine.sleep(level=2)
        self._asleep = True

    def _abort(self) -> None:
        """Aborts vLLM's requests; the actions in flight stay in `_running`."""
        self._engine.abort_request(list(self._episode_of))
        self._episode_of.clear()
        for _ in range(4):  # finish a batch that is still running; its results are discarded
            self._engine.step()

    def _load(self, version: int) -> None:
        if self._asleep:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what the trainer's allocator keeps of the update, in one process with it
            self._engine.wake_up(tags=["weights"])
        self._engine.collective_rpc("paw_load_weights", args=(self.source, version))
        if self._asleep:
            self._engine.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._reset_cache(version)
        self.policy_version = version

    def _reset_cache(self, version: int) -> None:
        """Resets the prefix cache and verifies that it is empty. Otherwise old keys and values could be used silently.

        Raises `EngineError` if entries remain.
        """
        if not self._engine.reset_prefix_cache():
            raise EngineError(f"vLLM did not reset its prefix cache for the weights of version {version}")
        if not self._cached_prompt:
            return
        hits = self._cached_tokens(self._cached_prompt)
        if hits:
            raise EngineError(
                f"stale prefix cache: {hits} tokens of a prompt that was cached with older weights are still cached "
                f"with version {version}"
            )

    def _cached_tokens(self, prompt: list[int]) -> int:
        """Returns how many tokens of a prompt are in the prefix cache. Samples one token."""
        self._requests += 1
        self._engine.add_request(f"probe.{self._requests}", {"prompt_token_ids": prompt}, self._sampling(max_tokens=1))
        for _ in range(_MAX_PROBE_STEPS):
            for output in self._engine.step():
                if output.finished:
                    return output.num_cached_tokens or 0
        raise EngineError("vLLM did not complete the probe of its prefix cache")

    def close(self) -> None:
        engine = self.__dict__.pop("_engine", None)
        if engine is not None:
            _live.remove(self)
            engine.engine_core.shutdown()


def _engine_args(folder: Path, s: VllmSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(folder), "skip_tokenizer_init": True, "load_format": "dummy", "dtype": s.dtype, "seed": s.seed,
        "max_model_len": s.max_length, "max_num_seqs": s.slots, "enable_prefix_caching": True,
        "tensor_parallel_size": s.tensor_parallel, "logprobs_mode": "processed_logprobs",
        "trust_remote_code": s.trust_remote_code, "generation_config": "vllm",
        "disable_log_stats": True, "worker_extension_cls": EXTENSION,
    }  # fmt: skip
    if torch.cuda.is_available():
        return arguments | {"gpu_memory_utilization": s.memory_share or 0.9, "enable_sleep_mode": s.sleep}
    return arguments | {"enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": _cpu_cache_bytes(folder, s)}


def _restriction(chat: ChatFormat, size: int) -> dict[str, Any]:
    """Returns sampling parameters that exclude ids without a token in the tokenizer, in the shorter of two forms.

    The bias of -100 is the lowest that vLLM accepts; it multiplies the probability by e^-100.
    """
    unknown = unknown_ids(chat.tokenizer, size)
    if not unknown:
        return {}
    if len(unknown) <= size // 2:
        return {"logit_bias": dict.fromkeys(unknown, -100.0)}
    return {"allowed_token_ids": sorted(set(range(size)) - set(unknown))}


def _split_cores(workers: int) -> str:
    """Distributes the cores of this process among the workers, in vLLM's notation ("0,1|2,3").

    Workers share cores if there are fewer cores than workers.
    """
    cores = sorted(os.sched_getaffinity(0))
    parts = [cores[i::workers] or [cores[i % len(cores)]] for i in range(workers)]
    return "|".join(",".join(map(str, part)) for part in parts)


def _cpu_cache_bytes(folder: Path, s: VllmSettings) -> int:
    """Returns the bytes for keys and values of all slots at full length, limited to a share of the free memory."""
    import psutil
    import transformers

    c = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=s.trust_remote_code).get_text_config()
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    token = 2 * c.num_hidden_layers * heads * head * getattr(torch, s.dtype).itemsize
    needed = (s.slots + 1) * (s.max_length + 64) * token
    free = psutil.virtual_memory().available
    return int(min(needed, free * (s.memory_share or 0.25)))


def _seed(seed: tuple[int, ...]) -> int:
    """Derives a 63-bit seed from a tuple of integers."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _import_vllm() -> Any:
    """Imports vLLM, configured for a single process and without log output.

    Raises `UserError`, with the command that fixes it, if vLLM or a dependency is missing or broken.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for key, value in (("VLLM_LOGGING_LEVEL", "ERROR"), ("VLLM_NO_USAGE_STATS", "1")):
        os.environ.setdefault(key, value)
    try:
        import vllm
        import vllm.engine.arg_utils
        import vllm.sampling_params
        import vllm.v1.engine.llm_engine
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise UserError(f"vLLM cannot be imported: {error}; {vllm_hint()}") from error
        raise UserError(f"--rollout.engine vllm needs vLLM: {vllm_hint()}") from None
    except Exception as error:
        broken = broken_companions()
        fix = f"pip uninstall -y {' '.join(broken)} (paw-fast does not need them)" if broken else vllm_hint()
        raise UserError(f"vLLM cannot be imported: {_first_line(error)}; {fix}") from error
    return vllm


def check_import() -> None:
    """Imports vLLM. Raises `UserError` where it, or a package that it needs, is missing or broken."""
    with _preserve_process_state():
        _import_vllm()


@contextmanager
def _preserve_process_state() -> Iterator[None]:
    """Restores the random states and thread settings that vLLM changes when it starts, and ignores its warnings."""
    state, numpy_state, threads, setter = (
        torch.random.get_rng_state(), np.random.get_state(), torch.get_num_threads(), torch.set_num_threads,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads = setter
            torch.set_num_threads(threads)
            torch.random.set_rng_state(state)
            np.random.set_state(numpy_state)
