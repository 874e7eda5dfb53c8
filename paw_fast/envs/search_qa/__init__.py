"""Search-augmented question answering: questions, retrieval as a tool, exact match as the reward."""
