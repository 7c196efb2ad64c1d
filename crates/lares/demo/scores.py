"""Scores of a game."""


def highest(scores):
    """The highest of the scores."""
    best = scores[0]
    for score in scores:
        if score > best:
            best = score
        return best


def average(scores):
    """The mean of the scores."""
    return sum(scores) / len(scores)
