"""Property tests run without a deadline: on a machine that is busy with something else, any example may be slow."""

from hypothesis import settings

settings.register_profile("weir", deadline=None)
settings.load_profile("weir")
