"""What is not the user's own can name no host, no credentials and no path outside of it that is then used
unasked: models, adapters, banks and the tasks in them come from anybody.

    fields      what a component's values reach outside
    endpoints   what of that is allowed: the user's list, the model's own folder, the user's own runs
    guard       configs that refuse to build what is not allowed
    own         which folders this user's commands made on this machine
    links       links of a model's folder that lead out of it
    recipes     what a recipe names outside, sections without components included

A component that nobody uses is no reason to refuse a model: it is refused when it would be built.
"""

from cm3run.trust.endpoints import Trust, refusal, trust_of
from cm3run.trust.fields import path_of, reaches_of
from cm3run.trust.guard import (
    guard,
    named_by_user,
    refuse_outside,
    refused_by,
    same_guard,
    unguarded_class,
)
from cm3run.trust.links import check_links
from cm3run.trust.own import own_of, record_own

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
