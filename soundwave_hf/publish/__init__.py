"""What goes to the Hub: the files of a model, its card, and the checks before and after an upload."""
