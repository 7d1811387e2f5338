"""Soft prompts for a frozen T5 (Lester et al. 2021) and their transfer between tasks (Vu et al. 2022).

Letters in every shape: B examples, R packed rows, K slots, P prompt length, T input tokens, S encoder length (prompt
and input), L target length, D model width, H heads, V vocabulary.
"""

__version__ = "0.1.0"
