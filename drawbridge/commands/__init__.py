"""The commands that `drawbridge` runs itself, a module each with `main(arguments) -> exit status`."""
