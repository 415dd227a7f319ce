"""Conformance kits: laws that every implementation of a component kind obeys, to be inherited by an author's tests.

    from cm3core.testing.objective import ObjectiveContract

    class TestMine(ObjectiveContract):
        config = MyObjectiveConfig()

One module for each kind. Needs `pytest` and `hypothesis` (`pip install 'cm3leon[test]'`).
"""
