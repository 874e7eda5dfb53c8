"""Runs plain vLLM on a checkpoint, as the reference for an engine after an update of the weights.

python fresh_vllm.py FOLDER REQUESTS.json ANSWERS.json
"""

import json
import os
import sys


def main(folder: str, requests: str, answers: str) -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, kv_cache_memory_bytes=64 << 20,
        max_model_len=512, max_num_seqs=16, block_size=32, logprobs_mode="processed_logprobs",
        generation_config="vllm", disable_log_stats=True,
    )  # fmt: skip
    with open(requests, encoding="utf-8") as file:
        asked = json.load(file)
    params = [
        SamplingParams(
            logprobs=0, detokenize=False, ignore_eos=True, stop_token_ids=one["stop_token_ids"],
            max_tokens=one["max_tokens"], temperature=one["temperature"], seed=one["seed"],
        )
        for one in asked
    ]  # fmt: skip
    outputs = llm.generate([{"prompt_token_ids": one["prompt"]} for one in asked], params, use_tqdm=False)
    got = []
    for output in outputs:
        part = output.outputs[0]
        logprobs = [entry[token].logprob for token, entry in zip(part.token_ids, part.logprobs, strict=True)]
        got.append({"ids": list(part.token_ids), "logprobs": logprobs})
    with open(answers, "w", encoding="utf-8") as file:
        json.dump(got, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
