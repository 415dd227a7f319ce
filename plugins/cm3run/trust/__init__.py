"""What is not the user's own can name no host, no credentials and no path outside of it that is then used
unasked: models, adapters, banks and the tasks in them come from anybody.

    reach   what a component's values reach outside, and what of that is allowed: the user's list, the model's own folder,
            what the user's own commands made on this machine
    guard   configs that refuse to build what is not allowed; what a recipe names outside

A component that nobody uses is no reason to refuse a model: it is refused when it would be built.
"""

from cm3run.trust.guard import (
    guard,
    named_by_user,
    refuse_outside,
    refused_by,
    same_guard,
    unguarded_class,
)
from cm3run.trust.reach import (
    Trust,
    check_links,
    own_of,
    path_of,
    reaches_of,
    record_own,
    refusal,
    trust_of,
)

__all__ = [
    "Trust",
    "check_links",
    "guard",
    "named_by_user",
    "own_of",
    "path_of",
    "reaches_of",
    "record_own",
    "refusal",
    "refuse_outside",
    "refused_by",
    "same_guard",
    "trust_of",
    "unguarded_class",
]
