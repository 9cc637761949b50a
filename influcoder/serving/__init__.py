"""An index behind HTTP: queries in, the rows that push toward and against them out, and a page to explore both.

Needs the extra `serve` (FastAPI, uvicorn, prometheus-client), onnxruntime, and no torch.
"""
