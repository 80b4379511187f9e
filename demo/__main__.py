"""`python -m tulip_diffusion.demo`, the same as `tulip-diffusion demo`."""

import argparse
import sys

from .commands import add_arguments, run


def main() -> int:
    """Parse the options, open the page, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tulip_diffusion.demo", description="Open the demo's page.")
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
