"""Models and data sets in repositories of the Hugging Face Hub: `hf://USER/NAME[@REVISION]`.

    address     the addresses, and the repositories that they name
    client      calls of the package huggingface_hub, whose errors become ours
    download    a repository's files in the package's cache
    upload      a folder's files to a repository

The package is imported when an address is first used, and reads its own environment variables (`HF_HOME`, `HF_TOKEN`,
`HF_ENDPOINT`, `HF_HUB_OFFLINE`).
"""

from cm3run.hub.address import Repo, is_address, repo_of
from cm3run.hub.download import Wanted, contents, downloaded, listed, resolved
from cm3run.hub.upload import check_upload, upload

__all__ = [
    "Repo",
    "Wanted",
    "check_upload",
    "contents",
    "downloaded",
    "is_address",
    "listed",
    "repo_of",
    "resolved",
    "upload",
]
