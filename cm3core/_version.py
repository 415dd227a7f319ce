"""The package's version, and the plugin API's."""

__version__ = "0.1.0"

#: Version of the plugin API. A plugin states the version it was written for in its own `CM3_API`.
CM3_API = 1

#: The oldest supported plugin API: its plugins work, with a note that they must be updated.
OLDEST_CM3_API = 1

#: The distribution that holds this package, its recipes and the bundled plugins.
DISTRIBUTION = "cm3leon"

#: Distributions made and released together with it -> their folders in the checkout. A component may move from one to
#: another.
BESIDE = {
    "cm3icons": "plugins/cm3-icons",
    "cm3lab": "plugins/cm3-lab",
    "cm3postgres": "plugins/cm3-postgres",
    "cm3published": "plugins/cm3-published",
    "cm3serve": "plugins/cm3-serve",
    "cm3titan": "plugins/cm3-titan",
}

#: This distribution and those released with it.
OUR_DISTRIBUTIONS = (DISTRIBUTION, *BESIDE)

#: Metadata key that names the writing program, and how its value begins.
SOFTWARE, PROGRAM = "software", "cm3leon "
#: This program and its version.
THIS_PROGRAM = f"{PROGRAM}{__version__}"


def how_to_install(distribution: str) -> str:
    """Return the command that installs a distribution. Ours are not on an index, but in the checkout's folder
    `plugins`."""
    if distribution in BESIDE:
        return f"pip install ./{BESIDE[distribution]}, in the checkout of cm3leon"
    return f"pip install {distribution}"
