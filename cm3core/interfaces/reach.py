"""External resources of a component: hosts, credentials and paths outside its model.

A config class declares them for each text key (`ComponentConfig.outside`). A model that is
not the user's own may use them only as far as the user allows. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: How a key uses an external resource: it reads or writes a file or folder, connects to a host or an address, or
#: uses the user's credentials.
READS: Final = "reads"
WRITES: Final = "writes"
CONNECTS: Final = "connects to"
CREDENTIALS: Final = "uses the credentials of"
#: For an undeclared key whose value looks like a path or an address.
UNDECLARED: Final = "may use"


@dataclass(frozen=True)
class Outside:
    """How a config's key uses external resources.

    Args:
        how: `READS`, `WRITES`, `CONNECTS` or `CREDENTIALS`; "": not at all, the key is ordinary text.
        why: the purpose, worded as the end of a sentence: "its pictures".
        shipped: prefix of values that name a file of the plugin itself, such as "bundled:"; "": there are
            none.
        needed: what to do where the key is null, if the component can't be built without it: "train them with ...".
            "": null is a choice of its own.
    """

    how: str
    why: str = ""
    shipped: str = ""
    needed: str = ""


#: Declares a key for words, patterns, or names of parts: no external resource.
TEXT: Final = Outside("")


@dataclass(frozen=True)
class Reach:
    """An external resource named by a component's values.

    Args:
        how: `READS`, `WRITES`, `CONNECTS`, `CREDENTIALS` or `UNDECLARED`.
        target: an absolute path, an address ("s3://bucket/folder"), a host with its port
            ("db.example:5432"), or a name ("libpq").
        key: where it is named, dotted, in the component's section ("parts.words.bank").
        why: the purpose.
        value: the key's text; "" for a resource that is used when the key is left out.
    """

    how: str
    target: str
    key: str
    why: str = ""
    value: str = ""
