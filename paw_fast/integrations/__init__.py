"""Connects the kernels and the PaW losses to other trainers. Nothing in the package imports this folder.

Each module needs the trainer that it connects to, which an extra of the same name installs.
"""
