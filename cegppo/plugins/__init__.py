"""The losses and the instrument inside other people's trainers.

`batch` turns a trainer's tensors into ours, and its files beside it are one a trainer: they know
that trainer's names, its configuration and how it averages, and hold no formula. They need torch,
numpy and that trainer, nothing else of this package's extras.
"""
