NAMES = ("report", "select")


def command(*a): ...
