"""The shipped runtime under a seeded scheduler with virtual time, on a store that fails at will."""
