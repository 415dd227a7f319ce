"""The package's version, and the plugin API's."""

__version__ = "0.1.0"

#: Version of the plugin API. A plugin states the one it was written for in its own `CM3_API`.
CM3_API = 1

#: The oldest plugin API that is still served: plugins of it work, and a line says that they must be
#: updated.
OLDEST_CM3_API = 1

#: The distribution that holds this package, its recipes and the bundled plugins.
DISTRIBUTION = "cm3leon"

#: What a file says that this program wrote, and how it begins.
SOFTWARE, PROGRAM = "software", "cm3leon "


def program() -> str:
    """This program and its version."""
    return f"{PROGRAM}{__version__}"
