"""Who is to be named for a picture: the documents that were in front when it was drawn, with their licences, written
into its file and read from there.

A file of a generated picture is made in `writing` alone, by `png`, `encoded` and `svg`, and each takes `PictureFacts`,
which name the documents: no licence's attribution can be left out. What is written:

    PNG           text chunks (prompt, seed, ... and `documents`, JSON), and an XMP packet
    JPEG, WebP    the XMP packet, with the chunks as JSON in it
    SVG           <metadata>, RDF in Dublin Core's and Creative Commons' terms, with the chunks as JSON in it
"""

from cm3run.attribution.credits import (
    Credit,
    PictureFacts,
    credit_in,
    nearest,
    together,
    told_copy,
)
from cm3run.attribution.reading import FileFacts, facts_in, facts_in_zip, facts_of_file, is_zip
from cm3run.attribution.writing import encoded, licences_text, original_files, png, svg, xmp

__all__ = [
    "Credit",
    "FileFacts",
    "PictureFacts",
    "credit_in",
    "encoded",
    "facts_in",
    "facts_in_zip",
    "facts_of_file",
    "is_zip",
    "licences_text",
    "nearest",
    "original_files",
    "png",
    "svg",
    "together",
    "told_copy",
    "xmp",
]
