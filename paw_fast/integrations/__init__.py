"""Connects losses and environments to other libraries. Of the package only `cli.serve_env` imports this folder.

trl, verl                        the losses in other trainers
openenv, verifiers, gymnasium    the environments for other trainers and clients
settings, turns, text_env        what they share

Each folder needs the library that it connects to; most are installed by an extra of the same name.
"""
