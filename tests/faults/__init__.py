"""Campaigns: many faults at seeded random moments and places (docs/reliability.md).

`make test-faults` runs them within a bound of time and writes results/faults/; the tests of this
folder run a few of each.
"""
