"""Programs built on the framework: the command `cm3`, the quickstart, evaluation, the judge.

No other package imports them. `plugin` registers them; this module is light because every command
imports it.
"""
