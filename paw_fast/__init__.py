"""paw-fast: trains language agents that learn a policy and a world model at once (PaW, arXiv 2606.02388)."""

__version__ = "0.1.0"
