"""How people use a model: command line, files, server and demo page."""
