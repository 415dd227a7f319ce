"""Programs built on the framework: the command `cm3`, the server and its page, quick start, evaluation, the judge.

Nothing else imports them. What they register is in `plugin`; this module is light, because every command imports it.
"""
