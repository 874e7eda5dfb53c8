"""Generation engines: what samples the tokens of an action."""
