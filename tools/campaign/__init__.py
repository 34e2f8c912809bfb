"""A campaign of kills, flipped bits and mutated files against this package."""
