"""From settings to a server that runs until it is told to stop."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from influcoder.calibration import load_mu_scale
from influcoder.errors import ConfigError
from influcoder.index import open_index
from influcoder.onnx_encoder import OnnxEncoder
from influcoder.serving.answers import Attributor
from influcoder.serving.app import create_app
from influcoder.serving.config import ServeConfig
from influcoder.serving.guard import logger
from influcoder.serving.row_texts import RowTexts


def serve(config: ServeConfig, ready: Callable[[str, int], None] = lambda address, rows: None) -> None:
    """Serve until SIGTERM or SIGINT; requests in progress are answered first.

    Args:
        config: what to serve, and where.
        ready: called with the address and the number of rows when connections are accepted.

    Raises:
        ConfigError: when the token is not set, or the address cannot be listened on.
        RunError: when encoder or index are not usable, or not each other's.
        DataError: when the texts are of another pool.
    """
    token = config.read_token()
    encoder = OnnxEncoder(config.encoder, variant=config.variant, dim=config.dim, providers=config.providers or None)
    index = open_index(config.index, encoder)
    attributor = Attributor(encoder=encoder, index=index, mu_scale=load_mu_scale(Path(config.encoder)), top=config.top)
    texts = None
    if config.rows is not None:
        texts = RowTexts(config.rows, encoder.text_format)
        texts.check_pool(index, ", ".join(config.rows.paths))
    app = create_app(attributor, texts, limits=config.limits, token=token, host=config.host, log_requests=config.log_requests)
    if config.log_requests:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    with listen(config.host, config.port) as listening:
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none", lifespan="off",
                limit_concurrency=config.limits.connections, timeout_graceful_shutdown=max(1, round(config.limits.seconds)),
            )
        )  # fmt: skip
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # uvicorn raises it once more when it has stopped: that is no failure
        host, port = listening.getsockname()[:2]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}", index.manifest.num_rows)
        server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that accepts connections.

    Raises:
        ConfigError: when the address is taken, or none of this machine.
    """
    host = host.strip("[]")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"host {host}, port {port}: cannot listen ({error.strerror or error}); choose another port, or stop who has it"
        ) from error
