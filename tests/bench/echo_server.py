"""The yardstick: a grpc.aio server with mutual TLS that takes bytes and answers bytes, and does nothing else.

Run by `processes.py` as `python -m tests.bench.echo_server FOLDER REPLY_BYTES`. It has the hub's limits, takes the same
messages under the same method name, and answers each with as many bytes as an upload's reply has. It runs on asyncio's
own loop, as a plain server does; with `--hub-loop` it has what `erxhub serve` sets for its process, loop and transport.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from erxhub import process
from erxhub.config import Config
from tests.bench.load import UPLOAD

WATCH = "/erxhub.v1.DispensingService/BareStream"
"""A stream that says nothing and stays open until its caller ends it."""


async def serve(folder: Path, reply_bytes: int) -> None:
    reply = b"\x5a" * reply_bytes

    async def echo(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return reply

    async def stay(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        await context.send_initial_metadata(())
        await asyncio.Event().wait()
        yield b""

    config = Config()
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", config.message_bytes_max),
            ("grpc.max_send_message_length", config.message_bytes_max),
            ("grpc.server.max_pending_requests", config.calls_pending_max),
            ("grpc.server.max_pending_requests_hard_limit", config.calls_pending_max),
            ("grpc.max_concurrent_streams", config.calls_pending_max),
            ("grpc.so_reuseport", 0),
        )
    )
    _, service, method = UPLOAD.split("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(echo)})
    _, service, method = WATCH.split("/")
    watch = grpc.method_handlers_generic_handler(service, {method: grpc.unary_stream_rpc_method_handler(stay)})
    server.add_generic_rpc_handlers((handler, watch))
    credentials = grpc.ssl_server_credentials(
        [((folder / "key.pem").read_bytes(), (folder / "cert.pem").read_bytes())],
        root_certificates=(folder / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    run = process.run if "--hub-loop" in sys.argv else asyncio.run
    run(serve(Path(sys.argv[1]), int(sys.argv[2])))
