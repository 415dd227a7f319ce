"""Documents and tasks of any form: `Model.complete`, `requests`, `do` and `policy`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cm3core.arguments import Count, Name, checked
from cm3core.document import Codes, Document, PixelArray, Text
from cm3core.errors import GenerationError
from cm3run.generation.engine import Completion, Progress, Request
from cm3run.generation.policy import Policy
from cm3run.model.loaded import Loaded, sampler_of, text_hole
from cm3run.model.options import sampler_keys
from cm3run.model.tasks import encoded_record, named_task, pictures_given

if TYPE_CHECKING:
    from cm3core.interfaces.task import Record


class AnyDocuments(Loaded):
    """A model that fills the holes of any documents."""

    # ---- any task

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
        """Do a task that the model was tuned for, of any fields.

        Args:
            task: its name, one of `tasks.names`.
            record: the task's given fields; pictures as pixels, files or `Codes`.
            max_tokens: of each text; see `captions`.
            force: do it even if the model was not tuned for it.
            progress, options: see `complete`.

        Returns:
            the responses by field: texts, and pictures uint8 [height, width, 3].
        """
        chosen = named_task(self, task, force=force)
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

        Holes are text or pictures, whole or in part, in any order, all kinds in one batch.

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
                "give one for each, () where there is none",
            )
        built = sampler_of(self, sampler, **sampler_keys(options))
        return [
            Request(
                self.coded(document), [self.coded(one) for one in others], seed, built, truncate
            )
            for document, others in zip(documents, prepended, strict=True)
        ]

    def policy(self) -> Policy:
        """The model as a policy of reinforcement learning: to sample from, and to score by.

        It works on the requests of `requests`, each with its sampler, and on the model's own decoder:
        what changes the decoder's weights changes both.
        """
        parts = self.components
        return Policy(
            parts.decoder,
            parts.serializer,
            sampler_of(self),
            parts.vocabulary,
            max_text_tokens=self.recipe.data.max_text_tokens,
            max_rows=self.max_rows,
            num_threads=self.num_threads,
            precision=self.precision,
        )
