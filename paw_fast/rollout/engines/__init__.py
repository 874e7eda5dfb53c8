"""Engines that sample the tokens of actions: Hugging Face transformers and vLLM."""
