"""Our own questions, one file and one notebook each. In: the table of all results. Out: tidy frames. No torch."""
