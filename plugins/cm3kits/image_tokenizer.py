"""Conformance kit of image tokenizers: shapes, dtypes, determinism, positions and rules of codes, errors.

class TestMine(ImageTokenizerContract):
    config = MyTokenizerConfig()
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from cm3core.document import Image, IntArray, PixelArray
from cm3core.errors import TokenizerError
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3core.picture_form import MISSING, Filling, PictureForm
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import differ, doing, every, holds, refuses, same
from cm3kits._module_laws import Outputs
from cm3kits.samples import example_pictures
from cm3kits.strategies import images
from cm3run.xml_text import parse_xml

if TYPE_CHECKING:
    from cm3kits._elsewhere import Moving

#: Index of a code -> (row, column).
_Order: TypeAlias = Callable[[int, int, int], tuple[int, int]]
#: Possible wrong orders of codes; the first is raster order. Arguments: index, rows, columns.
_ORDERS: Mapping[str, _Order] = {
    "raster order": lambda place, rows, columns: (place // columns, place % columns),
    "column by column": lambda place, rows, columns: (place % rows, place // rows),
    "rows from right to left": lambda place, rows, columns: (
        place // columns,
        columns - 1 - place % columns,
    ),
    "rows from the bottom up": lambda place, rows, columns: (
        rows - 1 - place // columns,
        place % columns,
    ),
    "backwards": lambda place, rows, columns: (
        rows - 1 - place // columns,
        columns - 1 - place % columns,
    ),
}
#: Maximum number of cells to check.
_MOST_CELLS = 12
#: How much nearer another order must be, since effects that spread over the whole picture support none.
_CLEARLY = 0.7
_UNTRAINED = (
    "check that codes start at 0, and the order of rows and columns in `_encode` and `_decode`; untrained weights "
    "can't satisfy this law: let waive_{} return that reason"
)


def random_codes(
    form: PictureForm, codebook_size: int, number: int, rng: np.random.Generator
) -> IntArray:
    """Draw codes int32 [number, c] that follow the rules of a form, one by one: first a class, uniform over the allowed
    ones, then a code of that class."""
    if form.rules is None:
        return rng.integers(0, codebook_size, (number, form.num_codes), dtype=np.int32)
    members = [
        np.flatnonzero(form.rules.class_of == one) for one in range(form.rules.follows.shape[1])
    ]
    rows = []
    for _ in range(number):
        filling = Filling(form, np.full(form.num_codes, MISSING, np.int32))
        codes: list[int] = []
        while len(codes) < form.num_codes and (not codes or codes[-1] != form.end):
            allowed = np.flatnonzero(filling.allowed(len(codes)))
            codes.append(int(rng.choice(members[int(rng.choice(allowed))])))
            filling.put(len(codes) - 1, codes[-1])
        rows.append(form.padded(np.array(codes, np.int32)))
    return np.stack(rows)


def _shifted(form: PictureForm, codes: IntArray, step: int, codebook_size: int) -> IntArray:
    """Replace each code by its neighbour in the same class of codes."""
    if form.rules is None:
        return (codes + step) % codebook_size
    after = np.arange(codebook_size, dtype=np.int32)
    for one in range(form.rules.follows.shape[1]):
        members = np.flatnonzero(form.rules.class_of == one)
        after[members] = np.roll(members, -step)
    shifted: IntArray = after[codes]
    return shifted


class ImageTokenizerContract(ConfigLaws[ImageTokenizer]):
    """Laws of `ImageTokenizer`. Weights must be set; random ones suffice for all laws but one, which such a
    test waives."""

    kind: ClassVar[str] = "image_tokenizer"
    causes = ("the_first_and_the_last_code_decode",)
    max_examples: ClassVar[int | None] = 5
    #: Share of codes that may depend on the batch. Above 0 for a network alone: its sums, and so which of two equally
    #: near codes is chosen, depend in their last digits on how many pictures are computed together.
    tied_share: ClassVar[float] = 0.0

    def build(self, config: Any) -> ImageTokenizer:
        """See `ImageTokenizerConfig.build`."""
        tokenizer: ImageTokenizer = config.build()
        return tokenizer

    def observe(self, component: ImageTokenizer) -> Outputs:
        """Return codes of pictures, and pictures of codes."""
        form = component.form
        codes = random_codes(form, component.codebook_size, 4, np.random.default_rng(0))
        rules = [] if form.rules is None else [form.rules.fingerprint]
        positions = [] if form.positions is None else [form.positions.fingerprint]
        return {
            "sizes": [*component.image_size, *form.grid, component.codebook_size],
            "form": [form.depth, form.end, *rules, *positions],
            "codes": component.encode(example_pictures(*component.image_size)),
            "pictures of codes": component.decode(codes),
        }

    def declared(self, component: ImageTokenizer) -> Iterator[tuple[str, bool, str, Any]]:
        """Codes of a picture by reference."""
        [pixels, *_] = example_pictures(*component.image_size)
        wanted = component.encode(pixels[None])[0]
        codes = component.encode_image(Image("example", lambda: pixels))
        yield (
            "encode_image of a picture",
            bool((codes == wanted).all()),
            "the codes of encode",
            codes,
        )

    def abilities(self, component: ImageTokenizer) -> Mapping[str, bool]:
        """Vectors of codes, and a grid of codes."""
        return {
            "code_vectors": component.codebook() is not None and component.form.depth == 1,
            "grid": not component.form.is_sequence,
        }

    def _pictures(self, data: st.DataObject, num: int | None = None) -> PixelArray:
        return data.draw(images(num=num, size=self.subject.image_size, writable=False))

    def _codes(self, data: st.DataObject) -> IntArray:
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        return random_codes(self.subject.form, self.subject.codebook_size, 2, rng)

    def law_codes_have_the_stated_shape_and_range(self, data: st.DataObject) -> None:
        """Codes are int32 [N, rows * columns] in 0..codebook_size-1."""
        pictures = self._pictures(data)
        codes = self.subject.encode(pictures)
        rows, columns = self.subject.grid
        did, size = f"encoded {len(pictures)} pictures", self.subject.codebook_size
        holds(
            codes.shape == (len(pictures), rows * columns) and codes.dtype == np.int32,
            did,
            f"int32 [{len(pictures)}, {rows * columns}]",
            codes,
        )
        every(codes, (codes >= 0) & (codes < size), did, f"codes in 0..{size - 1}")

    def law_codes_keep_the_rules_of_their_form(self, data: st.DataObject) -> None:
        """Codes follow the form's rules, for any picture and for pictures decoded from any codes; a sequence ends, and
        repeats its end."""
        tokenizer, form = self.subject, self.subject.form
        same(form.grid, tokenizer.grid, "compared the grid of its form with its own")
        for pictures in (self._pictures(data), tokenizer.decode(self._codes(data))):
            strange = form.strange_place(self._encoded(pictures))
            holds(
                strange is None,
                f"encoded {len(pictures)} pictures",
                f"codes that follow the rules of {form.name}",
                f"a code that breaks them at (picture, place) {strange}",
            )

    def _encoded(self, pictures: PixelArray) -> IntArray:
        """Return codes of pictures without the check in `encode`: the law has its own."""
        return np.asarray(self.subject._encode(np.ascontiguousarray(pictures)), np.int32)

    def works_elsewhere(self, device: Moving) -> Iterator[tuple[str, Callable[[], object]]]:
        """Codes and pictures after `move_to`."""
        tokenizer = self.make_again()
        if type(tokenizer).move_to is ImageTokenizer.move_to:
            return
        pixels = example_pictures(*tokenizer.image_size)[:2]
        codes = tokenizer.encode(pixels)
        tokenizer.move_to(device.device)
        yield "moved it and encoded", lambda: tokenizer.encode(pixels)
        yield "moved it and decoded", lambda: tokenizer.decode(codes)

    def law_it_moves_between_devices(self) -> None:
        """`move_to` takes the device "cpu", and changes no code, no picture and no fingerprint."""
        tokenizer = self.make_again()
        if type(tokenizer).move_to is ImageTokenizer.move_to:
            return  # the default does nothing
        import torch  # here: image tokenizers need none

        pixels = example_pictures(*tokenizer.image_size)[:2]
        codes, fingerprint = tokenizer.encode(pixels), tokenizer.fingerprint
        decoded = tokenizer.decode(codes)
        tokenizer.move_to(torch.device("cpu"))
        did = "moved it to the CPU, and compared "
        same(tokenizer.encode(pixels), codes, f"{did}codes")
        same(tokenizer.decode(codes), decoded, f"{did}pictures")
        same(tokenizer.fingerprint, fingerprint, f"{did}fingerprints")

    def law_the_first_and_the_last_code_decode(self) -> None:
        """Pictures of the code 0 alone, and of codebook_size-1 alone, decode, where the form has no rules; and no more and
        no fewer pictures than are asked for."""
        form, size = self.subject.form, self.subject.codebook_size
        if form.rules is not None:
            return
        number = self.subject.grid[0] * self.subject.grid[1]
        for code in (0, size - 1):
            did = f"decoded a picture of the code {code} alone, of a codebook_size of {size}"
            with doing(did):
                pixels = self.subject.decode(np.full((1, number), code, np.int32))
            same(list(pixels.shape), [1, *self.subject.image_size, 3], did)

    def law_drawings_are_read_where_stated(self) -> None:
        """With `reads_drawings`, `encode_drawing` reads the SVG document of each decoded picture that has one (`svg`), and
        decodes to the same codes; the config states `reads_drawings`, too."""
        tokenizer = self.subject
        if self.config is not None:
            stated = type(self.config).reads_drawings
            did = "compared reads_drawings with the config's"
            same(tokenizer.reads_drawings, stated, did)
        if not tokenizer.reads_drawings:
            return
        holds(
            type(tokenizer).encode_drawing is not ImageTokenizer.encode_drawing,
            "looked for encode_drawing, since reads_drawings is set",
            "an encode_drawing of its own",
            "none",
            next_step="define encode_drawing, or leave reads_drawings out",
        )

    def law_parts_and_drawings_are_of_the_codes(self, data: st.DataObject) -> None:
        """`svg` gives a well-formed SVG document or None, and `around_parts` codes in range: what is before a part is the
        picture's own beginning."""
        size = self.subject.codebook_size
        for codes in self._codes(data):
            drawing = self.subject.svg(codes)
            if drawing is not None:
                with doing("read the SVG document of codes"):
                    parse_xml(drawing.encode(), public_type=True)
            for before, behind in self.subject.around_parts(codes):
                did = f"asked for what is around the parts of {len(codes)} codes"
                same(before, codes[: len(before)], f"{did}: before")
                good = (behind >= 0) & (behind < size)
                every(behind, good, f"{did}: behind", f"codes in 0..{size - 1}")

    def law_a_prefix_decodes(self, data: st.DataObject) -> None:
        """A picture without its last codes decodes after the missing ones are filled in as the form states."""
        form, codes = self.subject.form, self._codes(data)
        rows = []
        for one in codes:
            kept = data.draw(st.integers(0, form.length(one) - 1), label="codes kept")
            rows.append(form.completed(one, np.arange(len(one)) >= kept))
        shape = (len(rows), *self.subject.image_size, 3)
        pictures = self.subject.decode(np.stack(rows))
        holds(
            pictures.shape == shape and pictures.dtype == np.uint8,
            f"decoded {len(rows)} pictures without their last codes",
            f"uint8 {list(shape)}",
            pictures,
        )

    def law_positions_are_those_of_the_codes_so_far(self, data: st.DataObject) -> None:
        """Positions are in range, and equal whether codes come together or one after the other, whatever comes behind
        them; also where codes are missing, and for an equal tokenizer. States are values that nothing changes."""
        positions, again = self.subject.form.positions, self.make_again().form.positions
        if positions is None:
            return
        did = "looked at the axes of the positions"
        sizes = dict(positions.axes)
        sound = bool(sizes) and all(name.isidentifier() and sizes[name] > 0 for name in sizes)
        holds(sound, did, "identifiers, each with a size above 0", sizes)
        same(positions, again, "compared the positions of two tokenizers of one config")
        assert again is not None  # since they are the same
        for codes in self._codes(data):
            codes = codes[: self.subject.form.length(codes)].copy()
            missing = data.draw(st.sets(st.integers(0, len(codes) - 1), max_size=3))
            codes[sorted(missing)] = MISSING
            whole, state = positions.of(codes), positions.start()
            did = f"asked for the positions of {len(codes)} codes"
            same(again.of(codes), whole, f"{did} of two tokenizers of one config")
            for place in range(len(codes)):
                same(
                    positions.of(codes[: place + 1]),
                    whole[: place + 1],
                    f"{did}, and of the first {place + 1} alone",
                )
                before = repr(state), hash(state)
                one, after = positions.behind(state, codes[place : place + 1])
                same(one, whole[place : place + 1], f"{did}, and of one after the other")
                same((repr(state), hash(state)), before, f"{did}, and looked at an earlier state")
                state = after

    def law_pictures_have_the_stated_shape(self, data: st.DataObject) -> None:
        """Any valid codes decode to uint8 [N, height, width, 3]."""
        pictures = self.subject.decode(self._codes(data))
        shape = (2, *self.subject.image_size, 3)
        holds(
            pictures.shape == shape and pictures.dtype == np.uint8,
            "decoded codes of 2 pictures",
            f"uint8 {list(shape)}",
            pictures,
        )

    def law_encoding_and_decoding_are_deterministic(self, data: st.DataObject) -> None:
        """Equal inputs give equal outputs, also in an equal tokenizer."""
        pictures, other = self._pictures(data), self.make_again()
        codes = self.subject.encode(pictures)
        decoded = self.subject.decode(codes)
        for tokenizer, how in ((self.subject, "twice"), (other, "with two of one config")):
            same(tokenizer.encode(pictures), codes, f"encoded the same pictures {how}")
            same(tokenizer.decode(codes), decoded, f"decoded the same codes {how}")

    def law_inputs_are_not_written_to(self, data: st.DataObject) -> None:
        """Pictures and codes are unchanged, even if writable."""
        pictures, codes = self._pictures(data).copy(), self._codes(data)
        before = pictures.copy(), codes.copy()
        self.subject.encode(pictures)
        self.subject.decode(codes)
        same(pictures, before[0], "encoded pictures, and looked at the pictures given")
        same(codes, before[1], "decoded codes, and looked at the codes given")

    def law_a_batch_is_its_items(self, data: st.DataObject) -> None:
        """Codes (but a network's ties: `tied_share`) and, up to rounding, pixels do not depend on the rest of the
        batch."""
        pictures, codes = self._pictures(data, 3), self._codes(data)
        alone = np.concatenate([self.subject.encode(picture[None]) for picture in pictures])
        together = self.subject.encode(pictures)
        if together.shape != alone.shape or (together != alone).mean() > self.tied_share:
            same(together, alone, "encoded 3 pictures together, and one by one")
        one_by_one = np.concatenate([self.subject.decode(one[None]) for one in codes]).astype(int)
        decoded = self.subject.decode(codes).astype(int)
        every(
            decoded - one_by_one,
            np.abs(decoded - one_by_one) <= 1,
            "decoded codes of 2 pictures together and one by one, and subtracted the pictures",
            "at most 1 level of 255 between them",
        )

    def law_the_config_knows_the_sizes(self) -> None:
        """The config's `codebook_size`, `form`, `grid` and `image_size` equal the tokenizer's."""
        if self.config is not None:
            for name in ("codebook_size", "form", "grid", "image_size"):
                same(
                    getattr(self.config, name),
                    getattr(self.subject, name),
                    f"compared the config's {name} with the tokenizer's",
                )

    def law_codes_tell_pictures_apart(self) -> None:
        """Different pictures have different codes; different codes decode to different pictures."""
        if self.subject.codebook_size == 1:
            return
        height, width = self.subject.image_size
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        codes = self.subject.encode(
            np.stack([np.zeros_like(noise), np.full_like(noise, 255), noise])
        )
        did = "encoded a black picture, a white one and noise"
        differ(codes, np.broadcast_to(codes[0], codes.shape), did, "not the same codes for all")
        size, form = self.subject.codebook_size, self.subject.form
        uniform = np.arange(size, dtype=np.int32)[:64, None].repeat(form.num_codes, 1)
        did = f"decoded {len(uniform)} pictures, each with a single code"
        if form.rules is not None:
            uniform = random_codes(form, size, 8, np.random.default_rng(0))
            did = "decoded 8 pictures of random codes"
        decoded = self.subject.decode(uniform)
        differ(
            decoded, np.broadcast_to(decoded[0], decoded.shape), did, "not the same picture for all"
        )

    def law_decoded_pictures_are_the_encoded_ones(self) -> None:
        """An encoded and decoded picture is nearer to the original than to another one, and nearer than pictures of
        neighbouring codes, or of the codes in another order. Waive it for random weights."""
        tokenizer = self.subject
        pictures = example_pictures(*tokenizer.image_size)[:5]
        codes = tokenizer.encode(pictures)
        form, size = tokenizer.form, tokenizer.codebook_size
        rows, columns = form.rows, form.columns
        grids = codes.reshape(-1, rows, columns, form.depth)
        back = tokenizer.decode(codes)
        others: dict[str, tuple[PixelArray, PixelArray]] = {
            "the picture mirrored": (back, pictures[:, :, ::-1]),
            "the picture upside down": (back, pictures[:, ::-1]),
            "the picture's negative": (back, 255 - pictures),
            "the picture with red and blue swapped": (back, pictures[..., ::-1]),
            "another picture": (back, np.roll(pictures, 1, axis=0)),
        }
        for name, changed in (
            ("each code less 1", _shifted(form, codes, -1, size)),
            ("each code plus 1", _shifted(form, codes, 1, size)),
            ("the codes column by column", grids.swapaxes(1, 2).reshape(codes.shape)),
            (
                "the codes as columns",
                codes.reshape(-1, columns, rows, form.depth).swapaxes(1, 2).reshape(codes.shape),
            ),
            ("each row of codes from right to left", grids[:, :, ::-1].reshape(codes.shape)),
            ("the rows of codes from the bottom up", grids[:, ::-1].reshape(codes.shape)),
        ):
            if form.strange_place(changed) is None:
                decoded = tokenizer.decode(np.ascontiguousarray(changed, np.int32))
                others[name] = (decoded, pictures)
        own = _distance(back, pictures)
        for name, (decoded, picture) in others.items():
            if np.array_equal(decoded, back) and np.array_equal(picture, pictures):
                continue  # one code, or a grid of one row
            found = _distance(decoded, picture)
            holds(
                own <= found,
                f"encoded and decoded 5 pictures, and compared with {name}",
                f"nearer to the picture than with {name} ({found:.2f} levels of 255 away)",
                f"{own:.2f} levels away from the picture",
                next_step=_UNTRAINED.format("decoded_pictures_are_the_encoded_ones"),
            )

    def law_codes_are_in_raster_order(self) -> None:
        """The k codes at row r and column c have the indices from (r * columns + c) * k on, in encoding and
        decoding. Sequences have no rows and columns."""
        form = self.subject.form
        rows, columns, depth = form.rows, form.columns, form.depth
        cells = rows * columns
        if cells == 1 or self.subject.codebook_size == 1 or form.is_sequence:
            return
        rng = np.random.default_rng(0)
        places = rng.permutation(cells)[:_MOST_CELLS]
        self._check_order(
            "changed one code, decoded, and looked where the picture changed",
            {int(place): _centre(self._shown(int(place))) for place in places},
        )
        # the code that changes gives the index; the cell's position is known
        found: dict[int, Any] = {}
        for place in places.tolist():
            changed = np.unique(self._seen(place // columns, place % columns) // depth)
            if len(changed) == 1:
                found[int(changed[0])] = (
                    (place // columns + 0.5) / rows,
                    (place % columns + 0.5) / columns,
                )
        self._check_order(
            "changed one cell of a picture, encoded, and looked which code changed", found
        )

    def _check_order(self, did: str, centres: Mapping[int, tuple[float, float] | None]) -> None:
        """Raise `LawBroken` if another order fits the centres better: place -> (y, x), each 0..1."""
        rows, columns = self.subject.form.rows, self.subject.form.columns
        known = {place: centre for place, centre in centres.items() if centre is not None}
        errors = {}
        for name, order in _ORDERS.items():
            cells = {place: order(place, rows, columns) for place in known}
            errors[name] = sum(
                ((row + 0.5) / rows - known[place][0]) ** 2
                + ((column + 0.5) / columns - known[place][1]) ** 2
                for place, (row, column) in cells.items()
            )
        best = min(errors, key=lambda name: errors[name])
        holds(
            errors[best] >= _CLEARLY * errors["raster order"],
            did,
            "raster order: place 1 is the second cell of the first row",
            best,
            next_step="flatten codes from [N, rows, columns], and reshape them back before decoding",
        )

    def _shown(self, place: int) -> npt.NDArray[np.float64]:
        """Return how much each pixel changes with the codes of a place, [H, W]."""
        form, size = self.subject.form, self.subject.codebook_size
        codes = np.zeros((3, form.num_codes), np.int32)
        own = slice(place * form.depth, (place + 1) * form.depth)
        codes[1:, own] = np.array([size - 1, size // 2])[:, None]
        if form.rules is not None:
            rng = np.random.default_rng(0)
            codes[:] = random_codes(form, size, 1, rng)
            codes[1:, own] = random_codes(form, size, 2, rng)[:, own]
            if form.strange_place(codes) is not None:
                return np.zeros(self.subject.image_size)
        pictures = self.subject.decode(codes).astype(float)
        change: npt.NDArray[np.float64] = ((pictures[1:] - pictures[0]) ** 2).sum((0, 3))
        return change

    def _seen(self, row: int, column: int) -> npt.NDArray[np.int64]:
        """Return the places whose codes change most often with a cell of a picture."""
        rows, columns = self.subject.form.rows, self.subject.form.columns
        height, width = self.subject.image_size
        base = np.zeros((3, height, width, 3), np.uint8)
        base[1], base[2] = 128, (200, 60, 20)
        changed = base.copy()
        part = (
            slice(row * height // rows, (row + 1) * height // rows),
            slice(column * width // columns, (column + 1) * width // columns),
        )
        changed[:, part[0], part[1]] = (255, 240, 250)
        counts = (self.subject.encode(base) != self.subject.encode(changed)).sum(0)
        most: npt.NDArray[np.int64] = np.flatnonzero((counts == counts.max()) & (counts > 0))
        return most

    def law_an_equal_tokenizer_has_the_same_fingerprint(self) -> None:
        """The fingerprint identifies config and weights, not the object, and is stable."""
        first, did = self.subject.fingerprint, "looked at the fingerprint"
        holds(first != "", did, "a text", first)
        same(self.subject.fingerprint, first, f"{did} twice")
        same(self.make_again().fingerprint, first, f"{did}s of two tokenizers of one config")

    def law_saved_is_loaded(self) -> None:
        """`save`, then the config's `load`, gives the same tokenizer, if `save` writes files; so does building what
        `saved_in` returns, if it returns a config."""
        with tempfile.TemporaryDirectory() as name:
            self.subject.save(Path(name))
            if not any(Path(name).iterdir()):
                return
            holds(
                self.config is not None,
                "saved it, which wrote files",
                "a config that loads them",
                "no config",
                next_step="set `config`, so that what was saved can be loaded",
            )
            with self.building():
                loaded = self.config.load(Path(name))
            if (saved := self.config.saved_in(Path(name))) is not None:
                with self.building():
                    again = saved.build()
                did = "saved it, built saved_in(folder), and compared the fingerprints"
                same(again.fingerprint, self.subject.fingerprint, did)
        rng = np.random.default_rng(0)
        pictures = rng.integers(0, 256, (2, *self.subject.image_size, 3), dtype=np.uint8)
        codes = random_codes(self.subject.form, self.subject.codebook_size, 2, rng)
        did = "saved it, loaded that, and compared "
        same(loaded.fingerprint, self.subject.fingerprint, did + "the fingerprints")
        same(loaded.encode(pictures), self.subject.encode(pictures), did + "codes of pictures")
        same(loaded.decode(codes), self.subject.decode(codes), did + "pictures of codes")

    def law_codebook_matches_its_size(self) -> None:
        """Code vectors, if any, are fp32, one per code."""
        codebook = self.subject.codebook()
        if codebook is not None:
            did = "looked at codebook()"
            same(codebook.shape[0], self.subject.codebook_size, f"{did}: its number of vectors")
            same(str(codebook.dtype), "torch.float32", f"{did}: its type")

    def law_nothing_is_a_batch(self) -> None:
        """No pictures give no codes, and no codes give no pictures."""
        height, width = self.subject.image_size
        rows, columns = self.subject.grid
        codes = self.subject.encode(np.zeros((0, height, width, 3), np.uint8))
        same(list(codes.shape), [0, rows * columns], "encoded no pictures")
        pictures = self.subject.decode(np.zeros((0, rows * columns), np.int32))
        same(list(pictures.shape), [0, height, width, 3], "decoded no codes")

    def law_wrong_input_is_refused(self) -> None:
        """Other sizes, other dtypes and codes out of range are errors, never resized or clamped."""
        height, width = self.subject.image_size
        rows, columns = self.subject.grid
        size = self.subject.codebook_size
        for pictures in (
            np.zeros((1, height + 1, width, 3), np.uint8),
            np.zeros((1, height, width, 3), np.float32),
        ):
            refuses(
                lambda pictures=pictures: self.subject.encode(pictures),  # type: ignore[misc]  # a default
                f"encoded {pictures.dtype} {list(pictures.shape)}",
                TokenizerError,
                match="the image tokenizer takes uint8",
            )
        wrong = [
            (np.full((1, rows * columns), size, np.int32), "the codebook has"),
            (np.zeros((1, rows * columns + 1), np.int32), "a picture is"),
        ]
        uniform = np.arange(size, dtype=np.int32)[:, None].repeat(rows * columns, 1)
        strange = self.subject.form.strange_place(uniform)
        if strange is not None:
            wrong.append((uniform[strange[0], None], "breaks the rules"))
        for codes, match in wrong:
            refuses(
                lambda codes=codes: self.subject.decode(codes),  # type: ignore[misc]  # a default
                f"decoded codes {list(codes.shape)} with a largest one of {codes.max()}",
                TokenizerError,
                match=match,
            )


def _distance(one: PixelArray, other: PixelArray) -> float:
    """Return the mean absolute difference of pictures, in levels."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def _centre(weights_HW: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the centre (y, x) of the changes, each 0..1; None if nothing changed."""
    total = weights_HW.sum()
    if total == 0:
        return None
    height, width = weights_HW.shape
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    return float(weights_HW.sum(1) @ y / total), float(weights_HW.sum(0) @ x / total)
