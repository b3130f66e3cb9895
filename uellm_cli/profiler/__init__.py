"""Requests to profiled requests: prompt tokens, output-length quantiles, memory.

`profile.py` profiles; `lengths/` are the predictors, `learning/` is what they are trained with.
"""
