"""A stock book: what came in, what went out, what is left."""


class Stock:
    """Quantities of named goods. None of them ever goes below zero."""

    def __init__(self):
        self._quantities = {}

    def receive(self, name, quantity):
        """Book goods that came in."""
        if quantity <= 0:
            raise ValueError("quantity must be positive")
        self._quantities[name] = self._quantities.get(name, 0) + quantity

    def ship(self, name, quantity):
        """Book goods that went out."""
        if quantity <= 0:
            raise ValueError("quantity must be positive")
        self._quantities[name] = self._quantities.get(name, 0) - quantity

    def quantity(self, name):
        """How many there are."""
        return self._quantities.get(name, 0)

    def low(self, threshold):
        """Names of goods of which there are at most `threshold`, in alphabetical order."""
        return [name for name, quantity in self._quantities.items() if quantity < threshold]
