"""`load` and `Model`: generate, caption and inpaint pictures with a trained checkpoint.

>>> import cm3core
>>> model = cm3core.load()                                               # doctest: +SKIP
>>> pictures = model.generate("bell off, outline", num_images=4, seed=1) # doctest: +SKIP

`Model` is a facade: `loaded` holds the checkpoint's parts. Calls run jobs of `drawing` and `writing`: documents with
holes, which `cm3run.generation.engine.Engine` fills. For coroutines: `AsyncModel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from cm3core.arguments import Count, CountOrZero, Name, checked
from cm3core.document import BoolArray, Codes, Document, PixelArray, Text
from cm3core.errors import GenerationError
from cm3core.plugins.discovery import load_registry
from cm3run import DEFAULT_MODEL
from cm3run.checkpoint import (
    TunedTasks,
    find_model,
    lasting_name,
    model_name,
    open_for_generation,
    read_tasks,
)
from cm3run.generation.engine import Completion, EngineOptions, Event, Progress, Request
from cm3run.generation.policy import Policy
from cm3run.hub import is_address
from cm3run.model import candidates
from cm3run.model.candidates import sampler_keys
from cm3run.model.chatting import Chatting
from cm3run.model.crop import Box
from cm3run.model.drawing import box_below, check_num_images, image_events
from cm3run.model.jobs import results, run
from cm3run.model.loaded import (
    Parallel,
    Picture,
    Precision,
    Threads,
    pixels_of,
    sampler_of,
    text_hole,
)
from cm3run.model.memory import note_on_bank, with_memory
from cm3run.model.results import GeneratedImage, GeneratedImages, GeneratedText, InfilledImage
from cm3run.model.tasks import (
    encoded_record,
    named_task,
    pictures_given,
    record_as_tuned,
)

if TYPE_CHECKING:
    from cm3core.interfaces.reranker import Reranker
    from cm3core.interfaces.task import Record
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.build import Components


@checked(GenerationError)
def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    bank: str | Path | None = None,
    retriever: Name | None = None,
    registry: Registry | None = None,
    device: torch.device | str | None = None,
    num_threads: Threads | None = None,
    precision: Precision = "auto",
    parallel: Parallel | None = None,
    max_rows: Count = 64,
    trust_plugins: Sequence[str] = (),
    trust_endpoints: Sequence[str] = (),
) -> Model:
    """Open a trained model.

    Args:
        model: a run's folder, a checkpoint, an exported model, "PLUGIN:NAME" for a bundled one, or
            "hf://USER/NAME[@REVISION]" for one on the Hugging Face Hub. By default the model that the installed plugins
            offer: cm3icons' `icons64-tuned`, or else `bundled:emoji64`.
        bank, retriever: a memory bank to retrieve from instead of the recipe's memory, and the name of a retriever to use
            instead of the recipe's ("none": draw without documents), see `Model.with_memory`.
        registry: the components that recipes may name. None: those of the installed plugins.
        device: of the decoder and the image tokenizer. None: the GPU if there is one.
        num_threads, max_rows: see `Engine`.
        precision: of the decoder's weights for generation: "fp32", "bf16", "int8", "int4"; the last two are
            refused if they change predictions. "auto": the first of the decoder's `faster_precisions` that hardly
            changes predictions, otherwise as in `Decoder.for_inference`. On a GPU in bf16, the float32 weights are
            loaded only when `components.decoder` is asked for (likelihoods, training), and then stay.
        trust_plugins: SHA-256 hashes of plugin files in the checkpoint that may run. Read these files first.
        trust_endpoints: resources outside its folder that a model from someone else may use: hosts (`HOST` or
            `HOST:PORT`), addresses (`s3://BUCKET`) and paths, including everything below. Also applies to the bank.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it needs an untrusted plugin file that it
            contains.
        DataError, DeviceError: the bank or the device can't be used.
        TrustError: it needs an untrusted resource outside its folder. Resources that only some calls need, such as
            the data it retrieves from, are refused at those calls.
        RecipeError, PluginError: its recipe needs a component that is not installed.
    """
    registry = load_registry() if registry is None else registry
    folder = find_model(model, registry)
    opened = open_for_generation(
        folder,
        registry,
        device=device,
        precision=precision,
        trust_plugins=trust_plugins,
        trust_endpoints=trust_endpoints,
    )
    loaded = Model(
        opened.recipe,
        opened.components,
        name=lasting_name(model, registry) if is_address(model) else model_name(model, registry),
        step=opened.step,
        num_threads=num_threads,
        precision=precision,
        parallel=parallel,
        max_rows=max_rows,
        tasks=read_tasks(
            opened.folder, opened.components.registry, trust_endpoints=trust_endpoints
        ),
    )
    loaded.words = opened.words
    return loaded if bank is None and retriever is None else loaded.with_memory(bank, retriever)


class Model(Chatting):
    """A trained model.

    Every method returns the same results for the same arguments, regardless of earlier calls.

    Methods that generate take these keyword arguments:

        seed                0..2**63-1; the same seed gives the same results
        num_retrieved       number of documents to retrieve from the model's memory and prepend; None: the recipe's
                            number (none when `context` is given)
        exclude             ids of documents in the memory to exclude from retrieval
        context             (picture, text) pairs of your own, prepended before all retrieved documents
        num_candidates      results generated for each one returned, from which the reranker chooses; None:
                            `generate.num_candidates` for pictures from a caption, 1 for edits and texts
        max_codes           maximum number of codes of each picture, for image tokenizers whose pictures are sequences;
                            fewer are drawn faster
        reranker            name of a reranker to use instead of the recipe's, with its defaults
        sampler             name of a sampler to use instead of the recipe's; temperature and filters keep the recipe's
                            values
        task                name of the task to use, among those the model was tuned for; None: the method's own
        force               True: allow a task that the model was not tuned for
        sampling            keys of the sampler for this call: `sampling={"guidance_scale": 1.5}`
        progress            called during generation with (tokens generated so far, maximum total)

    The sampler's keys can also be passed directly:
    `model.generate("a red apple", guidance_scale=1.5, temperature=0.9)`.

    Args:
        recipe: the checkpoint's.
        components: built from it, with the weights loaded.
        name: the name that was passed to `load`.
        step: number of optimiser steps it was trained for.
        num_threads, precision, max_rows: see `EngineOptions`.
        parallel: see `load`.
        tasks: the tasks it was tuned for; None: it was not tuned.
    """

    @checked(GenerationError)
    def __init__(
        self,
        recipe: Recipe,
        components: Components,
        *,
        name: str = "",
        step: CountOrZero = 0,
        num_threads: Threads | None = None,
        precision: Precision = "auto",
        parallel: Parallel | None = None,
        max_rows: Count = 64,
        tasks: TunedTasks | None = None,
    ) -> None:
        window = recipe.generate.window if parallel is None else parallel
        options = EngineOptions(
            max_rows=max_rows,
            num_threads=num_threads,
            precision=precision,
            window=1 if window == "off" else window,
        )
        super().__init__(recipe, components, options, tasks)
        self.name, self.step = name, step

    @checked(GenerationError)
    def with_memory(
        self,
        bank: str | Path | None = None,
        retriever: Name | None = None,
        *,
        split: Name | None = None,
        embedder: Name | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Model:
        """This model with another memory, or with other retriever settings.

        Weights are shared and nothing is trained. A recipe without retrieval gets the default
        retriever (bundled: `dense`). If the retriever needs an embedder and the recipe has none, it gets the one the bank
        was built with, or else its default one (bundled: `light_encoder`, for `hybrid` `minilm`), which `told` says.

        What a retriever needs from the memory, such as vectors of its documents, is computed now, with a progress bar, and
        cached.

        Args:
            bank: a folder written by `cm3 memory build`. None: the model's current memory.
            retriever: name of a retriever to use instead of the recipe's; the keys that all
                retrievers share (`RetrieverConfig`) keep the recipe's values. "none": draw without documents.
            split: the split of the model's data set to retrieve from, such as "train"; None: the
                current memory.
            embedder: name of an embedder to use instead of the recipe's, or its keys: `{"name": "clip", "path": FILE}`.
            settings: keys of the retriever to change, e.g. `num_retrieved=2`, `min_similarity=0.3`.

        Raises:
            DataError: the bank can't be opened, or was built with another embedder or image
                tokenizer.
            GenerationError: the retriever or embedder has no such key, the data set has no such split, or there is neither
                a retriever nor a bank.
            PluginError: no plugin provides that retriever or embedder.
        """
        changed = Model(
            *with_memory(
                self.recipe, self.components, bank, settings, retriever, split, embedder, self.told
            ),
            name=self.name,
            step=self.step,
            num_threads=self.options.num_threads,
            precision=cast("Precision", self.options.precision),
            parallel=self.options.window,
            max_rows=self.options.max_rows,
            tasks=self.tasks,
        )
        changed.words, changed.told = self.words, self.told
        if bank is not None and (note := note_on_bank(changed.components)) is not None:
            changed.told(note)
        return changed

    # ---- pictures

    @checked(GenerationError)
    def generate(
        self,
        prompt: str | Sequence[str],
        num_images: Count | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[GeneratedImage]:
        """Generate pictures for a prompt.

        Args:
            prompt: what to generate, worded like the training captions; or several prompts, which
                are generated in one batch.
            num_images: pictures per prompt; None: the recipe's `generate.num_images`.
            progress, options: see `Model`. The prompt is the query for retrieval. The first k
                pictures of a prompt are the same for any `num_images` and any other prompts. Also:
                truncate: cut longer prompts to `data.max_text_tokens` tokens, as captions in
                training. upscale: also enlarge the pictures, with the recipe's upscaler (True) or
                the named one. condition: a structure to draw after, as (name, input):
                `("canny", "photo.png")`, `("boxes", "bell at (10, 12) -> (40, 44)")`, or with settings
                as a third item; for models tuned on structures. Documents are then retrieved only if
                `num_retrieved` is given, and the default sampler is one made for structures if a
                plugin provides it (bundled: `structure_cfg`). draw: draw even if the memory has the
                picture.

        If the model's retriever tells what its memory has (`Answer`), a prompt of a thing that it has in the hand that
        is asked for is answered with the documents themselves (`GeneratedImage.original`), best first, and the model
        draws only what they lack to `num_images`; with None, nothing.

        Returns:
            `num_images` pictures for each prompt, in order; with None, of a prompt with found pictures only these, at
            most the recipe's number. Notebooks show the list as a sheet.

        Raises:
            GenerationError: the prompt is empty or too long, a seed or count is invalid, or there
                is no memory to retrieve from or no reranker.
            RecipeError: a sampler key is unknown, or a value is out of range.
        """
        check_num_images(self, 1 if isinstance(prompt, str) else len(prompt), num_images)
        return GeneratedImages(self.stream(prompt, num_images, progress=progress, **options))

    @checked(GenerationError)
    def stream(
        self,
        prompt: str | Sequence[str],
        num_images: Count | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> Iterator[GeneratedImage]:
        """The pictures of `generate` with these arguments, in order, each as soon as it is ready.

        Memory use does not grow with `num_images`. Invalid arguments raise at the call, not at the
        first picture.
        """
        jobs, total = self.image_jobs(prompt, num_images, **options)
        return results(self.engine, jobs, progress=progress, total=total)

    @checked(GenerationError)
    def events(
        self, prompt: str | Sequence[str], num_images: Count | None = None, **options: Any
    ) -> Iterator[Event]:
        """The events of `generate` with these arguments, as they happen.

        These are the events of `Engine.stream` for each candidate, `Scored` for each candidate when
        all candidates of its picture are finished, and `ImageReady` for each picture. Leaving the
        iterator stops the work.
        """
        jobs, total = self.image_jobs(prompt, num_images, **options)
        return image_events(run(self.engine, jobs, details=True, total=total))

    @checked(GenerationError)
    def edit(
        self,
        picture: Picture,
        instruction: str,
        num_images: Count | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[GeneratedImage]:
        """Edit a picture by instruction; for models tuned on editing (paper section 4.1).

        Args:
            picture: any size; the model sees its largest centred square (or crop in the model's
                aspect ratio).
            instruction: what to change.
            num_images: None: the recipe's `generate.num_images`.
            progress, options: see `generate`. Documents are retrieved only if `num_retrieved` is given.
                Also: task_text: your own text before the picture, instead of the task's. sampler: None: one made
                for editing if a plugin provides it (bundled: `edit_cfg`, three guidance streams).
        """
        check_num_images(self, 1, num_images)
        jobs, total = self.edit_jobs(picture, instruction, num_images, **options)
        return GeneratedImages(results(self.engine, jobs, progress=progress, total=total))

    @checked(GenerationError)
    def infill(
        self,
        picture: Picture,
        box: Box | Sequence[Box] | None = None,
        text: str | None = None,
        *,
        mask: BoolArray | str | Path | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> InfilledImage:
        """Inpaint a part of a picture; codes outside the region stay unchanged.

        Args:
            picture: any size; the model sees its largest centred square (or crop in the model's
                aspect ratio).
            box: (x0, y0, x1, y1) in pixels of the picture, x1 and y1 not included, inside what the
                model sees; or several boxes.
            text: caption of the whole picture after inpainting. None: the model first writes one
                from the rest of the picture.
            mask: any set of pixels instead of a box: bool [height, width] of the picture, or the
                file of a picture that is white there.
            progress, options: see `generate`. The text is the query for retrieval; without a text,
                nothing is retrieved.

        Raises:
            DataError: the picture or the mask can't be read.
            GenerationError: the region is empty, or reaches outside the part that the model sees.
        """
        job, total = self.infill_job(picture, box, text, mask=mask, **options)
        return next(results(self.engine, [job], progress=progress, total=total))

    @checked(GenerationError)
    def redraw(
        self,
        drawing: str | Path,
        part: Count,
        text: str | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> InfilledImage:
        """Draw one path of an SVG drawing again; everything else stays as it is.

        For models whose image tokenizer reads drawings (`svg`). `components.image_tokenizer.svg(result.codes.codes)`
        is the new drawing.

        Args:
            drawing: an SVG file.
            part: number of the path or shape, from 1, in the order of the file; each M of a path's data begins one.
            text, progress, options: see `infill`.

        Raises:
            DataError: the file can't be read, or codes can't say what it shows.
            GenerationError: the drawing has no such part, or the model's pictures are no drawings.
        """
        job, total = self.redraw_job(drawing, part, text, **options)
        return next(results(self.engine, [job], progress=progress, total=total))

    @checked(GenerationError)
    def continue_image(
        self, picture: Picture, keep: int, text: str | None = None, **options: Any
    ) -> InfilledImage:
        """Keep the top of a picture, as far as the model sees it, and generate everything below.

        Codes are generated in the usual order.

        Args:
            picture, text, options: see `infill`.
            keep: number of pixel rows to keep, counted from the top of the part that the model
                sees; whole rows of codes are kept.
        """
        whole = pixels_of(picture)
        return self.infill(whole, box_below(self, whole, keep), text, **options)

    # ---- texts

    @checked(GenerationError)
    def caption(self, picture: Picture, **options: Any) -> GeneratedText:
        """Caption a picture; see `captions`."""
        return self.captions([picture], **options)[0]

    @checked(GenerationError)
    def captions(
        self, pictures: Sequence[Picture], *, progress: Progress | None = None, **options: Any
    ) -> list[GeneratedText]:
        """Caption pictures.

        The text before each picture is masked, and infilled after it (paper section 2.2).

        Args:
            pictures: any sizes; the model sees the largest centred square of each (or crop in the
                model's aspect ratio).
            progress, options: see `Model`; all captions use the same seed. The picture is the query
                for retrieval. Texts have keys of their own: `text_temperature`, not `temperature`, which is of pictures.
                Also: max_tokens: maximum length of a text; None: the recipe's
                `generate.max_text_tokens`, at most `data.max_text_tokens`.

        Raises:
            DataError: a picture can't be read.
            GenerationError: a document doesn't fit the context.
        """
        jobs, total = self.caption_jobs(pictures, **options)
        return list(results(self.engine, jobs, progress=progress, total=total))

    @checked(GenerationError)
    def ask(
        self, picture: Picture, question: str, *, progress: Progress | None = None, **options: Any
    ) -> GeneratedText:
        """Answer a question about a picture; for models tuned on questions.

        The question is put as in the model's tuning. A model that was not tuned on questions gets a text with the
        question and a masked answer before the picture (paper, Table 5).

        Args:
            picture: any size; the model sees its largest centred square (or crop in the model's
                aspect ratio).
            question: the question.
            progress, options: see `captions`. Similar pictures are retrieved if they were prepended
                to questions in the model's tuning, or if `num_retrieved` is given.
                Also: template: your own text before the picture, with "{question}" and
                "{answer}", instead of the task. The model also writes the punctuation after the answer,
                which counts towards `max_tokens` and is removed from the returned text.
        """
        job, total = self.ask_job(picture, question, **options)
        return next(results(self.engine, [job], progress=progress, total=total))

    # ---- scores

    @checked(GenerationError)
    def do(
        self,
        task: Name,
        record: Record,
        *,
        max_tokens: Count | None = None,
        force: bool = False,
        progress: Progress | None = None,
        **options: Any,
    ) -> dict[str, str | PixelArray]:
        """Run a task that the model was tuned for, with any fields.

        Args:
            task: its name, one of `tasks.names`.
            record: the task's given fields; pictures as pixels, files or `Codes`.
            max_tokens: of each text; see `captions`.
            force: run it even if the model was not tuned for it.
            progress, options: see `complete`.

        Returns:
            the responses by field: texts, and pictures uint8 [height, width, 3].
        """
        chosen = named_task(self, task, force=force)
        record, note = record_as_tuned(self, task, chosen, record, force=force)
        if note:
            self.told(note)
        given = encoded_record(self, chosen, record)
        hole = text_hole(self.recipe, max_tokens)
        prompt = chosen.prompt(given, place=f"task {task!r}", max_tokens=hole.max_tokens)
        [done] = self.complete([prompt], progress=progress, **options)
        texts = [one.text for one in prompt if isinstance(one, Text)]
        pictures = pictures_given(self, task, chosen, record)
        return {
            name: self.drawn(value, texts, pictures) if isinstance(value, Codes) else value
            for name, value in chosen.answer(given, done.document).items()
        }

    # ---- any documents

    @checked(GenerationError)
    def complete(
        self,
        documents: Sequence[Document],
        *,
        retrieved: Sequence[Sequence[Document]] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        sampler: Name | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Fill the holes of any documents.

        Holes may be text or pictures, whole or in part, in any order, mixed in one batch.

        Args:
            documents: pictures as `Image` or `Codes`; at least one hole each.
            retrieved: for each document, the documents to prepend. None: none.
            seed: used for every document.
            progress, sampler, options: see `Model`; there are no candidates. Also: truncate: see
                `Request`.

        Returns:
            one `Completion` per document; `decode` turns its `Codes` into pixels.
        """
        return self.engine.complete(
            self.requests(documents, retrieved=retrieved, seed=seed, sampler=sampler, **options),
            progress=progress,
        )

    @checked(GenerationError)
    def requests(
        self,
        documents: Sequence[Document],
        *,
        retrieved: Sequence[Sequence[Document]] | None = None,
        seed: int = 0,
        truncate: bool = False,
        sampler: Name | None = None,
        **options: Any,
    ) -> list[Request]:
        """The engine requests of `complete` with these arguments.

        For `Engine.stream`, for sessions, and for `policy`.
        """
        prepended = [()] * len(documents) if retrieved is None else retrieved
        if len(prepended) != len(documents):
            raise GenerationError(
                "retrieved",
                f"has {len(prepended)} lists of documents for {len(documents)} documents",
                "give one for each, () for a document without any",
            )
        built = sampler_of(self, sampler, **sampler_keys(options))
        return [
            Request(
                self.coded(document), [self.coded(one) for one in others], seed, built, truncate
            )
            for document, others in zip(documents, prepended, strict=True)
        ]

    def policy(self) -> Policy:
        """The model as a reinforcement-learning policy, for sampling and scoring.

        It takes the requests of `requests`, each with its sampler, and shares the model's decoder:
        changing the decoder's weights changes both.
        """
        parts, options = self.components, self.options
        return Policy(
            parts.decoder,
            parts.serializer,
            sampler_of(self),
            parts.vocabulary,
            max_text_tokens=options.max_text_tokens,
            max_rows=options.max_rows,
            num_threads=options.num_threads,
            precision=options.precision,
        )

    @checked(GenerationError)
    def score(self, picture: GeneratedImage, reranker: Name | None = None) -> float:
        """A generated picture's score for its prompt, by the recipe's reranker or a named one.

        See `Choice` for the meaning of scores.
        """
        return candidates.score(self, picture, reranker)

    @checked(GenerationError)
    def reranker(self, name: Name | None = None) -> Reranker:
        """The recipe's reranker, or the named one with its defaults.

        Raises `GenerationError` if there is none.
        """
        return candidates.reranker(self, name)
