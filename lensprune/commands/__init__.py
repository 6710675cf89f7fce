"""Arguments of the commands that would crowd the command line's main file."""
