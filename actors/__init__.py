"""executus.actors: runs, their supervision and the actors below them. This file is the door."""

if __name__ != "executus.actors":
    msg = f"import 'executus.actors', not {__name__!r}: install executus (pip install .) and import it by its full name"
    raise ImportError(msg)
