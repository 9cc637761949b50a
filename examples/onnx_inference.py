"""Rank rows by their influence on queries with an exported encoder; needs only numpy, tokenizers and onnxruntime.

    python onnx_inference.py ENCODER POOL.jsonl QUERIES.jsonl --top 10

Rows are JSON lines with `prompt`, `response` and `id` (the row number stands in for it). Copy this file and change it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer


def read_texts(path: str, text_format: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return ids and texts, cut and marked as in training: the prompt keeps its tail, the response its head."""
    text_format = {"separator": "\n", "end_marker": "", "bare_marker": None} | text_format  # older files lack these
    bare = text_format["response_marker"] if text_format["bare_marker"] is None else text_format["bare_marker"]
    ids, texts = [], []
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    for number, row in enumerate(rows, 1):
        prompt = row.get("prompt", "")[-text_format["max_prompt_chars"] :]
        response = row["response"][: text_format["max_response_chars"]] + text_format["end_marker"]
        ids.append(str(row.get("id", number)))
        texts.append(
            f"{text_format['prompt_marker']}{prompt}{text_format['separator']}{text_format['response_marker']}{response}"
            if prompt
            else bare + response
        )
    return ids, texts


def encode(encoder: Path, texts: list[str], batch_size: int = 32) -> NDArray[np.float32]:
    """Return one unit vector a text."""
    settings = json.loads((encoder / "onnx" / "encoder.json").read_text())
    tokenizer = Tokenizer.from_file(str(encoder / settings["tokenizer"]))
    tokenizer.enable_truncation(settings["max_seq_length"])
    tokenizer.enable_padding(pad_id=settings["pad_token_id"])
    providers = ["CPUExecutionProvider"]  # with onnxruntime-gpu: put "CUDAExecutionProvider" first
    session = onnxruntime.InferenceSession(encoder / "onnx" / "model.onnx", providers=providers)
    vectors = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer.encode_batch(texts[start : start + batch_size], add_special_tokens=settings.get("special_tokens", True))
        fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        feed = {name: np.array([getattr(text, fields[name]) for text in batch], np.int64) for name in settings["inputs"]}
        vectors.append(session.run(None, feed)[0])
    return np.concatenate(vectors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", type=Path)
    parser.add_argument("pool")
    parser.add_argument("queries")
    parser.add_argument("--top", type=int, default=10)
    args = parser.parse_args()
    text_format = json.loads((args.encoder / "text_format.json").read_text())
    (row_ids, rows), (query_ids, queries) = read_texts(args.pool, text_format), read_texts(args.queries, text_format)
    scores = encode(args.encoder, queries) @ encode(args.encoder, rows).T
    for query_id, query_scores in zip(query_ids, scores, strict=True):
        best = np.argsort(-query_scores, kind="stable")[: args.top]
        print(json.dumps({"query": query_id, "rows": [{"id": row_ids[row], "score": float(query_scores[row])} for row in best]}))
