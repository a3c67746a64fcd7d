"""Stores as every layout of ours wrote them, kept for ever: what was written once must be read by all later code.

`make.py` makes one with the code that is installed; `runs.py` has what is in them. Add one whenever rows or frames
change, and never make an old one anew.
"""
