"""What a component reaches outside of the model that it belongs to: hosts, credentials, paths.

A config class declares it for each key that holds a text (`ComponentConfig.outside`), and a model that is
not the user's own is used only as far as the user allows what its keys name. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: How a key reaches outside: a file or folder is read, or written; a host or an address is connected to;
#: credentials of the user are used.
READS: Final = "reads"
WRITES: Final = "writes"
CONNECTS: Final = "connects to"
CREDENTIALS: Final = "uses the credentials of"
#: What a key does that nobody declared, and whose value looks like a path or an address.
UNDECLARED: Final = "may use"


@dataclass(frozen=True)
class Outside:
    """How a key of a config reaches outside.

    Args:
        how: `READS`, `WRITES`, `CONNECTS` or `CREDENTIALS`; "": not at all, the key holds a text.
        why: what for, the end of a sentence: "its pictures".
        shipped: prefix of values that name a file of the plugin itself, such as "bundled:"; "": there are
            none.
    """

    how: str
    why: str = ""
    shipped: str = ""


#: Declares a key that holds words, patterns, or names of parts: nothing outside.
TEXT: Final = Outside("")


@dataclass(frozen=True)
class Reach:
    """One thing outside that a component's values name.

    Args:
        how: `READS`, `WRITES`, `CONNECTS`, `CREDENTIALS` or `UNDECLARED`.
        target: an absolute path, an address ("s3://bucket/folder"), a host with its port
            ("db.example:5432"), or a name ("libpq").
        key: where it is named, dotted, in the component's section ("parts.words.bank").
        why: what for.
        value: the text that the key holds; "" for what is used where the key is left out.
    """

    how: str
    target: str
    key: str
    why: str = ""
    value: str = ""
