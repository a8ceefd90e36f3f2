"""What of the public surface does not yet refuse wrong values as it should (tests/test_public_surface.py).

The list only gets shorter: an entry that is mended must leave it. Nothing of another room is in it, and nothing new may
come in: annotate the parameter and put ``@checked`` (context_diffusion/signatures.py) on the function.
"""

KNOWN: set[str] = set()
