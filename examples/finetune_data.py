"""What the two fine-tuning examples share: rows and a decoder, and the teacher's command for what they recorded."""

from __future__ import annotations

import shlex
from pathlib import Path

from influcoder.influence.decoder import Decoder, DecoderConfig, FreshDecoder, load_decoder
from influcoder.influence.tokens import TokenizedRow, tokenize
from influcoder.readers import DataSource, read_examples
from influcoder.text_format import TextFormat, truncate_all

TEXT = TextFormat(max_prompt_chars=200, max_response_chars=400)
EPOCHS = 3


def load(path: Path, decoder_path: Path | None) -> tuple[Decoder, dict[str, TokenizedRow]]:
    """Return the decoder, a tiny fresh one where no path is given, and the rows' tokens by id."""
    examples = truncate_all(read_examples(DataSource(paths=(str(path),))), TEXT)
    fresh = FreshDecoder(hidden_size=32, layers=2, heads=2, intermediate_size=48, vocab_size=400, max_tokens=700)
    config = DecoderConfig(path=str(decoder_path), device="cpu") if decoder_path else DecoderConfig(fresh=fresh, device="cpu")
    decoder = load_decoder(config, examples, seed=0)
    return decoder, dict(zip((example.id for example in examples), tokenize(examples, decoder), strict=True))


def teacher_command(output: Path, rows: Path, queries: Path | None) -> str:
    """Return the command that asks the recorded points for influence."""
    words = ["python", "-m", "teacher", "--output", str(output / "teacher"), "--rows.paths", f"[{rows}]"]
    words += ["--queries.paths", f"[{queries}]"] if queries else []
    words += ["--text.max_prompt_chars", str(TEXT.max_prompt_chars), "--text.max_response_chars", str(TEXT.max_response_chars)]
    return shlex.join(
        [*words, "--decoder.path", str(output / "decoder"), "--checkpoints", str(output / "record"), "--method", "f_influence"]
    )
