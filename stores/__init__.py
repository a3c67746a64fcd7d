"""executus.stores: where runs are kept. This file is the door."""

if __name__ != "executus.stores":
    msg = f"import 'executus.stores', not {__name__!r}: install executus (pip install .) and import it by its full name"
    raise ImportError(msg)
