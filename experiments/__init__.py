"""What trains, measures and publishes: it imports the package, never the other way."""

import context_diffusion  # noqa: F401 (so that Ctrl-C is one line while a command is being loaded)
