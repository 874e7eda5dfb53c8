"""Games of TextWorld and Jericho in files: `--env textworld:FILE`."""
