"""Loads a checkpoint's LoRA adapter with vLLM's own LoRA interface and prints the log-probs of greedy tokens.

python vllm_adapter.py BASE ADAPTER    prints {"ids": [...], "logprobs": [...]} as the last line
"""

import json
import os
import sys

PROMPT = [5, 9, 17, 30, 41, 8, 12]


def main(base: str, adapter: str) -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        base, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, kv_cache_memory_bytes=16 << 20,
        max_model_len=128, max_num_seqs=2, block_size=32, generation_config="vllm", disable_log_stats=True,
        enable_lora=True, max_lora_rank=8,
    )  # fmt: skip
    params = SamplingParams(logprobs=0, detokenize=False, ignore_eos=True, max_tokens=8, temperature=0.0)
    prompt, request = {"prompt_token_ids": PROMPT}, LoRARequest("agent", 1, adapter)
    (output,) = llm.generate([prompt], params, use_tqdm=False, lora_request=request)
    part = output.outputs[0]
    logprobs = [entry[token].logprob for token, entry in zip(part.token_ids, part.logprobs, strict=True)]
    print(json.dumps({"ids": list(part.token_ids), "logprobs": logprobs}))


if __name__ == "__main__":
    main(*sys.argv[1:])
