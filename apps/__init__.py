"""The doors: command line and, later, server, chat model, tool and report."""
