"""Serves the page: everything that can fail is checked before it opens, and nothing of it outlives the process."""

import errno
import logging
import os
import signal
import socket
import sys
import tempfile

import gradio as gr

from .app import build
from .errors import sentence_of
from .studio import Studio
from .style import CSS, theme

FIRST_PORT, PORTS = 7860, 100  # tried in order where no port is named
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    studio: Studio,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    mcp: bool = False,
    share: bool = False,
) -> None:
    """Open the page and keep it open until interrupted. Files of the page live and die with it.

    Raises:
        ValueError: the model, the device, the host or the port cannot be had.
        OSError: a file of the model is missing.
    """
    studio.weights.check()
    port = free_port(host, port)
    if auth is None and (share or host not in LOOPBACK):
        print("Anybody who reaches this page can draw on it. Pass --auth USER:PASSWORD to ask for a password.")
    logging.getLogger("tulip_diffusion.pipelines").setLevel(logging.ERROR)  # the page itself names the words lost
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder below is deleted then, too
    with tempfile.TemporaryDirectory(prefix="tulip-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # the only folder that is served
        demo = launch(build(studio), host, port, auth, mcp, share)
        print(f"The page is open at {demo.share_url or demo.local_url}", flush=True)
        if mcp:
            print(f"Tools for language models: {demo.local_url}gradio_api/mcp/", flush=True)
        try:
            studio.pipelines  # noqa: B018  # loads; what fails here is told on the page as well
            print("The models are loaded.", flush=True)
        except Exception as error:
            print(sentence_of(error), file=sys.stderr)
        demo.block_thread()


def free_port(host: str, port: int | None) -> int:
    """`port`, or the first free one from 7860 on.

    Raises:
        ValueError: this machine has no such host, or the port is taken or may not be used.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"A port is a whole number from 1 to 65535, got {port}. Choose another with --port.")
    for candidate in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            return candidate
        except (socket.gaierror, UnicodeError) as error:
            raise ValueError(
                f"Cannot listen on host {host!r}, port {candidate}: {error}. Use --host 127.0.0.1 for this machine "
                "alone or 0.0.0.0 for the network."
            ) from None
        except PermissionError:
            raise ValueError(f"Port {candidate} needs more rights. Choose a --port from 1024 on.") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ValueError(f"This machine cannot listen on host {host!r}: {error.strerror}.") from None
    taken = f"Port {port} is" if port else f"The ports from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are"
    raise ValueError(f"{taken} in use. Choose another with --port.")


def launch(
    demo: gr.Blocks,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    mcp: bool = False,
    share: bool = False,
) -> gr.Blocks:
    """Launch without blocking: no files but the page's own, no stack traces, no history kept in the browser."""
    without_proxy()
    demo.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        share=share,
        mcp_server=mcp,
        theme=theme(),
        css=CSS,
        show_error=False,
        allowed_paths=[],
        max_file_size="1kb",  # nothing here takes files
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        footer_links=["api", "gradio"],
        prevent_thread_lock=True,
        quiet=True,
    )
    return demo


def without_proxy() -> None:
    """gradio asks its own server whether it is up, which no proxy can answer."""
    for name in ("no_proxy", "NO_PROXY"):
        listed = os.environ.get(name, "")
        if "*" not in listed:
            os.environ[name] = ",".join(filter(None, (listed, *LOOPBACK)))
