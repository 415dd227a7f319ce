"""Permission for external resources: models, adapters, banks and tasks from others can't use hosts, credentials or
paths outside their folder without the user's permission.

    reach   the external resources in a component's values, and those that are allowed: the user's list, the model's
            own folder, and what the user's own commands made on this machine
    guard   configs that refuse to build with resources that are not allowed; resources that a recipe names

An unused component is no reason to refuse a model: the refusal comes when the component would be built.
"""

from cm3run.trust.guard import (
    guard,
    guard_layer,
    named_by_user,
    refuse_outside,
    refused_by,
    same_guard,
    unguarded_class,
)
from cm3run.trust.reach import (
    Trust,
    address_of,
    check_links,
    is_download,
    own_of,
    reaches_of,
    record_own,
    refusal,
    target_of,
    trust_of,
)

__all__ = [
    "Trust",
    "address_of",
    "check_links",
    "guard",
    "guard_layer",
    "is_download",
    "named_by_user",
    "own_of",
    "reaches_of",
    "record_own",
    "refusal",
    "refuse_outside",
    "refused_by",
    "same_guard",
    "target_of",
    "trust_of",
    "unguarded_class",
]
