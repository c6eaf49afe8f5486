# SPDX-License-Identifier: Apache-2.0
"""Stop strings and the text of answers.

Whether an answer's text has come to hold a stop string needs its text, but only after a token whose own
text has the stop string's last character; which tokens those are is found once per set of stop strings.
"""

import numpy as np
import numpy.typing as npt

from rzero.engine.batch import FULL, RUNS, STOPPED, Answer, Batch
from rzero.engine.outputs import FinishReason, Sample
from rzero.engine.tokenizer import Tokenizer

_UNDECODED = "\N{REPLACEMENT CHARACTER}"


class Texts:
    """Decodes answers; without a tokenizer every text is empty and no request may have stop strings."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._token_texts: list[str] = []
        self._enders: dict[tuple[str, ...], npt.NDArray[np.bool_]] = {}

    def enders(self, stop: tuple[str, ...]) -> npt.NDArray[np.bool_]:
        """For each token of the vocabulary whether it can complete one of the stop strings."""
        if stop not in self._enders:
            assert self._tokenizer is not None, "stop strings need a tokenizer"
            if not self._token_texts:
                self._token_texts = [self._tokenizer.decode([i]) for i in range(self._tokenizer.vocab_size)]
            last = {text[-1] for text in stop}
            mask = np.ones(self._vocab_size, np.bool_)
            if " " not in last:  # a token alone may lose the space at its start
                last.add(_UNDECODED)  # the last byte of a character that several tokens share
                mask[: len(self._token_texts)] = [not last.isdisjoint(text) for text in self._token_texts]
            self._enders[stop] = mask
        return self._enders[stop]

    def stop(self, batch: Batch, reasons: npt.NDArray[np.int8]) -> None:
        """Set the reason of the rows whose text holds a stop string since the last token."""
        for row in np.flatnonzero(batch.has_stop_strings[: batch.size] & (reasons != STOPPED)).tolist():
            request = batch.owner[row].request
            if request.stop_enders[batch.token[row]]:
                text = self._decode(batch.drawn(row).tolist())
                if any(stop in text for stop in request.params.stop):
                    reasons[row] = STOPPED

    def sample(self, answer: Answer) -> Sample:
        """The finished answer as it is handed out."""
        params, tokens = answer.request.params, answer.tokens.tolist()
        assert answer.reason != RUNS, "the answer is still running"
        ends_in_stop_token = answer.reason == STOPPED and tokens[-1] in params.stop_token_ids
        text = self._decode(tokens[:-1] if ends_in_stop_token else tokens)
        reason: FinishReason = "length" if answer.reason == FULL else "stop"
        return Sample(
            token_ids=tokens,
            text=text[: min([text.find(s) for s in params.stop if s in text], default=len(text))],
            logprobs=answer.logprobs.tolist() if params.logprobs else [],
            full_logprobs=answer.full_logprobs.tolist() if params.logprobs else [],
            finish_reason=reason,
        )

    def _decode(self, tokens: list[int]) -> str:
        return "" if self._tokenizer is None else self._tokenizer.decode(tokens)
