"""The package's version, and the plugin API's."""

__version__ = "0.1.0"

#: Version of the plugin API. A plugin states the one it was written for in its own `CM3_API`.
CM3_API = 1

#: The oldest plugin API that is still served: plugins of it work, and a line says that they must be
#: updated.
OLDEST_CM3_API = 1

#: The distribution that holds this package, its recipes and the bundled plugins.
DISTRIBUTION = "cm3leon"

#: Those beside it that are made and released with it -> their folders in the checkout. A component may move from one to
#: another.
BESIDE = {
    "cm3lab": "plugins/cm3-lab",
    "cm3postgres": "plugins/cm3-postgres",
    "cm3published": "plugins/cm3-published",
}

#: This distribution, and those beside it.
OUR_DISTRIBUTIONS = (DISTRIBUTION, *BESIDE)

#: What a file says that this program wrote, and how it begins.
SOFTWARE, PROGRAM = "software", "cm3leon "
#: This program and its version.
THIS_PROGRAM = f"{PROGRAM}{__version__}"


def how_to_install(distribution: str) -> str:
    """Return the command that installs a distribution. Ours are not on an index: they are in the checkout's folder
    `plugins`."""
    if distribution in BESIDE:
        return f"pip install ./{BESIDE[distribution]}, in the checkout of cm3leon"
    return f"pip install {distribution}"
