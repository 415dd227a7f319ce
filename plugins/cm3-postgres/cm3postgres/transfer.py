"""Copy whole banks into a memory in PostgreSQL, and a memory into a bank."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from cm3core.errors import DataError, FileError
from cm3core.files import (
    check_writable,
    make_folder,
    new_place,
    read_text,
    sync_directory,
    user_path,
    write_text,
)
from cm3core.interfaces.dataset import Provenance
from cm3core.interfaces.image_tokenizer import IMAGE_TOKENIZER
from cm3postgres.memory import AT_ONCE, AddReport, Filter, SharedMemory
from cm3postgres.schema import READ, About, formatted, stored
from cm3run.bank import MemoryBank
from cm3run.bank.shard import SHARDS, write_shard
from cm3run.json_text import StoredName, check_form, parse_json
from cm3run.progress import make_bar

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3postgres.options import ConnectionOptions
    from cm3postgres.pool import Connection
    from cm3run.bank.manifest import ShardInfo
    from cm3run.bank.shard import BankDocument

#: A file of pulled banks, which `push` reads. Each line is {"id": ..., "licence": ..., "source": ...,
#: "attribution": ..., "style": ...}.
METADATA = "metadata.jsonl"


class _Metadata(TypedDict):
    """A line of `METADATA`."""

    id: StoredName
    licence: str
    source: str
    attribution: str
    style: str


#: Size limit of image tokenizers: a database value is limited to 1 GB.
_MOST_BYTES = 512 << 20


def new_memory(options: ConnectionOptions, bank: MemoryBank) -> SharedMemory:
    """Create an empty memory for documents with a bank's embedder and image tokenizer.

    Raises:
        DataError: the image tokenizer's files are too large, or the vectors too long.
        DatabaseError: see `schema.create`.
    """
    folder = bank.folder / IMAGE_TOKENIZER
    paths = (
        [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() else []
    )
    size = sum(path.stat().st_size for path in paths)
    if size > _MOST_BYTES:
        raise DataError(
            str(folder),
            f"has {size / 1e6:,.0f} MB, but a database stores at most {_MOST_BYTES / 1e6:,.0f} MB of it",
            "use an image tokenizer that is bundled or has no files",
        )
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return SharedMemory.create(options, bank.manifest, files)


def push(
    bank: MemoryBank,
    memory: SharedMemory,
    about: Callable[[str], About],
    *,
    replace: bool = False,
    skip_duplicates: bool = False,
    progress: bool = True,
) -> AddReport:
    """Add all documents of a bank. After an interruption, call it again: existing documents are skipped.

    Args:
        bank, memory: must have the same embedder and image tokenizer.
        about: licence, source and style of a document, by its id.
        replace, skip_duplicates: see `SharedMemory.add`.
        progress: show a progress bar.

    Raises:
        DataError: embedder or image tokenizer differ, an id exists with another content, or a document is
            damaged.
        DatabaseError: the server can't be reached or rejects a statement.
    """
    for kind, ours, theirs in (
        ("embedder", memory.manifest.embedder, bank.manifest.embedder),
        ("image tokenizer", memory.manifest.image_tokenizer, bank.manifest.image_tokenizer),
    ):
        if ours.fingerprint != theirs.fingerprint:
            raise DataError(
                bank.place,
                f"was built with another {kind} ({theirs.name!r}, fingerprint "
                f"{theirs.fingerprint[-12:]}) than {memory.place} ({ours.name!r}, "
                f"{ours.fingerprint[-12:]})",
                "build the bank with the memory's, or create another memory: cm3 postgres init",
            )

    def documents() -> Iterator[tuple[BankDocument, About]]:
        for shard in bank.shards:
            shard.check_vectors()
            for one in shard.documents(range(len(shard))):
                yield one, about(one.id)

    report = AddReport()
    with make_bar(
        total=len(bank), desc="pushing", unit="document", disable=None if progress else True
    ) as bar:
        for part in memory.add(documents(), replace=replace, skip_duplicates=skip_duplicates):
            report += part
            bar.update(part.num_added + part.num_replaced + part.num_there)
    if report.num_added or report.num_replaced:
        # the plan depends on how many documents match a filter; the server counts them by itself only
        # a minute later, or never
        analyze = formatted("ANALYZE {s}.documents", memory.database.options.schema)
        memory.database.run(lambda connection: connection.execute(analyze), limited=False)
    return report


def pull(
    memory: SharedMemory,
    out: str | Path,
    chosen: Filter | None = None,
    *,
    shard_size: int,
    progress: bool = True,
) -> MemoryBank:
    """Write a new bank from a snapshot of a memory's documents, in the order of their numbers.

    Args:
        memory: the memory; not changed.
        out: a new folder, which appears once it is complete.
        chosen: the filter; None: all documents.
        shard_size: documents per shard.
        progress: show a progress bar.

    Raises:
        DataError: no document matches, one is damaged, or `out` exists.
        DatabaseError: the server can't be reached, or the connection is lost.
        FileError: the disk is full.
    """
    target, chosen = user_path(out), chosen or Filter()
    if target.exists():
        raise DataError(str(target), "already exists", "choose a new folder")
    check_writable(target, folder=True)
    files = memory.tokenizer_files()
    try:
        with new_place(target) as temporary:
            make_folder(temporary / SHARDS)
            shards = memory.database.run(
                lambda connection: _pulled(
                    connection, memory, temporary, chosen, shard_size, progress
                ),
                limited=False,
            )
            if not shards:
                raise DataError(memory.place, "has no matching document", "push a bank first")
            for name, content in files.items():
                path = (temporary / IMAGE_TOKENIZER / name).resolve()
                if not path.is_relative_to((temporary / IMAGE_TOKENIZER).resolve()):
                    step = "remove it from the table"
                    raise DataError(memory.place, f"lists {name!r}, outside its folder", step)
                make_folder(path.parent)
                path.write_bytes(content)
            memory.manifest.with_shards(tuple(shards)).write(temporary)
            temporary.rename(target)
            sync_directory(target.parent)
    except (OSError, FileError) as error:
        # a shard's error contains the temporary folder
        reason = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(reason, OSError):
            raise
        raise FileError(
            str(target),
            f"can't be written ({reason.strerror or reason})",
            "free space on that disk",
        ) from error
    return MemoryBank.open(target)


def _pulled(
    connection: Connection,
    memory: SharedMemory,
    folder: Path,
    chosen: Filter,
    shard_size: int,
    progress: bool,
) -> list[ShardInfo]:
    """Yield shards and metadata of the documents, read with a server-side cursor."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    schema = memory.database.options.schema
    counted: Any = connection.execute(
        formatted(f"SELECT count(*) FROM {{s}}.documents WHERE {chosen.condition}", schema),
        chosen.values,
    ).fetchone()
    lines: list[str] = []
    shards = []
    with (
        make_bar(
            total=counted[0], desc="pulling", unit="document", disable=None if progress else True
        ) as bar,
        connection.cursor("cm3_pull", binary=True) as cursor,
    ):
        cursor.itersize = AT_ONCE
        cursor.execute(
            formatted(
                f"SELECT licence, source, attribution, style, {READ} FROM {{s}}.documents "
                f"WHERE {chosen.condition} ORDER BY number",
                schema,
            ),
            chosen.values,
        )

        def documents() -> Iterator[BankDocument]:
            for row in cursor:
                one = stored(row[4:], memory.manifest, memory.place).document
                about: tuple[Any, ...] = row[:4]
                licence, source, attribution, style = about
                told = Provenance(licence, source, attribution).stated() | {"id": one.id}
                line = told | {"style": style}
                place, step = (
                    f"{memory.place}, document {one.id!r}",
                    "remove it: cm3 postgres remove",
                )
                check_form(line, _Metadata, place, step)
                lines.append(json.dumps(line))
                bar.update()
                yield one

        waiting = documents()
        while True:
            info = write_shard(folder, islice(waiting, shard_size), memory.manifest)
            if info is None:
                break
            shards.append(info)
    write_text(folder / METADATA, "".join(f"{line}\n" for line in lines))
    return shards


def abouts_of(source: DocumentSource, id_prefix: str = "") -> dict[str, About]:
    """Return licence, source and style of a data set's documents, by id. The style is the record's field `style`,
    if it has one."""
    found = {}
    for index in range(len(source)):
        style = source.record(index).get("style", "")
        found[id_prefix + source.id(index)] = About(
            source.provenance(index), style if isinstance(style, str) else ""
        )
    return found


def read_metadata(path: Path) -> dict[str, About]:
    """Read the `METADATA` of a bank, by id; empty if there is no such file.

    Raises:
        DataError: a line is damaged.
    """
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"can't be read ({error})", "pull the bank again") from error
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            values = parse_json(line, f"{path}:{number}", form=_Metadata)
        except DataError as error:
            raise DataError(
                error.place,
                f"is damaged ({error.cause})",
                "pull the bank again, or remove the file",
            ) from error
        told = Provenance(values["licence"], values["source"], values["attribution"])
        found[values["id"]] = About(told, values["style"])
    return found
