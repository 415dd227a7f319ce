"""Experiments: questions about the method, answered by training and measuring:
`cm3 experiment NAME`."""
