"""Conformance kit of kind `dataset`.

    class TestMine(DocumentSourceContract):
        config = MySourceConfig(path="tests/pictures")

The source must have at least one document; one with bad records as well is a better test.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from cm3core.document import Codes, Image, Text, content_keys, is_conversation
from cm3core.errors import CM3Error, DataError, TokenizerError
from cm3core.images import open_image
from cm3core.interfaces.dataset import FOLDER, DocumentSource, DocumentSourceConfig
from cm3core.interfaces.task import TaskConfig
from cm3core.interfaces.text_tokenizer import TextTokenizerConfig
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import every, holds, refuses, same, shown
from cm3kits._module_laws import Outputs
from cm3kits._work import check_constant, work_of
from cm3run.xml_text import parse_xml

#: Maximum number of documents checked by laws that check all.
_MOST = 256


class DocumentSourceContract(ConfigLaws[DocumentSource]):
    """Laws of a data set."""

    kind: ClassVar[str] = "dataset"

    def build(self, config: Any) -> DocumentSource:
        """See `DocumentSourceConfig.build`."""
        source: DocumentSource = config.build()
        return source

    def observe(self, component: DocumentSource) -> Outputs:
        """Return ids, texts and pictures of the first documents, and their other properties."""
        few = range(min(len(component), 48))
        pictures = []
        for index in few[:12]:
            for segment in component.document(index):
                if isinstance(segment, Image):
                    pictures.append([segment.key, segment.load()])
                elif isinstance(segment, Codes):
                    pictures.append(["codes", segment.codes])
        return {
            "number of documents": len(component),
            "ids": _ids(component)[:_MOST],
            "pictures": pictures,
            "texts": [_told(component, index, None) for index in few],
            "texts with a generator": [
                _told(component, index, np.random.default_rng(index)) for index in few
            ],
            "groups": [component.group(index) for index in few],
            "provenance": [str(component.provenance(index)) for index in few],
            "records": [_record(component, index) for index in few[:12]],
            "skipped records": [f"{one.place}: {one.cause}" for one in component.skipped[:_MOST]],
            "training order": _orders(component),
        }

    def fingerprints(self, component: DocumentSource) -> dict[str, tuple[str, tuple[str, ...]]]:
        """`fingerprint` identifies ids and pictures; `content_fingerprint` and `quick_fingerprint` also texts."""
        held = ("number of documents", "ids", "pictures")
        found = {
            "fingerprint": (component.fingerprint, held),
            "content_fingerprint": (component.content_fingerprint, (*held, "texts")),
        }
        if (quick := component.quick_fingerprint) is not None:
            found["quick_fingerprint"] = (quick, (*held, "texts"))
        return found

    def declared(self, component: DocumentSource) -> Iterator[tuple[str, bool, str, Any]]:
        """Hashes, instructions, collections, and what the config says of tasks, files and the memory."""
        name = component.documents_fingerprint
        yield "documents_fingerprint", isinstance(name, str) and bool(name), "a text", name
        for title, counts in component.instructions().items():
            good = counts is None or all(
                isinstance(words, str) and type(count) is int and count > 0
                for words, count in counts.items()
            )
            wanted = "texts with their numbers of documents, or None"
            yield f"instructions()[{title!r}]", isinstance(title, str) and good, wanted, counts
        folder = component.text_tokenizer_folder("none", TextTokenizerConfig())
        wanted = "None, for a tokenizer that encoded nothing"
        yield "text_tokenizer_folder", folder is None, wanted, folder
        if self.config is None:
            return
        yield from _declared_by(self.config)
        some = range(min(len(component), _MOST))
        turns, stated = (
            any(is_conversation(component.document(i)) for i in some),
            self.config.has_turns,
        )
        known = (
            turns or len(component) <= _MOST
        )  # of a longer one, the part with turns may come later
        wanted = "True if documents have segments that start a turn, otherwise False"
        yield "has_turns of the config", stated == turns or not known, wanted, stated

    def law_records_have_the_stated_fields(self) -> None:
        """Every record has the fields that the config's `record_fields` names, by which tasks are checked."""
        fields = None if self.config is None else self.config.record_fields()
        for index in range(min(len(self.subject), 12) if fields is not None else 0):
            found = self.subject.record(index)
            lacks = [field for field in fields or () if field not in found]
            holds(not lacks, f"read record {index}", ", ".join(fields or ()), ", ".join(found))

    def law_a_document_costs_what_it_holds(self) -> None:
        """The work of reading a document does not grow with its index: none before it is read."""
        count = min(len(self.subject), 64)
        for index in range(count):
            self.subject.document(index)  # what is read once may be kept
        places = range(0, len(self.subject), max(1, len(self.subject) // 64))
        works = {index: work_of(partial(self.subject.document, index)) for index in places}
        check_constant(works, "index", "read a document", len(self.subject))

    def law_parts_and_provenances_are_those_of_the_documents(self) -> None:
        """`part` is an index into `parts`, and 0 without; `provenances` counts the documents of each `provenance`."""
        source = self.subject
        few = range(min(len(source), _MOST))
        most = max(len(source.parts), 1)
        for index in few:
            part, did = (
                source.part(index),
                f"looked at part({index}), with parts {list(source.parts)}",
            )
            holds(0 <= part < most, did, f"a number below {most}", part)
        if len(source) <= _MOST:
            counted = Counter(source.provenance(index).shared for index in few)
            found = dict(source.provenances())
            told = {str(one): number for one, number in counted.items()}
            did = "counted the documents of each provenance, and compared provenances()"
            same({str(one): number for one, number in found.items()}, told, did)

    def law_epochs_name_documents(self, data: st.DataObject) -> None:
        """`epoch_order` and `stream_order` are None, or arrays int64 of indices of documents, the same for the same
        arguments; all streams have equally many documents, none twice."""
        source, seed = self.subject, data.draw(st.integers(0, 9), label="seed")
        epoch = data.draw(st.integers(0, 3), label="epoch")
        order, did = source.epoch_order(seed, epoch), f"asked for epoch_order({seed}, {epoch})"
        if order is not None:
            good = (order >= 0) & (order < len(source))
            every(order, good, did, f"indices of the {len(source)} documents")
            same(source.epoch_order(seed, epoch), order, f"{did} twice")
        num = data.draw(st.integers(1, 3), label="streams")
        streams = [source.stream_order(seed, epoch, place, num) for place in range(num)]
        did = f"asked for stream_order of {num} streams"
        given = [one for one in streams if one is not None]
        holds(len(given) in (0, num), did, "an order for each, or for none", f"{len(given)} orders")
        for one in given:
            every(
                one,
                (one >= 0) & (one < len(source)),
                did,
                f"indices of the {len(source)} documents",
            )
            same(len(one), len(given[0]), f"{did}, and counted the documents of each")
        whole = np.concatenate(given) if given else np.zeros(0, np.int64)
        same(len(set(whole.tolist())), len(whole), f"{did}, and counted different documents")

    def law_what_it_says_of_documents_is_so(self) -> None:
        """`is_encoded`: all pictures are codes, and other tokenizers are refused; `retrieves` and `is_withheld` are truth
        values; `query` has segments; `text_alternatives` has one entry for each drawn text; `collection` is a text; `truth`
        has JSON values, the same each time."""
        source = self.subject
        if source.is_encoded:
            refuses(
                lambda: source.check_tokenizers("none", "none"),
                "with is_encoded, called check_tokenizers with fingerprints of other tokenizers",
                TokenizerError,
            )
        holds(isinstance(source.is_far, bool), "looked at is_far", "True or False", source.is_far)
        for index in range(min(len(source), 24)):
            answer, did = source.retrieves(index), f"looked at document {index}: "
            holds(isinstance(answer, bool), f"{did}retrieves", "True or False", answer)
            withheld, collection = source.is_withheld(index), source.collection(index)
            holds(isinstance(withheld, bool), f"{did}is_withheld", "True or False", withheld)
            holds(isinstance(collection, str), f"{did}collection", "a text", collection)
            truth = source.truth(index)
            holds(_is_json(truth), f"{did}truth", "an object of JSON values", shown(truth))
            same(source.truth(index), truth, f"{did}truth twice")
            holds(len(source.query(index)), f"{did}query", "at least one segment", "none")
            if source.is_encoded:
                pictures = [one for one in source.document(index) if isinstance(one, Image)]
                holds(
                    not pictures,
                    f"{did}with is_encoded",
                    "codes, no pictures",
                    f"{len(pictures)} pictures",
                )
            choices = source.text_alternatives(index)
            texts = [text for one in choices or () for text in one]
            good = all(isinstance(text, str) for text in texts) and all(choices or ())
            holds(good, f"{did}text_alternatives", "texts, at least one each", shown(choices))

    def law_ids_are_unique_and_stable(self) -> None:
        """Every document has a unique id, the same in a new source of the same config."""
        ids, did = _ids(self.subject), "looked at the ids of all documents"
        holds(ids, did, "at least one document", "none")
        for place, name in enumerate(ids):
            holds(isinstance(name, str) and name, did, "texts", name, where=f"document {place}")
        twice = (
            sorted({name for name in ids if ids.count(name) > 1})
            if len(set(ids)) < len(ids)
            else []
        )
        holds(not twice, did, "each once", f"{twice[:4]} several times")
        same(_ids(self.make_again()), ids, "looked at the ids of two sources of one config")

    def law_ids_are_the_same_in_every_split(self) -> None:
        """An id names the same document in every split; the split of all has the ids of each."""
        splits = self._splits()
        held: dict[str, tuple[str, Any]] = {}
        for split, source in splits.items():
            for index in range(min(len(source), _MOST)):
                name, content = source.id(index), _content(source, index)
                other, known = held.setdefault(name, (split, content))
                holds(
                    known == content,
                    f"read the splits {other!r} and {split!r}, and looked for the id {name!r}",
                    "the same document in both",
                    f"{shown(known)} in {other!r}, {shown(content)} in {split!r}",
                    next_step="derive ids from a document's files (a path, a key), not from its position "
                    "in a split",
                )
        if (whole := splits.get("all")) is None:
            return
        everything = set(_ids(whole))
        for split, source in splits.items():
            strange = sorted(set(_ids(source)) - everything)
            holds(
                not strange,
                f"read the splits {split!r} and 'all'",
                f"the ids of {split!r} in 'all' too",
                f"{len(strange)} others, such as {strange[:3]}",
                next_step="keep the split out of ids",
            )

    def _splits(self) -> dict[str, DocumentSource]:
        """Return the source of each split that has documents."""
        found: dict[str, DocumentSource] = {}
        config = self.config
        names = () if config is None else type(config).splits
        for split in names if len(names) > 1 else ():
            own = copy.copy(self)
            own.config = dataclasses.replace(config, split=split)  # type: ignore[misc]  # its own
            try:
                with self.building():
                    own.config.check()
                    found[split] = own.build(own.config)
            except CM3Error:
                continue  # no documents in it
        return found

    def law_what_is_judged_are_its_splits(self) -> None:
        """Results that are judged have different names, and come from splits of the data set, as their documents do."""
        judged = self.config.judged() if self.config is not None else []
        names = [one.name for one in judged]
        same(sorted(set(names)), sorted(names), "asked for judged(), and looked at the names")
        for one in judged:
            for split in {one.split, one.memory_split} - {None}:
                holds(
                    split in type(self.config).splits,
                    f"asked for judged(), and looked at {one.name!r}",
                    f"one of the splits {', '.join(type(self.config).splits)}",
                    split,
                )

    def law_fingerprint_is_stable(self) -> None:
        """Sources of the same data have the same, non-empty fingerprint."""
        first = self.subject.fingerprint
        holds(first, "looked at its fingerprint", "a text", first)
        again = self.make_again().fingerprint
        same(again, first, "looked at the fingerprints of two sources of one config")

    def law_the_original_is_a_picture_file(self, data: st.DataObject) -> None:
        """The original is None or a picture file, an SVG or a supported format, and the same every time."""
        index = self._draw_index(data)
        original, did = self.subject.original(index), f"asked for original({index})"
        holds(self.subject.original(index) == original, f"{did} twice", "the same", "another one")
        if original is None:
            return
        good = re.fullmatch(r"\.[a-z0-9]{1,8}", original.suffix)
        holds(good, f"{did}: its suffix", "a dot, lower-case letters and digits", original.suffix)
        if original.suffix == ".svg":
            tag = parse_xml(original.content, public_type=True).tag
            same(tag, "{http://www.w3.org/2000/svg}svg", f"{did}, and read the SVG's root")
        else:
            size = open_image(original.content, self.subject.id(index)).size
            holds(size, f"{did}, and opened it", "a picture", size)

    def law_documents_are_texts_and_pictures(self, data: st.DataObject) -> None:
        """Documents are not empty; texts are non-blank, valid Unicode; pictures have keys or complete codes."""
        index = self._draw_index(data)
        document = self.subject.document(index, _draw_rng(data))
        did = f"read document {index}"
        holds(isinstance(document, tuple) and document, did, "a tuple of segments", document)
        for place, segment in enumerate(document):
            at = f"segment {place}"
            known = isinstance(segment, (Text, Image, Codes))
            holds(known, did, "Text, Image or Codes", type(segment).__name__, where=at)
            if isinstance(segment, Text):
                good = segment.text.strip() and _is_unicode(segment.text)
                holds(good, did, "a text with a letter, of valid Unicode", segment.text, where=at)
            elif isinstance(segment, Image):
                holds(segment.key, did, "a key of the picture", segment.key, where=at)
            elif isinstance(segment, Codes):
                rows, columns = segment.grid
                codes = segment.codes
                good = codes.dtype == np.int32 and codes.shape == (rows * columns,)
                holds(good, did, f"codes int32 [{rows * columns}]", codes, where=at)
                holds(codes.min() >= 0, did, "codes of 0 or more", int(codes.min()), where=at)
                holds(segment.missing is None, did, "no missing codes", "some", where=at)

    def law_content_keys_name_the_document(self, data: st.DataObject) -> None:
        """Content keys are stable and include those of the canonical document."""
        index = self._draw_index(data)
        keys, did = self.subject.content_keys(index), f"looked at content_keys({index})"
        wanted = content_keys(self.subject.document(index))
        holds(
            keys >= wanted,
            did,
            f"the document's keys: {sorted(wanted)}",
            sorted(keys),
            next_step="add yours to cm3core.document.content_keys(document)",
        )
        same(sorted(self.make_again().content_keys(index)), sorted(keys), f"{did} of two sources")

    def law_without_a_generator_it_is_canonical(self, data: st.DataObject) -> None:
        """Without `rng`, a document is always the same, also in a new source of the same config."""
        index = self._draw_index(data)
        canonical = self.subject.document(index)
        self.subject.document(self._draw_index(data), np.random.default_rng(0))
        did = f"read document {index} without a generator"
        same(
            self.subject.document(index),
            canonical,
            f"{did} twice, and one with a generator between",
        )
        same(self.make_again().document(index), canonical, f"{did} of two sources")

    def law_a_generator_decides_the_document(self, data: st.DataObject) -> None:
        """Equal generators give equal documents; only texts may differ from the canonical ones."""
        index, seed = self._draw_index(data), data.draw(st.integers(0, 2**32 - 1))
        first, second = (
            self.subject.document(index, np.random.default_rng(seed)) for _ in range(2)
        )
        did = f"read document {index} with default_rng({seed})"
        same(second, first, f"{did} twice")
        canonical = self.subject.document(index)
        same(
            [_kind_or_key(segment) for segment in first],
            [_kind_or_key(segment) for segment in canonical],
            f"{did} and without, and compared sorts of segments and keys of pictures",
        )

    def law_pictures_load(self, data: st.DataObject) -> None:
        """A picture is uint8 [height, width, 3], the same on each load, even if changed."""
        index = self._draw_index(data)
        pictures = [
            segment for segment in self.subject.document(index) if isinstance(segment, Image)
        ]
        for picture in pictures:
            pixels, did = picture.load(), f"loaded a picture of document {index}"
            good = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
            holds(good and pixels.size, did, "uint8 [height, width, 3]", pixels)
            kept = pixels.copy()
            if pixels.flags.writeable:
                pixels[:] = 255 - pixels
            again = picture.load()
            same(again, kept, f"{did}, wrote to its pixels, and loaded it again", next_step=_COPY)

    def law_real_pictures_to_compare_with_load(self) -> None:
        """`alternatives` and `copies` are None, or name pictures that load as uint8 [size, size, 3]; alternatives are at most
        as many as asked for, under different names."""
        size, num = 16, 3
        for index in range(min(len(self.subject), 4)):
            among = self.subject.alternatives(index, size, num)
            copied = self.subject.copies(index, size)
            names = [name for name, _ in among or ()]
            did = f"looked at alternatives({index}, {size}, {num})"
            good = among is None or (0 < len(names) <= num and len({*names}) == len(names))
            holds(good, did, f"None, or 1 to {num} different names", shown(names))
            for what, named in (("alternatives", among), ("copies", (copied or {}).items())):
                for name, load in named or ():
                    pixels, did = load(), f"loaded {name!r} of {what} of document {index}"
                    good = pixels.dtype == np.uint8 and pixels.shape == (size, size, 3)
                    holds(good, did, f"uint8 [{size}, {size}, 3]", pixels)

    def law_equal_keys_are_equal_pictures(self) -> None:
        """Two pictures share a key only if they share all pixels."""
        first: dict[str, Image] = {}
        for index, segment in self._segments(self.subject):
            if isinstance(segment, Image):
                known = first.setdefault(segment.key, segment)
                if known is not segment:
                    did = f"loaded two pictures of the key {segment.key!r}, one of document {index}"
                    same(segment.load(), known.load(), did)

    def law_texts_hold_every_canonical_text(self) -> None:
        """`texts` includes every canonical text, for training tokenizers."""
        texts = "\n".join(self.subject.texts())
        for index, segment in self._segments(self.subject):
            if isinstance(segment, Text):
                holds(
                    segment.text in texts,
                    f"looked for the text of document {index} in texts()",
                    repr(segment.text),
                    "none of this text",
                )

    def law_groups_are_names(self, data: st.DataObject) -> None:
        """A group is a string, "" for none, and stable."""
        index = self._draw_index(data)
        group, did = self.subject.group(index), f"looked at group({index})"
        holds(isinstance(group, str), did, 'a text, "" for none', group)
        same(self.subject.group(index), group, f"{did} twice")

    def law_skipped_records_say_why(self) -> None:
        """Bad records don't raise: each is listed with place, cause and next step."""
        for place, record in enumerate(self.subject.skipped):
            for name in ("place", "cause", "next_step"):
                part = getattr(record, name)
                did = f"looked at the {name} of skipped[{place}]"
                holds(isinstance(part, str) and part, did, "a text", part)

    def law_an_index_outside_is_refused(self) -> None:
        """Document -1 and documents after the last raise an error."""
        count = len(self.subject)
        for index in (-1, count):
            refuses(
                lambda index=index: self.subject.document(index),  # type: ignore[misc]  # a default
                f"read document {index} of {count}",
                DataError,
                match=f"^document {index}: the data set has {count}",
            )

    def _segments(self, source: DocumentSource) -> Iterator[tuple[int, object]]:
        """Yield the segments of the first canonical documents, with the documents' indices."""
        for index in range(min(len(source), _MOST)):
            for segment in source.document(index):
                yield index, segment

    def _draw_index(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, len(self.subject) - 1))


def _declared_by(config: DocumentSourceConfig) -> Iterator[tuple[str, bool, str, Any]]:
    """Yield what a config declares; see `DatasetContract.declared`."""
    cls = type(config)
    good = all(one == FOLDER or re.fullmatch(r"\.[^A-Z/]+", one) for one in cls.reads)
    yield (
        "reads",
        good,
        f"file extensions in lower case, such as '.jsonl', or {FOLDER!r}",
        cls.reads,
    )
    shards = cls.reads_token_shards
    yield "reads_token_shards", isinstance(shards, bool), "True or False", shards
    tasks = config.trained_tasks()
    good = bool(tasks) and all(one is None or isinstance(one, TaskConfig) for one in tasks)
    yield "trained_tasks()", good, "at least one task's config, or None for plain documents", tasks
    some = config.retrieving_tasks()
    yield "retrieving_tasks()", all(one in tasks for one in some), f"some of {tasks}", some
    memory = config.memory_config()
    good = isinstance(memory, DocumentSourceConfig)
    yield "memory_config()", good, "a data set's config", type(memory).__name__


def _draw_rng(data: st.DataObject) -> np.random.Generator | None:
    seed = data.draw(st.none() | st.integers(0, 2**32 - 1))
    return None if seed is None else np.random.default_rng(seed)


def _is_json(value: object) -> bool:
    """Whether a mapping comes back from JSON as it was."""
    try:
        return isinstance(value, Mapping) and bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _ids(source: DocumentSource) -> list[str]:
    return [source.id(index) for index in range(len(source))]


def _kind_or_key(segment: object) -> str | type:
    return segment.key if isinstance(segment, Image) else type(segment)


#: Next step if a caller changed a loaded picture's pixels.
_COPY = "return a copy, or a read-only array"


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _content(source: DocumentSource, index: int) -> tuple[list[str], str]:
    """Return a document's content without its id: keys of its pictures, and its texts."""
    document = source.document(index)
    pictures = [segment.key for segment in document if isinstance(segment, Image)]
    return pictures, _told(source, index, None)


def _told(source: DocumentSource, index: int, rng: np.random.Generator | None) -> str:
    """Return a document's texts, with the positions of its pictures."""
    return " | ".join(
        segment.text if isinstance(segment, Text) else type(segment).__name__
        for segment in source.document(index, rng)
    )


def _record(source: DocumentSource, index: int) -> dict[str, str]:
    """Describe a document's fields."""
    return {
        name: value.key if isinstance(value, Image) else shown(value)
        for name, value in source.record(index).items()
    }


def _orders(source: DocumentSource) -> list[str]:
    """Return the orders of two epochs."""
    return [
        "random" if (order := source.epoch_order(1, epoch)) is None else str(order[:_MOST].tolist())
        for epoch in range(2)
    ]
