"""Generating and choosing the results of one call: its options, `num_candidates` candidates per result
(`--candidates`, best of n), the reranker that scores them, and the upscaler.

`Plan.job` makes the candidates' requests, each with its own seed, scores the results (`Reranker.score`; the reranker
`clip` compares picture and prompt) and keeps the best; near copies of a prepended document come last.

The methods of `Model` take the options as keywords, mixed with the sampler's keys, which only the sampler's config
knows. "These keys, and any others" can't be typed (PEP 728 would allow it; mypy doesn't support it), so the methods
take `**options: Any`, and `GenerationOptions.of` separates the two in one place; everything after it is typed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, cast

from cm3core.arguments import Called, Count, CountOrZero, Name, check_fields, check_value
from cm3core.config.overrides import named_config
from cm3core.document import Codes, Document, ImageHole, PixelArray, Text
from cm3core.errors import GenerationError, close_match
from cm3core.interfaces.reranker import Candidate
from cm3core.plugins.registry import built
from cm3run.generation.engine import Completion, Request, candidate_seed, turn_of
from cm3run.generation.prepare import SHORTEN, SHORTEN_OR_TRUNCATE
from cm3run.model.jobs import Job
from cm3run.model.loaded import Loaded, Picture, check_kept, check_length, sampler_of, seen
from cm3run.model.prepending import Alternatives, Augmented, Retrieval
from cm3run.model.results import Choice, GeneratedImage, RetrievedDocument
from cm3run.nearness import NEARLY_A_COPY, nearness

if TYPE_CHECKING:
    from cm3core.interfaces.reranker import Reranker, RerankerConfig
    from cm3core.interfaces.sampler import Sampler
    from cm3core.interfaces.upscaler import Upscaler, UpscalerConfig


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """The options of one call; `Model` describes them.

    Args:
        sampling: keys of the sampler to change. Callers may also pass them directly.
    """

    seed: int = 0
    num_retrieved: CountOrZero | None = None
    context: Sequence[tuple[Picture, str]] = ()
    num_candidates: Count | None = None
    reranker: Name | None = None
    sampler: Name | None = None
    exclude: Annotated[Collection[str], Called("a list of documents' ids")] = ()
    max_codes: Count | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, GenerationError)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """Pick the options from a call's keyword arguments; all other keys are the sampler's.

        Raises:
            GenerationError: an option has the wrong type or is out of its range.
        """
        names = {item.name for item in fields(cls)} - {"sampling"}
        own = {name: options[name] for name in names if name in options}
        rest = {key: value for key, value in options.items() if key not in names}
        return cls(**own, sampling=sampler_keys(rest))


def sampler_keys(options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler's keys, given as `sampling={...}`, directly, or both.

    >>> sampler_keys({"temperature": 0.9, "sampling": {"guidance_scale": 1.5}})
    {'guidance_scale': 1.5, 'temperature': 0.9}

    Raises:
        GenerationError: a key is given twice.
    """
    loose = {key: value for key, value in options.items() if key != "sampling"}
    check_value("sampling", options.get("sampling"), Mapping[str, Any] | None, GenerationError)
    grouped: Mapping[str, Any] = options.get("sampling") or {}
    for key in grouped:
        if key in loose:
            raise GenerationError(
                f"sampling[{key!r}]", f"is also given as {key}", "give it in one of the two places"
            )
    return {**grouped, **loose}


T = TypeVar("T")
#: Pixels of codes, uint8 [height, width, 3].
Decode: TypeAlias = Callable[[Codes], PixelArray]
#: Makes a result from the chosen completion, its seed, how it was chosen, and a function that decodes its pictures.
Make: TypeAlias = Callable[[Completion, int, Choice | None, Decode], T]


@dataclass(frozen=True, eq=False)
class Plan:
    """The validated options of one call.

    Args:
        loaded: the model.
        sampler: samples all candidates.
        sampler_name: its name.
        num_candidates: candidates per result.
        reranker: chooses among them; None when there is only one.
        num_retrieved: None: the recipe's number, or none when there is a `context`.
        context: the caller's (pixels of the model's size, text) pairs, prepended.
        exclude: ids of documents to exclude from retrieval.
        max_codes: maximum number of codes of a picture that is a sequence; None: the image tokenizer's.
    """

    loaded: Loaded
    sampler: Sampler
    sampler_name: str
    num_candidates: int
    reranker: Reranker | None
    num_retrieved: int | None
    context: list[tuple[PixelArray, str]]
    exclude: frozenset[str] = frozenset()
    max_codes: int | None = None

    @classmethod
    def of(
        cls, loaded: Loaded, options: GenerationOptions, *, truncate: bool | None = None
    ) -> Plan:
        """The plan of a call; raises `GenerationError` or `RecipeError` for invalid options.

        Args:
            truncate: whether the call cuts long texts; None: it has no such option.
        """
        candidate_seed(options.seed, 0)
        sampler = sampler_of(loaded, options.sampler, **options.sampling)
        number = options.num_candidates
        number = loaded.recipe.generate.num_candidates if number is None else number
        check_kept(loaded, number, "num_candidates", "use fewer")
        chooser = reranker(loaded, options.reranker) if number > 1 else None
        own = loaded.recipe.component_names.get("reranker")
        if chooser is None and options.reranker not in (None, own):
            _reranker_config(
                loaded, options.reranker
            )  # report a wrong name even when there is nothing to choose
        context = [(seen(loaded, picture), text) for picture, text in options.context]
        if not truncate:
            texts = [(f"context {place}, text", text) for place, (_, text) in enumerate(context)]
            replaced = {stream.variant.replace_text for stream in sampler.plan("image").streams}
            texts += [("negative prompt", text) for text in replaced if text is not None]
            for place, text in texts:
                next_step = SHORTEN if truncate is None else SHORTEN_OR_TRUNCATE
                check_length(loaded, place, text, next_step=next_step)
        return cls(
            loaded,
            sampler,
            options.sampler or loaded.recipe.component_names.get("sampler", ""),
            number,
            chooser,
            options.num_retrieved,
            context,
            frozenset(options.exclude),
            options.max_codes,
        )

    @property
    def num_codes(self) -> int:
        """Maximum number of codes of a picture."""
        whole = self.loaded.components.serializer.num_codes
        return whole if self.max_codes is None else min(self.max_codes, whole)

    def _limited(self, document: Document) -> Document:
        """The document, with at most `max_codes` codes in each picture to be generated."""
        if self.max_codes is None:
            return document
        if not any(isinstance(segment, ImageHole) for segment in document):
            raise GenerationError(
                "max_codes",
                f"is {self.max_codes}, and no whole picture is generated",
                "leave it out",
            )
        return tuple(
            replace(segment, most_codes=self.max_codes)
            if isinstance(segment, ImageHole)
            else segment
            for segment in document
        )

    def retrieved(
        self,
        requests: Sequence[Request],
        queries: Sequence[Document],
        *,
        num_alternatives: int = 1,
    ) -> list[Alternatives]:
        """The requests with the plan's sampler, and documents to prepend, see `Retrieval.retrieve`."""
        asked = [
            replace(request, sampler=self.sampler, document=self._limited(request.document))
            for request in requests
        ]
        return Retrieval(self.loaded).retrieve(
            asked,
            queries,
            self.num_retrieved,
            self.context,
            self.exclude,
            num_alternatives=num_alternatives,
        )

    def augmented(
        self, requests: Sequence[Request], queries: Sequence[Document]
    ) -> list[list[Augmented]]:
        """The same with the best documents prepended."""
        return [one.all for one in self.retrieved(requests, queries)]

    def job(
        self,
        alternatives: Sequence[Augmented],
        make: Make[T],
        *,
        place: int = 0,
        given: Sequence[PixelArray] = (),
    ) -> Job[T]:
        """The job of one result.

        Result `place` of a request uses alternative `place` in turn, for all its candidates. `make` receives the
        chosen completion, its seed, how it was chosen, and a function that decodes its pictures. `given` are the
        pictures that are edited or inpainted.
        """
        requests = []
        turn = place if len(alternatives) > 1 else 0  # avoids changing seeds without need
        for index in range(place * self.num_candidates, (place + 1) * self.num_candidates):
            seed = candidate_seed(alternatives[0].request.seed, index, turn)
            request = alternative_of(alternatives, seed).request
            sampler = self.sampler.for_candidate(index)
            requests.append(replace(request, seed=seed, sampler=sampler))
        texts = [one.text for one in requests[0].document if isinstance(one, Text)]
        shown = alternative_of(alternatives, requests[0].seed).retrieved
        pictures = [*given, *(one.pixels for one in shown if one.pixels is not None)]

        def finish(completions: Sequence[Completion]) -> T:
            decoded: dict[int, tuple[Codes, PixelArray]] = {}  # by the identity of the codes

            def decode(codes: Codes) -> PixelArray:
                """A copy of a picture's pixels; pictures already decoded for the reranker are reused."""
                if id(codes) not in decoded:
                    decoded[id(codes)] = codes, self.loaded.drawn(codes, texts, pictures)
                return decoded[id(codes)][1].copy()

            if self.reranker is None:
                return make(completions[0], requests[0].seed, None, decode)
            candidates = [
                Candidate(
                    one.document,
                    completion.document,
                    decode,
                    tuple(one.retrieved),
                    completion.log_probability,
                    completion.num_tokens,
                    one.seed,
                )
                for one, completion in zip(requests, completions, strict=True)
            ]
            scores = self.reranker.score(candidates)
            copies = [
                _is_copy(one, alternative_of(alternatives, one.seed).retrieved)
                for one in candidates
            ]
            choice = best_of(scores, self.reranker.measure, copies)
            return make(completions[choice.index], requests[choice.index].seed, choice, decode)

        return Job(requests, finish)


def best_of(scores: Sequence[float], measure: str, copies: Sequence[bool]) -> Choice:
    """Choose the highest score, near copies last: who asks for a drawing has the documents already."""
    index = max(range(len(scores)), key=lambda one: (not copies[one], scores[one]))
    return Choice(tuple(scores), index, measure, tuple(copies))


def _is_copy(candidate: Candidate, documents: Sequence[RetrievedDocument]) -> bool:
    """Whether a picture is nearly a copy of a document that was prepended to it. What is inpainted is none: the rest of
    the picture may have been one before."""
    if not any(isinstance(segment, ImageHole) for segment in candidate.request):
        return False
    return any(
        nearness(drawn, one.pixels) >= NEARLY_A_COPY
        for drawn in candidate.pixels
        for one in documents
        if one.pixels is not None
    )


def alternative_of(alternatives: Sequence[Augmented], seed: int) -> Augmented:
    """The alternative selected by the turn that a candidate's seed carries.

    A picture's seed alone therefore determines which documents were prepended to it.
    """
    return alternatives[turn_of(seed) % len(alternatives)]


def reranker(loaded: Loaded, name: str | None = None) -> Reranker:
    """The recipe's reranker, or the named one with its defaults.

    Raises `GenerationError` if there is none.
    """
    parts = loaded.components
    if name is None or name == loaded.recipe.component_names.get("reranker"):
        if parts.reranker is None:
            known = close_match("", parts.registry.names("reranker"))
            raise GenerationError(
                "reranker",
                f"the model's recipe {loaded.recipe.name!r} has none to choose candidates by",
                f"name one (reranker); {known}",
            )
        return parts.reranker
    config = _reranker_config(loaded, name)
    return built(
        config.build(embedder=parts.embedder, likelihood=parts.likelihood), config, parts.registry
    )


def _reranker_config(loaded: Loaded, name: str) -> RerankerConfig:
    """The config of the named reranker, with its defaults."""
    config_class = loaded.components.registry.config_class("reranker", name, place="reranker")
    config = cast("RerankerConfig", named_config(config_class, {}, "reranker"))
    config.check()
    return config


def score(loaded: Loaded, picture: GeneratedImage, name: str | None) -> float:
    """A generated picture's score for its prompt, by the recipe's reranker or the named one."""
    codes = loaded.encode([picture.pixels])[0] if picture.drawn is None else picture.drawn
    candidate = Candidate(
        (Text(picture.prompt), ImageHole()),
        (Text(picture.prompt), codes),
        lambda _: picture.pixels,  # the pixels that were scored when it was chosen
        (),
        picture.log_probability,
        0,
        picture.seed,
    )
    return reranker(loaded, name).score([candidate])[0]


def upscaler(loaded: Loaded, upscale: bool | str) -> Upscaler | None:
    """None (False), the recipe's upscaler (True), or the named one with its defaults.

    Raises `GenerationError` if there is none.
    """
    if upscale is False:
        return None
    parts = loaded.components
    if isinstance(upscale, str) and upscale != loaded.recipe.component_names.get("upscaler"):
        config_class = parts.registry.config_class("upscaler", upscale, place="upscale")
        config = cast("UpscalerConfig", named_config(config_class, {}, "upscaler"))
        config.check()
        return built(config.build(), config, parts.registry)
    if parts.upscaler is None:
        known = close_match("", parts.registry.names("upscaler"))
        raise GenerationError(
            "upscale",
            f"the model's recipe {loaded.recipe.name!r} has no upscaler",
            f"name one; {known}",
        )
    return parts.upscaler
