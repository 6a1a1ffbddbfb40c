#!/usr/bin/env python
"""The front door: train, evaluate, sweep, draw, keep, report, advise. `python run.py VERB --help`
says what a verb takes."""

import sys

from cegppo.cli import front_door, main

__all__ = ["front_door", "main"]

if __name__ == "__main__":
    sys.exit(front_door())
