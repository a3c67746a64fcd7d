"""The `executus` command. It knows everything below it; nothing below knows it."""
