"""Log-probability of the contents of a document's holes under the model, by teacher forcing.

Nothing is sampled. Prompts and contents of many documents go through the decoder together, without
a cache: right-padded rows, longest first, at most `max_tokens` tokens at once. The head runs at the
positions that predict content, over the ids that the grammar allows there: image codes, or text and
its end token. Tokens without a choice (prefixes, ends of runs, the end of a text of maximum length)
count zero. The result is the engine's `Completion.log_probability` for the same tokens, computed in
another way.

Legend: n documents, B rows, T tokens fed, P positions that predict, E model dimension, R legal ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from cm3core.arguments import checked
from cm3core.document import Document, IntArray
from cm3core.errors import GenerationError
from cm3core.interfaces.decoder import Decoder
from cm3core.interfaces.reranker import LogProbability
from cm3core.interfaces.sampler import PromptVariant
from cm3core.sequence.grammar import LegalIds
from cm3core.sequence.serialize import Serializer
from cm3core.vocab import Vocabulary
from cm3run.generation.teacher_forcing import ForcedRow, check_context, forced_row, padded

#: Maximum tokens of a forward, padding included, unless a single document is longer.
MAX_TOKENS = 4096
#: Maximum bytes of float32 logits in memory at once.
CHUNK_BYTES = 32 << 20
#: Ranges of legal ids of which each is a product of its own; of more, all between are computed too.
_FEW = 4


class Likelihood:
    """How probable given contents of holes are under a decoder.

    Rerankers get it as `cm3core.interfaces.Likelihood`.

    Args:
        decoder: on any device, in its own dtype; in evaluation mode (`eval()`), as opened models
            are.
        serializer: documents -> prompts.
        vocabulary: the decoder's.
        max_text_tokens: every text of a prompt is cut to its first `max_text_tokens` tokens, as
            it was in training. None: never.
        max_tokens: maximum of one forward, padding included; together with `CHUNK_BYTES` of logits
            it bounds memory.
    """

    def __init__(
        self,
        decoder: Decoder,
        serializer: Serializer,
        vocabulary: Vocabulary,
        *,
        max_text_tokens: int | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self.decoder, self.serializer, self.vocabulary = decoder, serializer, vocabulary
        self.max_text_tokens, self.max_tokens = max_text_tokens, max_tokens

    @torch.inference_mode()
    @checked(GenerationError)
    def log_probability(
        self,
        documents: Sequence[Document],
        contents: Sequence[Sequence[IntArray]],
        *,
        retrieved: Sequence[Sequence[Document]] | None = None,
        variant: PromptVariant | None = None,
    ) -> list[LogProbability]:
        """log p(contents | the rest of the document) of each document, in order.

        Args:
            documents: at least one hole each, pictures as `Codes`.
            contents: for each document, its holes' contents in order: ids of the vocabulary without
                end tokens, as returned by `contents_of`. The end token of a text counts if the text
                is shorter than its hole's `max_tokens`, and always if the hole has no limit.
            retrieved: for each document, the documents prepended to it. None: none.
            variant: the visible parts of the prompts. None: everything.

        Raises:
            GenerationError: contents that the holes can't hold, or more tokens than the decoder's
                context.
            DocumentError: a document can't be serialised.
        """
        prepended = [()] * len(documents) if retrieved is None else retrieved
        for name, given in (("contents", contents), ("retrieved", prepended)):
            if len(given) != len(documents):
                raise GenerationError(
                    name, f"has {len(given)} for {len(documents)} documents", "give one for each"
                )
        rows = [
            self._row(f"document {place}", *one)
            for place, one in enumerate(
                zip(documents, contents, prepended, [variant] * len(documents), strict=True)
            )
        ]
        unique = sorted(
            {row.key: row for row in rows}.values(), key=lambda row: len(row.tokens), reverse=True
        )
        nats: dict[bytes, float] = {}
        for chunk in self._chunks(unique):
            nats |= zip((row.key for row in chunk), self._nats(chunk).tolist(), strict=True)
        return [LogProbability(nats[row.key], len(row.targets)) for row in rows]

    @checked(GenerationError)
    def contents_of(self, document: Document, filled: Document) -> list[IntArray]:
        """Contents of each hole, int32, in order.

        The inverse of `Serializer.fill`, except that text is encoded again.

        Args:
            document: with holes.
            filled: the same document with its holes filled. Texts longer than their holes are
                truncated.

        Raises:
            GenerationError: `filled` isn't `document` with its holes filled.
        """
        return self.serializer.contents_of(document, filled)

    @checked(GenerationError)
    def num_text_tokens(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.serializer.text_tokens(text))

    # ---- documents -> rows

    def _row(
        self,
        place: str,
        document: Document,
        contents: Sequence[IntArray],
        retrieved: Sequence[Document],
        variant: PromptVariant | None,
    ) -> ForcedRow:
        row = forced_row(
            place,
            self.serializer,
            self.vocabulary,
            document,
            contents,
            retrieved=retrieved,
            variant=variant,
            max_text_tokens=self.max_text_tokens,
        )
        check_context(place, row, self.decoder.context_length)
        return row

    def _chunks(self, rows: Sequence[ForcedRow]) -> Iterator[Sequence[ForcedRow]]:
        """Rows, longest first, in chunks of at most `max_tokens` tokens."""
        start = 0
        while start < len(rows):
            stop = start + max(1, self.max_tokens // len(rows[start].tokens))
            yield rows[start:stop]
            start = stop

    # ---- rows -> nats

    def _nats(self, rows: Sequence[ForcedRow]) -> npt.NDArray[np.float64]:
        """float64 [B]: sum of each row's targets' log-probabilities."""
        device = self.decoder.head_weight().device
        tokens_BT, cells_BT = padded(rows, self.vocabulary.pad)
        hidden_BTE = self.decoder.hidden_states(
            torch.from_numpy(tokens_BT).to(device), cells_BT=torch.from_numpy(cells_BT).to(device)
        )
        nats_B = np.zeros(len(rows))
        for legal in {legal for row in rows for legal in row.legal}:
            chosen = [np.array([own == legal for own in row.legal], np.bool_) for row in rows]
            owner_P = np.repeat(np.arange(len(rows)), [int(own.sum()) for own in chosen])
            place_P = np.concatenate(
                [row.places[own] for row, own in zip(rows, chosen, strict=True)]
            )
            target_P = np.concatenate(
                [row.targets[own] for row, own in zip(rows, chosen, strict=True)]
            )
            step = max(1, CHUNK_BYTES // (4 * sum(len(ids) for ids in legal)))
            for start in range(0, len(owner_P), step):
                part = slice(start, start + step)
                hidden_PE = hidden_BTE[
                    torch.from_numpy(owner_P[part]).to(device),
                    torch.from_numpy(place_P[part]).to(device),
                ]
                log_probability_P = self._log_probabilities(hidden_PE, legal, target_P[part])
                np.add.at(nats_B, owner_P[part], log_probability_P.double().cpu().numpy())
        return nats_B

    def _log_probabilities(self, hidden_PE: Tensor, legal: LegalIds, target_P: IntArray) -> Tensor:
        """Log-probability, float32 [P], of each target among the legal ids."""
        if len(legal) <= _FEW:
            logits = [self.decoder.logits(hidden_PE, ids).float() for ids in legal]
            logits_PR = torch.cat(logits, dim=1)
        else:
            first = legal[0].start
            logits_PV = self.decoder.logits(hidden_PE, range(first, legal[-1].stop)).float()
            chosen = np.concatenate([np.arange(ids.start, ids.stop) for ids in legal]) - first
            logits_PR = logits_PV[:, torch.from_numpy(chosen).to(logits_PV.device)]
        index_P, before = np.zeros(len(target_P), np.int64), 0
        for ids in legal:
            inside = (target_P >= ids.start) & (target_P < ids.stop)
            index_P[inside] = target_P[inside] - ids.start + before
            before += len(ids)
        index_P1 = rearrange(torch.from_numpy(index_P).to(logits_PR.device), "P -> P 1")
        return rearrange(logits_PR.gather(1, index_P1), "P 1 -> P") - logits_PR.logsumexp(dim=1)
