"""The decoding engine's parts: requests and events, prompts read once, the rows in flight, a session that they join and leave.

`cm3core.generate` has the public names.
"""
