"""A page on this machine on which a photo is restored while one watches.

`realsr-r1 demo` loads a model folder and serves the page on loopback, for one photo at a time. The
page asks nothing of other machines; with `--share` gradio's servers pass visitors on to it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from realsr_r1.core.devices import POLICY_DTYPES
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import existing_folder
from realsr_r1.core.flags import Parser
from realsr_r1.core.presets import PRESETS
from realsr_r1.core.settings import check_ranges

EMBEDDED_MODEL = PRESETS / "tiny"
HOST = "127.0.0.1"
# Nothing but this server may be asked for anything by the page, whatever a new gradio would like.
POLICY = "; ".join((
    "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src 'self' 'unsafe-inline'", "img-src 'self' data: blob:", "font-src 'self' data:",
    "connect-src 'self' blob: data:", "worker-src 'self' blob:"))


def main(argv: list[str] | None = None) -> None:
    """Check the arguments, load the model, serve the page until Ctrl-C."""
    parser = Parser(prog="realsr-r1 demo", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(EMBEDDED_MODEL),
                        help="model folder (default: the embedded one, assets/tiny)")
    parser.add_argument("--port", type=int, help="port on 127.0.0.1 (default: 7860, or the next free one)")
    parser.add_argument("--share", action="store_true",
                        help="also give the page a public address for a week, by way of gradio's servers")
    parser.add_argument("--max_pixels", type=int, default=1_048_576,
                        help="largest result in pixels (default: %(default)s)")
    parser.add_argument("--max_file_mb", type=int, default=64,
                        help="largest file of a photo in MiB (default: %(default)s)")
    parser.add_argument("--max_waiting", type=int, default=8,
                        help="photos that may wait while one is restored (default: %(default)s)")
    parser.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=POLICY_DTYPES,
                        help="type of the policy (default: bfloat16 on CUDA, else float32)")
    args = parser.parse_args(argv)
    check_ranges(args, {"max_pixels": (1, 2**30), "max_file_mb": (1, 2**16), "max_waiting": (0, 10**4),
                        "port": (1, 65535)})
    existing_folder(args.model, "--model", "model folder")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the demo needs gradio; install it with pip install '.[demo]' (setup.sh does, too)")
    with TemporaryDirectory(prefix="realsr-r1-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read at gradio's import; here, so that no photo stays
        serve(args, Path(folder))
    # A photo may be in work in a thread. Python can't end that, and torch would abort the process or
    # wait for ever.
    sys.stdout.flush()
    os._exit(0)


def serve(args: argparse.Namespace, folder: Path) -> None:
    """Load the model and serve the page until Ctrl-C, with its files in `folder`."""
    from starlette.middleware import Middleware

    from realsr_r1 import Restorer
    from realsr_r1.showing.examples import write_examples
    from realsr_r1.showing.headers import Headers
    from realsr_r1.showing.page import Limits, Page
    from realsr_r1.showing.style import CSS, favicon, theme

    restorer = Restorer.from_pretrained(args.model, device=args.device, dtype=args.dtype)
    page = Page(restorer, Path(args.model).name, Limits(args.max_pixels, args.max_waiting),
                write_examples(folder), args.share)
    headers = Middleware(Headers, headers={"Content-Security-Policy": POLICY})
    try:
        _, address, public = page.blocks.launch(
            server_name=HOST, server_port=args.port, share=args.share,
            max_file_size=args.max_file_mb * 2**20, theme=theme(), css=CSS, favicon_path=favicon(folder),
            footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, quiet=True,
            prevent_thread_lock=True, app_kwargs={"middleware": [headers]})
    except OSError as error:
        raise UserError(f"the page can't be served on port {args.port or 7860} ({error}); give another "
                        "one with --port") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no photo stays
    others = f" and, for others, at {public}" if public else ""
    print(f"the demo of {args.model} is at {address}{others}; Ctrl-C ends it", flush=True)
    page.blocks.block_thread()


if __name__ == "__main__":
    run(main)
